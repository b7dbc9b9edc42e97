/** Timelines whose numbers are no decimal digits, in segments of every size: archived, shown, and restored across a fork. */
import assert from 'node:assert/strict';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { historyFileName, timelineOf } from '../../src/postgres/timeline.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import { assertArchived, createGuardLab } from '../harness/guard-lab.ts';
import { archiveEverything } from '../harness/wal-repository.ts';

const MIB = 2 ** 20;
/** `0F`: the next one is `10`. */
const FIRST = 15;

/** Promotes it; `known`: timelines that are taken, so that it goes on with the one behind them. */
async function promote(cluster: TestCluster, known: number[] = []): Promise<void> {
  const histories = known.map((timeline) =>
    join(cluster.dataDir, 'pg_wal', historyFileName(timelineOf(timeline))),
  );
  for (const path of histories) await writeFile(path, '1\t0/100\tno recovery target specified\n');
  await cluster.configure({ recovery_target_timeline: 'current' });
  await writeFile(join(cluster.dataDir, 'standby.signal'), '');
  await giveToServer(cluster.dataDir);
  await cluster.start();
  await cluster.sql('SELECT pg_promote()');
  for (const path of histories) await rm(path);
}

describe('timelines beyond the ninth', { concurrency: 3 }, () => {
  for (const segmentSizeMb of [1, 16, 64] as const) {
    test(`wal push, window and restore base follow a promotion from timeline 0F to 10 in segments of ${segmentSizeMb} MiB`, async () => {
      await using lab = await createGuardLab();
      await using cluster = await createCluster({
        segmentSizeMb,
        archiveCommand: lab.push,
        start: false,
        settings: { wal_keep_size: '512MB', max_wal_size: '512MB' },
      });
      await lab.configure(cluster);
      await promote(
        cluster,
        Array.from({ length: FIRST - 2 }, (_, at) => at + 2),
      );
      await cluster.sql('CREATE TABLE t (x text)');
      await archiveEverything(cluster);
      const backup = await lab.holdfast('backup', 'base', 'app');
      assert.equal(backup.status, 0, backup.message);
      await cluster.sql("INSERT INTO t VALUES ('on 0F')");
      await archiveEverything(cluster);
      await cluster.stop('fast');
      await promote(cluster);
      await cluster.sql("INSERT INTO t VALUES ('on 10')");
      await archiveEverything(cluster);
      await assertArchived(cluster, lab, segmentSizeMb * MIB);

      const entries = await Array.fromAsync(listWal(lab.repository, await lab.identityOf(cluster)));
      assert.deepEqual(
        entries.filter(({ kind }) => kind === 'history').map(({ name }) => name),
        ['0000000F.history', '00000010.history'],
      );
      const window = await lab.holdfast('window', 'app');
      assert.equal(window.status, 0, window.message);
      const present = window.json['present'] as { state: string; timeline: number };
      assert.deepEqual([present.state, present.timeline], ['reachable', FIRST + 1]);
      assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 0);
      const rows = await lab.restored<{ x: string }>(lab.place(), 'SELECT x FROM t');
      assert.deepEqual(
        rows.map(({ x }) => x),
        ['on 0F', 'on 10'],
      );
    });
  }
});
