/** Restores of clusters whose last WAL is in the repository as tails only: no segment was ever completed behind it. */
import assert from 'node:assert/strict';
import { appendFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { formatLsn } from '../../src/postgres/lsn.ts';
import { listTails } from '../../src/repository/wal-tail.ts';
import { formatInstant } from '../../src/restore/instant.ts';
import { restoreFiles, until } from '../harness/backup.ts';
import { createCluster, giveToServer } from '../harness/cluster.ts';
import { type Commit, commitRows, createOracleTable, passSecond } from '../harness/restore.ts';
import { createTailBench, receive } from '../harness/tail-bench.ts';

const ids = (commits: readonly Commit[]): number[] => commits.map(({ id }) => id);
const count = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index);

for (const seal of ['none', 'age'] as const) {
  test(`restore base reaches the last commit in tails, and each before it, of a killed server, sealed with ${seal}`, async () => {
    await using bench = await createTailBench(seal);
    const { lab } = bench;
    await createOracleTable(lab.cluster);
    await lab.backup();
    await passSecond();
    const commits: Commit[] = [];
    // More than a segment, received every few commits.
    for (let id = 1; id <= 60; id += 10) {
      commits.push(...(await commitRows(lab.cluster, count(id, id + 9))));
      await receive(lab);
    }
    const inTail = await commitRows(lab.cluster, [61, 62, 63], 500);
    const end = await receive(lab);
    const lost = await commitRows(lab.cluster, [64, 65], 500);
    await lab.cluster.kill();
    assert.ok(lost.every(({ lsn }) => lsn > end));
    const tails = await Array.fromAsync(listTails(lab.repository, lab.identity));
    assert.ok(tails.length > 1);

    const to = bench.place();
    const plan = await bench.holdfast('restore', 'base', 'lab', '--to', to, '--dry-run');
    const tail = plan['tail'] as { segment: string; endLsn: string };
    assert.deepEqual(tail, { segment: tails.at(-1)?.segment, endLsn: formatLsn(end) });
    assert.equal((plan['segments'] as { last: string }).last, tail.segment);

    const latest = await bench.holdfast('restore', 'base', 'lab', '--to', to, '--start');
    assert.deepEqual(await bench.rowsOf(latest, to), ids([...commits, ...inTail]));
    assert.deepEqual(
      (latest['reached'] as { lsn: string }).lsn,
      (plan['promised'] as { lsn: string }).lsn,
      'what the plan promised',
    );
    if (seal === 'age') return;
    const [, goal] = inTail;
    assert.ok(goal);
    for (const words of [
      ['--target-xid', String(goal.xid)],
      ['--target-time', formatInstant(goal.time)],
    ]) {
      const restored = await bench.holdfast(
        'restore',
        'base',
        'lab',
        '--to',
        to,
        '--start',
        '--delta',
        ...words,
      );
      assert.deepEqual(await bench.rowsOf(restored, to), count(1, 62), words.join(' '));
    }
    const behind = bench.holdfast(
      'restore',
      'base',
      'lab',
      '--to',
      to,
      '--target-lsn',
      formatLsn(lost[1]?.lsn ?? end),
    );
    await assert.rejects(behind, { code: 'target-unreachable' });
  });
}

test('restore base reaches the last whole record where a tail ends anywhere within one', async () => {
  await using bench = await createTailBench('none');
  const { lab } = bench;
  await createOracleTable(lab.cluster);
  await lab.backup();
  const to = bench.place();
  for (let round = 0; round < 3; round += 1) {
    const commits = await commitRows(lab.cluster, count(round * 5 + 1, round * 5 + 5), 3000);
    const end = await receive(lab, 100 + 977 * round);
    const restored = await bench.holdfast(
      'restore',
      'base',
      'lab',
      '--to',
      to,
      '--start',
      ...(round > 0 ? ['--delta'] : []),
    );
    const rows = await bench.rowsOf(restored, to);
    const sure = round * 5 + commits.filter(({ lsn }) => lsn <= end).length;
    assert.deepEqual(rows.slice(0, sure), count(1, sure));
    assert.deepEqual(rows, count(1, rows.length));
    assert.ok(rows.length <= sure + 1, 'the next one was committed behind the end, or just there');
  }
});

test('restore base reaches what a tail holds where the archive goes on behind a hole, and never calls that the end', async () => {
  await using bench = await createTailBench('none');
  const { lab } = bench;
  await createOracleTable(lab.cluster);
  await lab.backup();
  await passSecond();
  const kept = await commitRows(lab.cluster, [1, 2, 3], 2000);
  await receive(lab);
  await commitRows(lab.cluster, [4], 2000);
  // The receiver lost its place, and was told to go on with the next segment.
  await lab.cluster.sql('SELECT pg_switch_wal()');
  const [next] = await commitRows(lab.cluster, [5], 2000);
  assert.ok(next);
  await lab.archiveNow(formatLsn(next.lsn));
  await lab.cluster.kill();
  const to = bench.place();
  const restore = async (...words: string[]): Promise<Record<string, unknown>> =>
    bench.holdfast('restore', 'base', 'lab', '--to', to, '--start', ...words);
  await assert.rejects(restore(), { code: 'wal-gap' });
  const last = kept.at(-1);
  assert.ok(last);
  const restored = await restore('--target-xid', String(last.xid));
  assert.deepEqual(await bench.rowsOf(restored, to), ids(kept));
  await assert.rejects(restore('--target-xid', String(next.xid), '--delta'), { code: 'target-unreachable' });
});

test('wal fetch gives a recovery without a target everything there is, and lets it end', async () => {
  await using bench = await createTailBench('none');
  const { lab } = bench;
  await createOracleTable(lab.cluster);
  const record = await lab.backup();
  const commits = await commitRows(lab.cluster, count(1, 30));
  await receive(lab);
  commits.push(...(await commitRows(lab.cluster, [31], 100)));
  await receive(lab);
  await lab.cluster.kill();
  await using copy = await createCluster({ major: lab.cluster.major, start: false });
  await rm(copy.dataDir, { recursive: true });
  await restoreFiles(copy.dataDir, record, { repository: lab.repository });
  await writeFile(join(copy.dataDir, 'recovery.signal'), '');
  await appendFile(
    join(copy.dataDir, 'postgresql.conf'),
    `restore_command = '${bench.fetch.replaceAll("'", "''")}'\narchive_mode = off\n`,
  );
  await giveToServer(copy.scratch);
  await giveToServer(join(bench.configFile, '..'));
  await copy.start();
  await until('the end of recovery', async () => {
    const [row] = await copy.sql<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
    return row?.standby === false;
  });
  const rows = await copy.sql<{ id: number }>('SELECT id FROM oracle ORDER BY id');
  assert.deepEqual(
    rows.map(({ id }) => id),
    ids(commits),
  );
});
