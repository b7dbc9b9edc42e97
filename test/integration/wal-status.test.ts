/** `wal status`, `wal release` and what `check` says of streaming, against real servers and slots. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, readdir, rename, symlink, utimes, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { describe, test, type TestContext } from 'node:test';

import { runProgram } from '../../src/cli/program.ts';
import { HoldfastError } from '../../src/errors.ts';
import { parseLsn } from '../../src/postgres/lsn.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { noteBehind } from '../../src/wal/behind.ts';
import { writeReceiverStatus } from '../../src/wal/receiver-status.ts';
import { availableMajors, createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import { openTestRepository } from '../wal-lab.ts';
import { createLocalStorage } from '../../src/storage/local.ts';

const run = promisify(execFile);

interface Ran {
  /** Of the error it ended with. */
  code: string | undefined;
  exit: number;
  hint: string;
  stdout: string;
  json(): Status;
}

interface Status {
  status: number;
  servers: {
    server: string;
    answers: boolean;
    role: string;
    slot: null | {
      active: boolean;
      walStatus: string | null;
      heldBytes: number;
      holder: null | { applicationName: string };
    };
    walDirectory: { path: string | null; freeBytes: number; totalBytes: number };
  }[];
  receiver: null | { alive: boolean; state: string };
  rate: null | { bytesPerSecond: number; source: string };
  forecast: null | { fullInSeconds: number | null; slotLostInSeconds: number | null };
  repositories: {
    repository: string;
    state: string | null;
    lsn: string | null;
    ageSeconds: number | null;
    pendingBytes: number | null;
    behind: null | { reason: string };
    gaps: { present: boolean; cause: string }[];
  }[];
  findings: { status: string; message: string; fix?: string }[];
}

interface Lab {
  cluster: TestCluster;
  stateDirectory: string;
  holdfast(...words: string[]): Promise<Ran>;
  /** Runs a command until the test ends. */
  start(...words: string[]): { stop: () => Promise<void> };
}

async function lab(t: TestContext, cluster: TestCluster, mode = 'stream'): Promise<Lab> {
  const directory = join(cluster.scratch, 'lab');
  const stateDirectory = join(directory, 'state');
  for (const name of ['', 'repository', 'usb', 'state']) await mkdir(join(directory, name));
  await openTestRepository(createLocalStorage(join(directory, 'repository')));
  await openTestRepository(createLocalStorage(join(directory, 'usb')));
  const file = join(directory, 'holdfast.yaml');
  await writeFile(
    file,
    `clusters:
  app:
    servers: ["${cluster.url}"]
    wal: { mode: ${mode}, tailInterval: 200ms }
repositories:
  local: { url: "file://${directory}/repository", required: true }
  usb: { url: "file://${directory}/usb", required: false }
state: ${stateDirectory}
`,
  );
  const runWords = async (words: readonly string[], signal: AbortSignal): Promise<Ran> => {
    let stdout = '';
    const sink = { write: (): void => undefined, isTerminal: false, columns: () => 80 };
    const world = {
      stdout: { ...sink, write: (text: string) => void (stdout += text) },
      stderr: sink,
      environment: { PATH: process.env['PATH'] },
      directory,
      signal,
    };
    const json = (): Status => JSON.parse(stdout) as Status;
    try {
      await runProgram([...words, '--config', file], world);
      return { code: undefined, exit: 0, hint: '', stdout, json };
    } catch (error) {
      if (!(error instanceof HoldfastError)) throw error;
      return { code: error.code, exit: error.exitCode, hint: error.hint ?? '', stdout, json };
    }
  };
  return {
    cluster,
    stateDirectory,
    holdfast: async (...words) => runWords(words, new AbortController().signal),
    start: (...words) => {
      const controller = new AbortController();
      const ended = runWords(words, controller.signal);
      const stop = async (): Promise<void> => {
        controller.abort(new HoldfastError('cancelled', 'the test is over'));
        await ended;
      };
      t.after(stop);
      return { stop };
    },
  };
}

/** Asks until it is so. */
async function until(ask: () => Promise<boolean>): Promise<void> {
  for (const giveUpAt = performance.now() + 15_000; !(await ask()); await sleep(50)) {
    assert.ok(performance.now() < giveUpAt, 'it did not happen within 15 seconds');
  }
}

async function isActive(cluster: TestCluster, wanted: boolean): Promise<void> {
  await until(async () => {
    const [row] = await cluster.sql<{ active: boolean }>('SELECT active FROM pg_replication_slots');
    return row?.active === wanted;
  });
}

