/** However an archive command ends without having stored anything: an alarm is raised, counted by the server or not. */
import assert from 'node:assert/strict';
import { readdir, readFile, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { createCluster } from '../harness/cluster.ts';
import { createGuardLab, type Ended, type GuardLab } from '../harness/guard-lab.ts';
import { eventually } from '../harness/receiver.ts';

const failures = ({ json }: Ended): { message: string }[] =>
  (json['findings'] as { status: string; message: string }[]).filter(({ status }) => status === 'fail');

/** How an archive command may end without having stored anything, and what the server's log says of it. */
const ENDINGS: { name: string; command: (lab: GuardLab) => string; log: RegExp; counted: boolean }[] = [
  { name: 'status 1', command: () => 'exit 1', log: /failed with exit code 1\b/, counted: true },
  { name: 'status 125', command: () => 'exit 125', log: /failed with exit code 125/, counted: true },
  { name: 'status 126', command: () => 'exit 126', log: /failed with exit code 126/, counted: false },
  { name: 'status 255', command: () => 'exit 255', log: /failed with exit code 255/, counted: false },
  { name: 'SIGKILL', command: () => 'kill -9 $$', log: /terminated by signal 9/, counted: false },
  {
    name: 'out of memory, seen by a shell',
    command: () => "(ulimit -c 0; sh -c 'kill -6 $$'); exit $?",
    log: /failed with exit code 134/,
    counted: false,
  },
  {
    name: 'a push that is out of memory',
    command: ({ push }) => `NODE_OPTIONS=--max-old-space-size=1 ${push}`,
    log: /failed with exit code 1\d*\b/,
    counted: true,
  },
];

describe('archive commands that fail', { concurrency: 4 }, () => {
  for (const { name, command, log, counted } of ENDINGS) {
    test(`wal status and check raise an alarm where the archive command ends with ${name}`, async () => {
      await using lab = await createGuardLab();
      await using cluster = await createCluster({
        segmentSizeMb: 1,
        // The words are in it, so that nobody complains of another command.
        archiveCommand: `: wal push; ${command(lab)}`,
      });
      await lab.configure(cluster);
      await cluster.sql("SELECT pg_logical_emit_message(true, 'x', 'x'); SELECT pg_switch_wal()");
      const logFile = join(cluster.scratch, 'server.log');
      await eventually('an attempt', async () => log.test(await readFile(logFile, 'utf8')));
      // Ten minutes later.
      const status = join(cluster.dataDir, 'pg_wal', 'archive_status');
      const then = new Date(Date.now() - 600_000);
      for (const file of await readdir(status)) await utimes(join(status, file), then, then);

      const seen = await lab.holdfast('wal', 'status', 'app');
      assert.deepEqual([seen.status, seen.code], [3, 'wal-behind']);
      const text = counted ? /archiving of 0{7}1\S+ fails/ : /waits to be archived.*failed_count does not/;
      assert.ok(
        failures(seen).some(({ message }) => text.test(message)),
        seen.out,
      );
      const check = await lab.holdfast('check', 'app');
      assert.equal(check.code, 'check-failed');
      assert.ok(failures(check).some(({ message }) => text.test(message)));
      const [row] = await cluster.sql<{ failed: string }>(
        'SELECT failed_count AS failed FROM pg_stat_archiver',
      );
      assert.equal(Number(row?.failed) > 0, counted);
    });
  }
});
