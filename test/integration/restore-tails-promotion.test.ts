/** A promotion in the middle of a segment that neither the old nor the new primary ever completed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatLsn } from '../../src/postgres/lsn.ts';
import { listTails } from '../../src/repository/wal-tail.ts';
import { backupLab, createStandby, until, untilCaughtUp } from '../harness/backup.ts';
import { commitRows, createOracleTable } from '../harness/restore.ts';
import { createTailBench, receive } from '../harness/tail-bench.ts';

const count = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index);

test('restore base follows a promotion whose both sides are tails, and finds what only the old primary had', async () => {
  await using bench = await createTailBench('none');
  const { lab } = bench;
  await createOracleTable(lab.cluster);
  await lab.backup();
  await using standby = await createStandby(lab.cluster);
  await commitRows(lab.cluster, count(1, 5), 2000);
  await untilCaughtUp(standby, lab.cluster);
  // The standby is behind the receiver when the primary dies.
  await standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
  await standby.sql('SELECT pg_reload_conf()');
  await until('the end of streaming', async () => {
    return (await standby.sql('SELECT FROM pg_stat_wal_receiver')).length === 0;
  });
  await commitRows(lab.cluster, [100], 2000);
  const end = await receive(lab);
  await lab.cluster.kill();
  await standby.sql('SELECT pg_promote()');
  await until('promotion', async () => {
    const [row] = await standby.sql<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
    return row?.standby === false;
  });
  const next = await backupLab(standby, lab.repository);
  await commitRows(standby, [6, 7, 8], 2000);
  await receive(next);
  await standby.kill();
  const segments = await Array.fromAsync(listTails(lab.repository, lab.identity));
  assert.deepEqual([...new Set(segments.map(({ timeline }) => timeline))], [1, 2]);
  const to = bench.place();
  const restore = async (...words: string[]): Promise<Record<string, unknown>> =>
    bench.holdfast('restore', 'base', 'lab', '--to', to, '--start', ...words);
  await assert.rejects(restore(), { code: 'target-ambiguous' });
  const latest = await restore('--target-timeline', 'latest');
  assert.deepEqual(await bench.rowsOf(latest, to), count(1, 8));
  assert.equal((latest['reached'] as { timeline: number }).timeline, 2);
  const old = await restore('--target-timeline', '1', '--delta');
  assert.deepEqual(await bench.rowsOf(old, to), [...count(1, 5), 100]);
  assert.ok((old['promised'] as { lsn: string }).lsn <= formatLsn(end));
});