/** Fills segments, and lets the server remove what it may. */
async function write(cluster: TestCluster, segments: number): Promise<void> {
  for (let count = 0; count < segments; count += 1) {
    await cluster.sql(
      `SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000)); SELECT pg_switch_wal()`,
    );
  }
  await cluster.sql('CHECKPOINT');
}

const failures = (status: Status): string[] =>
  status.findings.filter((finding) => finding.status === 'fail').map(({ message }) => message);

async function status(place: Lab): Promise<Ran & { seen: Status }> {
  const ran = await place.holdfast('wal', 'status', 'app', '--json');
  return { ...ran, seen: ran.json() };
}

// They wait most of the time: for a second look, for tails, for servers.
describe('wal status', { concurrency: true }, () => {
  test('wal status follows a slot from its making to its end, and an idle database is not behind', async (t) => {
    const [oldest] = await availableMajors();
    await using cluster = await createCluster({
      ...(oldest !== undefined && { major: oldest }),
      settings: { max_slot_wal_keep_size: '8GB' },
      segmentSizeMb: 1,
    });
    const place = await lab(t, cluster);

    const none = await status(place);
    assert.equal(none.exit, 3);
    assert.equal(none.code, 'wal-behind');
    assert.ok(failures(none.seen).some((message) => /no replication slot "holdfast"/.test(message)));

    const receiver = place.start('wal', 'receive', 'app');
    await cluster.sql('CREATE TABLE t AS SELECT generate_series(1, 20000) AS i');
    await until(async () => (await status(place)).seen.repositories[0]?.state === 'current');
    const fine = await status(place);
    assert.deepEqual(failures(fine.seen), []);
    assert.equal(fine.exit, 0, fine.stdout);
    const [server] = fine.seen.servers;
    assert.equal(server?.role, 'primary');
    assert.equal(server.slot?.active, true);
    assert.equal(server.slot.walStatus, 'reserved');
    assert.equal(server.slot.holder?.applicationName, 'holdfast');
    assert.equal(fine.seen.receiver?.alive, true);
    assert.ok((fine.seen.repositories[0]?.ageSeconds ?? -1) >= 0);
    assert.match(
      (await place.holdfast('wal', 'status', 'app')).stdout,
      /every commit is stored: last commit/,
    );

    const refused = await place.holdfast('wal', 'release', 'app');
    assert.equal(refused.code, 'receiver-running');
    assert.match(refused.hint, new RegExp(`process ${process.pid}`));

    await receiver.stop();
    const stopped = await status(place);
    assert.equal(stopped.exit, 3);
    assert.ok(failures(stopped.seen).some((message) => /nobody receives/.test(message)));
    assert.equal(stopped.seen.repositories[0]?.state, 'current', 'nothing is lost by that yet');

    const dry = await place.holdfast('wal', 'release', 'app', '--dry-run');
    assert.match(dry.stdout, /would drop the slot "holdfast", which kept .* from 0\//);
    const released = await place.holdfast('wal', 'release', 'app', '--json');
    assert.equal(released.exit, 0);
    assert.match(released.stdout, /"outcome":"dropped"/);
    assert.match((await place.holdfast('wal', 'release', 'app')).stdout, /has no slot "holdfast"/);
    const slots = await cluster.sql<{ count: string }>('SELECT count(*) FROM pg_replication_slots');
    assert.equal(slots[0]?.count, '0');
    const check = await place.holdfast('check', 'app', '--json');
    assert.equal(check.code, 'check-failed');
    assert.ok(failures(check.json()).some((message) => /no replication slot "holdfast"/.test(message)));

    await cluster.stop();
    const away = await status(place);
    assert.equal(away.exit, 20);
    assert.equal(away.seen.servers[0]?.answers, false);
    assert.notEqual(away.seen.repositories[0]?.lsn, null, 'what the repositories have is shown all the same');
  });

  test('wal status names who holds the slot, and what befalls it: extended, unreserved, lost', async (t) => {
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      settings: { max_wal_size: '2MB', min_wal_size: '2MB', wal_keep_size: '0' },
    });
    const place = await lab(t, cluster);
    await cluster.sql(`SELECT pg_create_physical_replication_slot('holdfast', true)`);

    // Somebody else streams from it.
    {
      await using other = await connectReplication(cluster.url, { applicationName: 'pg_receivewal' });
      const [row] = await cluster.sql<{ lsn: string }>(
        `SELECT restart_lsn::text AS lsn FROM pg_replication_slots WHERE slot_name = 'holdfast'`,
      );
      const controller = new AbortController();
      const streamed = other
        .streamWal(
          {
            slot: 'holdfast',
            timeline: timelineOf(1),
            start: parseLsn(row?.lsn ?? ''),
            signal: controller.signal,
          },
          { write: () => undefined },
        )
        .catch(() => undefined);
      await isActive(cluster, true);
      const held = await status(place);
      assert.equal(held.exit, 3);
      assert.ok(
        failures(held.seen).some((text) => /held by pg_receivewal \(process \d+/.test(text)),
        held.stdout,
      );
      const refused = await place.holdfast('wal', 'release', 'app');
      assert.equal(refused.code, 'receiver-running');
      assert.equal(refused.exit, 11);
      controller.abort();
      await streamed;
    }
    await isActive(cluster, false);
    const unlimited = (await status(place)).seen;
    assert.ok(unlimited.findings.some(({ message }) => /max_slot_wal_keep_size is not set/.test(message)));
    assert.match(
      unlimited.findings.find(({ message }) => /keep_size/.test(message))?.fix ?? '',
      /'\d+(GB|MB)'/,
    );

    await write(cluster, 8);
    const extended = await status(place);
    assert.equal(extended.seen.servers[0]?.slot?.walStatus, 'extended');
    assert.ok((extended.seen.servers[0]?.slot?.heldBytes ?? 0) > 5 * 2 ** 20);
    assert.ok(extended.seen.findings.some(({ message }) => /more than max_wal_size/.test(message)));

    await cluster.sql(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`);
    await cluster.sql('SELECT pg_reload_conf()');
    await write(cluster, 8);
    const lost = await status(place);
    assert.equal(lost.seen.servers[0]?.slot?.walStatus, 'lost');
    assert.equal(lost.exit, 40);
    assert.equal(lost.code, 'wal-gap');
    assert.match(lost.hint, /--accept-gap.*holdfast backup base app/);
  });

  test('wal status ends with 40 while a lost slot cuts the present off, until a base backup leads to it', async (t) => {
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      settings: {
        max_wal_size: '2MB',
        min_wal_size: '2MB',
        wal_keep_size: '0',
        max_slot_wal_keep_size: '1MB',
      },
    });
    const place = await lab(t, cluster);
    const first = place.start('wal', 'receive', 'app');
    await until(
      async () => (await cluster.sql('SELECT FROM pg_replication_slots WHERE active')).length === 1,
    );
    assert.equal((await place.holdfast('backup', 'base', 'app')).exit, 0);
    await first.stop();
    await write(cluster, 12);
    assert.equal((await status(place)).exit, 40, 'the slot is lost');

    const second = place.start('wal', 'receive', 'app', '--accept-gap');
    await until(async () => (await status(place)).seen.repositories[0]?.state === 'current');
    const cut = await status(place);
    assert.equal(cut.exit, 40);
    assert.deepEqual(
      cut.seen.repositories[0]?.gaps.map(({ present, cause }) => [present, cause]),
      [[true, 'slot-lost']],
    );
    assert.match(cut.hint, /holdfast backup base app/);
    const check = await place.holdfast('check', 'app', '--json');
    assert.ok(failures(check.json()).some((message) => /the slot was lost\): nothing behind/.test(message)));

    assert.equal((await place.holdfast('backup', 'base', 'app')).exit, 0);
    const over = await status(place);
    assert.equal(over.exit, 0, over.stdout);
    assert.deepEqual(
      over.seen.repositories[0]?.gaps.map(({ present }) => present),
      [false],
    );
    await second.stop();
  });

  test('wal status shows a receiver by what it says of itself, and an optional repository that is behind', async (t) => {
    await using cluster = await createCluster();
    const place = await lab(t, cluster);
    await cluster.sql(`SELECT pg_create_physical_replication_slot('holdfast', true)`);
    const [row] = await cluster.sql<{ id: string }>(
      'SELECT system_identifier::text AS id FROM pg_control_system()',
    );
    const said = {
      pid: process.pid,
      host: hostname(),
      cluster: 'app',
      systemIdentifier: row?.id ?? null,
      startedAt: new Date().toISOString(),
      updatedAt: new Date().toISOString(),
      state: 'waiting' as const,
      problem: 'the server is starting up',
      server: null,
      slot: 'holdfast',
      timeline: null,
      receivedLsn: null,
      flushedLsn: '0/1000000',
      serverLsn: null,
      lastCommitTime: null,
      repositories: [],
    };
    await writeReceiverStatus(place.stateDirectory, said);
    await noteBehind(place.stateDirectory, row?.id ?? '', {
      repository: 'usb',
      since: '2026-01-01T00:00:00.000Z',
      first: '000000010000000000000001',
      reason: 'no room',
      tryAgainAt: '2026-01-01T00:01:00.000Z',
    });
    const waiting = await status(place);
    assert.equal(waiting.exit, 3);
    assert.ok(failures(waiting.seen).some((text) => /waits: the server is starting up/.test(text)));
    assert.equal(
      waiting.seen.repositories.find(({ repository }) => repository === 'usb')?.behind?.reason,
      'no room',
    );
    assert.match((await place.holdfast('wal', 'status', 'app')).stdout, /behind since 2026-01-01.*no room/);
    await writeReceiverStatus(place.stateDirectory, { ...said, host: 'elsewhere' });
    assert.equal((await status(place)).seen.receiver?.alive, false);
  });

  test('wal status finds an archive command that fails, counted by PostgreSQL or not', async (t) => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { archive_mode: 'on' } });
    const place = await lab(t, cluster, 'push');
    const archiveWith = async (command: string): Promise<void> => {
      await cluster.sql(`ALTER SYSTEM SET archive_command = '${command} # wal push'`);
      await cluster.sql('SELECT pg_reload_conf()');
    };
    const counted = async (): Promise<number> => {
      const [row] = await cluster.sql<{ count: string }>(
        'SELECT failed_count AS count FROM pg_stat_archiver',
      );
      return Number(row?.count);
    };
    const statusFiles = join(cluster.dataDir, 'pg_wal', 'archive_status');
    await archiveWith('kill -9 $$');
    await write(cluster, 1);
    const ready = (await readdir(statusFiles)).filter((name) => name.endsWith('.ready'));
    assert.equal(ready.length, 1);
    // It has been waiting for ten minutes, for all that anybody can tell.
    const before = new Date(Date.now() - 600_000);
    for (const name of ready) await utimes(join(statusFiles, name), before, before);
    for (const command of ['kill -9 $$', 'exit 126', 'exit 255', 'sleep 60']) {
      await archiveWith(command);
      const hidden = await status(place);
      assert.equal(await counted(), 0, command);
      assert.equal(hidden.exit, 3, command);
      const found = failures(hidden.seen).filter((text) => /waits to be archived for 10 min/.test(text));
      assert.equal(found.length, 1, `${command}: ${hidden.stdout}`);
    }
    // A new archiver: the old one still waits for the last command.
    await archiveWith('exit 1');
    await cluster.stop('immediate');
    await cluster.start();
    await until(async () => (await counted()) > 0);
    const open = await status(place);
    assert.equal(
      failures(open.seen).filter((text) => /archiving of .* fails/.test(text)).length,
      1,
      open.stdout,
    );
  });

  test('wal status measures the disk pg_wal really lies on, and says when it is full', async (t) => {
    await using cluster = await createCluster({ segmentSizeMb: 1, start: false });
    const place = await lab(t, cluster);
    const small = join(cluster.scratch, 'small disk');
    await mkdir(small);
    const isRoot = process.getuid?.() === 0;
    // Elsewhere the link alone is tried: a file system of its own needs rights.
    if (isRoot) {
      await run('mount', ['-t', 'tmpfs', '-o', 'size=96m,mode=0777', 'tmpfs', small]);
    }
    // Before the directory of the cluster is removed.
    await using _unmounted = {
      async [Symbol.asyncDispose]() {
        await cluster.stop('immediate');
        if (isRoot) await run('umount', [small]);
      },
    };
    const moved = join(small, 'wal');
    await mkdir(moved);
    await run('cp', ['--archive', `${join(cluster.dataDir, 'pg_wal')}/.`, moved]);
    await rename(join(cluster.dataDir, 'pg_wal'), join(cluster.scratch, 'former pg_wal'));
    await symlink(moved, join(cluster.dataDir, 'pg_wal'));
    await giveToServer(moved);
    await cluster.start();

    const writing = await cluster.connect();
    await writing.query('CREATE TABLE t (x text)');
    const stop = new AbortController();
    const load = (async () => {
      while (!stop.signal.aborted)
        await writing.query(`INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 200)`);
    })();
    const { seen } = await status(place);
    stop.abort();
    await load;
    await writing.end();
    const [server] = seen.servers;
    assert.equal(server?.walDirectory.path, moved);
    assert.equal(seen.rate?.source, 'now');
    assert.ok(seen.rate.bytesPerSecond > 10_000, String(seen.rate.bytesPerSecond));
    if (isRoot) {
      assert.equal(server.walDirectory.totalBytes, 96 * 2 ** 20);
      const forecast = server.walDirectory.freeBytes / seen.rate.bytesPerSecond;
      assert.ok(Math.abs((seen.forecast?.fullInSeconds ?? -1) - forecast) <= 1);
    }
  });
});
