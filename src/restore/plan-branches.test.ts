import assert from 'node:assert/strict';
import { test } from 'node:test';

import { IDENTITY, createRestoreLab, storeHistory, storeSegments } from '../../test/restore-lab.ts';
import { Life, type Noted, S, nth, plan } from '../../test/restore-life.ts';
import { SEGMENT_SIZE } from '../../test/wal-lab.ts';
import { lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { segmentOfLsn } from '../postgres/wal-segment.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { walHeaderKey } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';

/** Timeline 1, a fork to 2 at a segment's end; timeline 1 may go on. */
async function forked(options: { parentGoesOn: boolean }): Promise<{
  repository: Repository;
  backups: BackupRecord[];
  common: Noted;
  onParent: Noted | undefined;
  onChild: Noted;
}> {
  const grow = (): Life => {
    const life = new Life();
    life.backup();
    life.fill(100_000);
    life.commit();
    life.switch();
    return life;
  };
  const parent = grow();
  const child = grow();
  const fork = child.writer.end;
  const at = segmentOfLsn(fork, SEGMENT_SIZE);
  child.writer.timeline = 2;
  child.writer.endOfRecovery(child.now, 2, 1);
  child.now += 50n * S;
  child.xid = 900;
  const onChild = child.commit();
  child.switch();
  let onParent: Noted | undefined;
  if (options.parentGoesOn) {
    parent.fill(1000);
    onParent = parent.commit();
    parent.switch();
  }
  const repository = await createRestoreLab();
  await storeSegments(repository, parent.writer);
  await storeHistory(repository, 2, [1, fork]);
  await storeSegments(repository, child.writer, { timeline: 2, from: at });
  return { repository, backups: parent.recordsOfBackups(), common: nth(child.records, 1), onParent, onChild };
}

test('planRestore() follows the only branch there is', async () => {
  const { repository, backups, onChild } = await forked({ parentGoesOn: false });
  const { stop, path } = await plan(repository, backups, { kind: 'latest' });
  assert.equal(stop.timeline, 2);
  assert.equal(stop.lastCommit?.xid, onChild.xid);
  assert.deepEqual(
    path.map(({ timeline }) => timeline),
    [1, 2],
  );
});

test('planRestore() asks where a target differs between branches, and not where it is the same', async () => {
  const { repository, backups, onChild, onParent, common } = await forked({ parentGoesOn: true });
  await assert.rejects(
    plan(repository, backups, { kind: 'latest' }),
    (error: Error & { code?: string; hint?: string }) => {
      assert.equal(error.code, 'target-ambiguous');
      assert.match(error.hint ?? '', /--target-timeline 1/);
      assert.match(error.hint ?? '', /--target-timeline 2/);
      return true;
    },
  );
  // Only one branch has this transaction; it must not be followed unasked.
  const xid = onChild.xid ?? 0;
  await assert.rejects(plan(repository, backups, { kind: 'xid', xid, inclusive: true }), {
    code: 'target-ambiguous',
  });
  const two = { timeline: timelineOf(2) };
  assert.equal(
    (await plan(repository, backups, { kind: 'xid', xid, inclusive: true }, two)).stop.lsn,
    onChild.endLsn,
  );
  for (const choice of [timelineOf(1), 'current' as const]) {
    const one = await plan(repository, backups, { kind: 'latest' }, { timeline: choice });
    assert.equal(one.stop.timeline, 1);
    assert.equal(one.stop.lastCommit?.xid, onParent?.xid);
  }
  assert.equal(
    (await plan(repository, backups, { kind: 'latest' }, { timeline: 'latest' })).stop.timeline,
    2,
  );
  const shared = await plan(repository, backups, { kind: 'xid', xid: common.xid ?? 0, inclusive: true });
  assert.equal(shared.stop.timeline, 1);
  assert.equal(shared.stop.lsn, common.endLsn);
});

test('planRestore() for latest takes WAL of a branch that is not followed for lost only where it is', async () => {
  const { repository, backups, onChild } = await forked({ parentGoesOn: true });
  const mark = (endLsn: bigint) => ({
    timeline: 2,
    name: 'x',
    endLsn: lsnOf(endLsn),
    lastCommitTime: null,
    repositories: ['local'],
  });
  const latestOnOne = (endLsn: bigint) =>
    plan(repository, backups, { kind: 'latest' }, { timeline: timelineOf(1), highWater: mark(endLsn) });
  const { stop, notes } = await latestOnOne(onChild.endLsn);
  assert.equal(stop.timeline, 1);
  assert.match(notes.join('\n'), /last archived on timeline 2/);
  await assert.rejects(latestOnOne(onChild.endLsn + BigInt(SEGMENT_SIZE)), { code: 'wal-gap' });
});

test('planRestore() never falls back to the parent where a history file is missing', async () => {
  const { repository, backups } = await forked({ parentGoesOn: false });
  await repository.storage.delete(walHeaderKey(IDENTITY, '00000002.history'));
  await assert.rejects(
    plan(repository, backups, { kind: 'latest' }, { timeline: timelineOf(2) }),
    /00000002\.history/,
  );
  await assert.rejects(plan(repository, backups, { kind: 'latest' }), { code: 'target-unreachable' });
});
