import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  IDENTITY,
  archiveOf,
  createRestoreLab,
  storeHistory,
  storeSegments,
} from '../../test/restore-lab.ts';
import { Life, type Noted, S, nth, plan } from '../../test/restore-life.ts';
import { storePiece, storeUpTo } from '../../test/tail-lab.ts';
import { SEGMENT_SIZE, openTestRepository, withStorage } from '../../test/wal-lab.ts';
import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../postgres/wal-segment.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { walTailPrefix } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { candidateOf } from './choose-backup.ts';
import { branchesOf } from './plan.ts';
import { reachableRanges } from './reachable.ts';

const name = (segment: bigint, timeline = 1): string =>
  walSegmentName(timelineOf(timeline), segment, SEGMENT_SIZE);

/** A backup, commits over some segments, and more in the last one, which is not complete. */
function story(): { life: Life; inTail: Noted[]; end: Lsn; segment: bigint } {
  const life = new Life();
  life.backup();
  for (let index = 0; index < 10; index += 1) {
    life.fill(200_000);
    life.commit();
  }
  life.switch();
  const inTail: Noted[] = [];
  for (let index = 0; index < 5; index += 1) {
    life.fill(9000);
    inTail.push(life.commit());
  }
  life.name('in the tail');
  return { life, inTail, end: life.writer.end, segment: segmentOfLsn(life.writer.end, SEGMENT_SIZE) };
}

test('planRestore() for latest reaches the last whole record in the tails', async () => {
  const { life, end, segment } = story();
  const last = nth(life.records, -1);
  for (const [cut, expected] of [
    [end, last],
    // The bytes behind a record up to the next multiple of eight are padding.
    [last.lsn + 24n + 5n + 72n, last],
    [last.lsn + 1n, nth(life.records, -2)],
  ] as const) {
    const repository = await createRestoreLab();
    const tails = await storeUpTo(repository, life.writer, lsnOf(cut));
    const found = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
    assert.equal(formatLsn(found.stop.lsn), formatLsn(expected.endLsn));
    assert.ok(found.stop.neededLsn <= cut, 'a fetch that has to reach this can be satisfied');
    assert.deepEqual(found.stop.setting, { kind: 'lsn', lsn: expected.lsn, inclusive: true });
    assert.deepEqual(found.tail, { segment: name(segment), endLsn: cut });
    assert.equal(found.segments.last, name(segment));
    assert.equal(found.segments.count, life.writer.segments().length);
    const stored = tails.reduce((sum, { storedBytes }) => sum + storedBytes, 0);
    assert.ok(stored > 0 && found.bytes.readWal > stored);
  }
});

test('planRestore() promises the transaction time that the server shows where the last record is a commit', async () => {
  const { life, inTail } = story();
  const [before, last] = [nth(inTail, -2), nth(inTail, -1)];
  const repository = await createRestoreLab();
  await storeUpTo(repository, life.writer, last.endLsn);
  const { stop } = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
  assert.equal(stop.lastCommit?.time, last.time);
  assert.equal(stop.lastTransactionTime, before.time, 'it stops before it notes that of the last record');
});

test('planRestore() finds times, transactions, positions and names in the tails, and nothing behind them', async () => {
  const { life, inTail, end } = story();
  const repository = await createRestoreLab();
  await storeUpTo(repository, life.writer, end);
  const backups = life.recordsOfBackups();
  const { time = 0n, xid = 0, lsn, endLsn } = nth(inTail, 2);
  const stops = await Promise.all([
    plan(repository, backups, { kind: 'xid', xid, inclusive: true }),
    plan(repository, backups, { kind: 'lsn', lsn, inclusive: true }),
    plan(repository, backups, { kind: 'time', time, inclusive: true }),
    plan(repository, backups, { kind: 'name', name: 'in the tail' }),
  ]);
  const following = nth(life.records, life.records.indexOf(nth(inTail, 2)) + 1);
  assert.deepEqual(
    stops.map(({ stop }) => stop.lsn),
    [endLsn, endLsn, following.endLsn, nth(life.records, -1).endLsn],
  );
  const behind = lsnOf(end + 8n);
  await assert.rejects(plan(repository, backups, { kind: 'lsn', lsn: behind, inclusive: true }), {
    code: 'target-unreachable',
    message: new RegExp(`is not complete \\(yet\\).*nearest before it: ${formatLsn(end)}`),
  });
});

