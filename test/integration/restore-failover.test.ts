/** Restores over a failover in the middle of a segment, whose first half the new timeline's segment repeats. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatLsn } from '../../src/postgres/lsn.ts';
import { formatInstant } from '../../src/restore/instant.ts';
import { backupLab, createBackupLab, createStandby, until, untilCaughtUp } from '../harness/backup.ts';
import { commitRows, createOracleTable, createRestoreBench, ORACLE_SETTINGS } from '../harness/restore.ts';
import { createWalRepository } from '../harness/wal-repository.ts';

test('restore() reaches points on both sides of a failover within one segment', async () => {
  const wal = await createWalRepository();
  await using lab = await createBackupLab({
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  const { cluster } = lab;
  await createOracleTable(cluster);
  await lab.backup();
  const before = await commitRows(cluster, [1, 2, 3], 2000);
  await lab.archiveNow();
  await using standby = await createStandby(cluster);
  // These lie in a segment that the old primary never ends: its timeline's file of it is not in the archive.
  before.push(...(await commitRows(cluster, [4, 5, 6], 2000)));
  await untilCaughtUp(standby, cluster);
  await lab.pushWal();
  await cluster.kill();
  await standby.sql('SELECT pg_promote()');
  await until('promotion', async () => {
    const [row] = await standby.sql<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
    return row?.standby === false;
  });
  const next = await backupLab(standby, lab.repository);
  const after = await commitRows(standby, [7, 8, 9], 2000);
  await next.archiveNow();
  await using bench = await createRestoreBench(lab, wal);
  await bench.refresh();

  const [fifth, eighth] = [before[4], after[1]];
  assert(fifth !== undefined && eighth !== undefined);
  const latest = await bench.restore({}, bench.programLauncher);
  assert.deepEqual(latest.rows, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(latest.proof.reached.timeline, 2);
  for (const options of [
    { targetXid: String(fifth.xid) },
    { targetTime: formatInstant(fifth.time) },
    { targetLsn: formatLsn(fifth.lsn) },
  ]) {
    const { rows } = await bench.restore(options, bench.programLauncher);
    assert.deepEqual(rows, [1, 2, 3, 4, 5], JSON.stringify(options));
  }
  for (const options of [{ targetXid: String(eighth.xid) }, { targetTime: formatInstant(eighth.time) }]) {
    const { rows, proof } = await bench.restore(options);
    assert.deepEqual(rows, [1, 2, 3, 4, 5, 6, 7, 8], JSON.stringify(options));
    assert.equal(proof.reached.timeline, 2);
    assert.equal(proof.newTimeline, 3);
  }
});