test('planRestore() takes a backup that becomes consistent in the tails, and not one that would behind them', async () => {
  const life = new Life();
  life.backup();
  life.commit();
  life.switch();
  const { stop } = life.backup();
  for (const [end, id] of [
    [stop, 'b1'],
    [lsnOf(stop - 8n), 'b0'],
  ] as const) {
    const repository = await createRestoreLab();
    await storeUpTo(repository, life.writer, end);
    const found = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
    assert.equal(found.backup.id, id);
    const only = plan(repository, life.recordsOfBackups(), { kind: 'immediate' }, { backupId: 'b1' });
    if (id === 'b1') assert.equal((await only).stop.neededLsn, stop);
    else await assert.rejects(only, /which it needs, is stored up to .* only/);
  }
});

test('planRestore() takes what comes behind tails that end early for a gap', async () => {
  const { life, inTail, end, segment } = story();
  life.switch();
  life.commit();
  life.switch();
  const repository = await createRestoreLab();
  await storeUpTo(repository, life.writer, end);
  await storeSegments(repository, life.writer, { from: segment + 1n });
  const backups = life.recordsOfBackups();
  await assert.rejects(plan(repository, backups, { kind: 'latest' }), (error: Error & { hint?: string }) => {
    assert.match(error.message, new RegExp(`only the beginning of segment ${name(segment)} is there`));
    assert.match(error.hint ?? '', new RegExp(`--target-lsn ${formatLsn(nth(life.records, -4).lsn)}`));
    return true;
  });
  const { xid = 0, endLsn } = nth(inTail, -1);
  assert.equal((await plan(repository, backups, { kind: 'xid', xid, inclusive: true })).stop.lsn, endLsn);
});

test('planRestore() goes on behind tails that give a segment whole', async () => {
  const { life, segment } = story();
  life.switch();
  const last = life.commit();
  life.switch();
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer, { without: [segment] });
  const bytes = Buffer.from(nth(life.writer.segments(), Number(segment) - 1));
  await storePiece(repository, IDENTITY, name(segment), bytes, 0, 30_000);
  await storePiece(repository, IDENTITY, name(segment), bytes, 20_000, SEGMENT_SIZE);
  const found = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
  assert.equal(found.stop.lastCommit?.xid, last.xid);
  assert.equal(found.tail, undefined);
});

test('planRestore() ends before a damaged tail and says so', async () => {
  const { life, inTail, end } = story();
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  const tails = await storeUpTo(repository, life.writer, end, { cuts: 2 });
  const { key, from, segment } = nth(tails, 1);
  const bytes = Buffer.from(objects.get(key) ?? Buffer.alloc(0));
  bytes.writeUInt8(bytes.readUInt8(20) ^ 1, 20);
  objects.set(key, bytes);
  const { stop, notes, tail } = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
  assert.match(notes.join('\n'), new RegExp(`${segment} cannot be used: .*damaged`));
  assert.equal(Number((tail?.endLsn ?? 0n) % BigInt(SEGMENT_SIZE)), from);
  const readable = life.records.filter((one) => one.endLsn <= (tail?.endLsn ?? 0n));
  assert.equal(stop.lsn, nth(readable, -1).endLsn);
  assert.ok(stop.lsn < nth(inTail, -1).lsn);
});

test('planRestore() for latest knows the last WAL this host saw stored, in tails too', async () => {
  const { life, end, segment } = story();
  const repository = await createRestoreLab();
  await storeUpTo(repository, life.writer, end);
  const mark = (endLsn: Lsn) => ({
    highWater: {
      timeline: 1,
      name: name(segment),
      endLsn,
      lastCommitTime: null,
      repositories: ['local'],
    },
  });
  const latest = (endLsn: Lsn) => plan(repository, life.recordsOfBackups(), { kind: 'latest' }, mark(endLsn));
  assert.equal((await latest(end)).tail?.endLsn, end);
  await assert.rejects(latest(lsnOf(end + 8n)), { code: 'wal-gap' });
});

/** Timeline 1 died within a segment, and timeline 2 forked off there; both are only there as tails. */
async function promoted(options: { lost: 'nothing' | 'a torn record' | 'a commit' }): Promise<{
  repository: Repository;
  backups: BackupRecord[];
  fork: Lsn;
  old: Lsn;
  onChild: Noted;
  childEnd: Lsn;
  parent: Life;
}> {
  const grow = (): Life => {
    const life = new Life();
    life.backup();
    life.fill(100_000);
    life.commit();
    return life;
  };
  const [parent, child] = [grow(), grow()];
  const fork = child.writer.end;
  const segment = segmentOfLsn(fork, SEGMENT_SIZE);
  child.writer.timeline = 2;
  child.writer.endOfRecovery(child.now, 2, 1);
  child.now += 50n * S;
  child.xid = 900;
  const onChild = child.commit();
  parent.fill(3000);
  let old: Lsn = options.lost === 'nothing' ? fork : lsnOf(fork + 20n);
  if (options.lost === 'a commit') {
    parent.commit();
    old = parent.writer.end;
  }
  const repository = await createRestoreLab();
  await storeUpTo(repository, parent.writer, old);
  await storeHistory(repository, 2, [1, fork]);
  await storeUpTo(repository, child.writer, child.writer.end, { timeline: 2, from: segment });
  const backups = parent.recordsOfBackups();
  return { repository, backups, fork, old, onChild, childEnd: child.writer.end, parent };
}

test('planRestore() follows a promotion within tails, and asks only where the old primary had more to lose', async () => {
  for (const lost of ['nothing', 'a torn record', 'a commit'] as const) {
    const { repository, backups, onChild, childEnd, fork, old, parent } = await promoted({ lost });
    const archive = await archiveOf(repository, backups);
    const branches = await branchesOf(archive, backups.map(candidateOf));
    assert.deepEqual(branches, lost === 'a commit' ? [1, 2] : [2], lost);
    const latest = plan(repository, backups, { kind: 'latest' });
    if (lost === 'a commit') await assert.rejects(latest, { code: 'target-ambiguous' });
    else {
      const { stop, tail } = await latest;
      assert.equal(stop.timeline, 2);
      assert.equal(stop.lsn, onChild.endLsn);
      assert.equal(tail?.endLsn, childEnd);
    }
    const one = await plan(repository, backups, { kind: 'latest' }, { timeline: timelineOf(1) });
    assert.equal(one.stop.timeline, 1);
    assert.equal(one.tail?.endLsn, old);
    assert.equal(one.stop.lsn, lost === 'a commit' ? nth(parent.records, -1).endLsn : fork);
  }
});

test("planRestore() uses the parent's tails up to the switch point where the child has no more", async () => {
  const { repository, backups, fork } = await promoted({ lost: 'a commit' });
  for await (const { key } of repository.storage.list(`${walTailPrefix(IDENTITY)}00000002/`)) {
    await repository.storage.delete(key);
  }
  const { stop } = await plan(repository, backups, { kind: 'latest' }, { timeline: timelineOf(2) });
  assert.equal(stop.lsn, fork);
});

test('reachableRanges() ends where the tails do, at the time of their last commit', async () => {
  const { life, inTail, end } = story();
  const repository = await createRestoreLab();
  await storeUpTo(repository, life.writer, end);
  const backups = life.recordsOfBackups();
  const archive = await archiveOf(repository, backups);
  const [range, ...more] = await reachableRanges(
    archive,
    archive.tree.path(timelineOf(1)),
    backups.map(candidateOf),
  );
  assert.equal(more.length, 0);
  assert.deepEqual(range?.to, { lsn: end, time: nth(inTail, -1).time, timeline: 1 });
});

test('readWalArchive() sees neither less nor more while tails become segments and are merged', async () => {
  const { life, end, segment } = story();
  life.switch();
  const backups = life.recordsOfBackups();
  for (const moment of ['before the tails are listed', 'before the tails are read'] as const) {
    for (const becomes of ['merged', 'whole'] as const) {
      const repository = await createRestoreLab();
      const old = await storeUpTo(repository, life.writer, end);
      const bytes = Buffer.from(nth(life.writer.segments(), Number(segment) - 1));
      let changed = false;
      const change = async (): Promise<void> => {
        if (changed) return;
        changed = true;
        if (becomes === 'whole') await storeSegments(repository, life.writer, { from: segment });
        else await storePiece(repository, IDENTITY, name(segment), bytes, 0, nth(old, -1).to + 8);
        for (const { key } of old) await repository.storage.delete(key);
      };
      const { storage } = repository;
      const changing = withStorage(repository, {
        ...storage,
        async *list(prefix, options) {
          if (moment === 'before the tails are listed' && prefix.includes('/wal-tail/')) await change();
          yield* storage.list(prefix, options);
        },
        async *get(key, options) {
          if (key.includes('/wal-tail/')) await change();
          yield* storage.get(key, options);
        },
      });
      const { stop } = await plan(changing, backups, { kind: 'latest' });
      assert.ok(changed);
      const { endLsn } = nth(life.records, becomes === 'whole' && moment.endsWith('listed') ? -1 : -2);
      assert.equal(formatLsn(stop.lsn), formatLsn(endLsn), `${becomes} ${moment}`);
    }
  }
});
