import assert from 'node:assert/strict';
import { test } from 'node:test';

import { EPOCH, IDENTITY, createRestoreLab, storeSegments } from '../../test/restore-lab.ts';
import { Life, type Noted, nth, plan } from '../../test/restore-life.ts';
import { SEGMENT_SIZE } from '../../test/wal-lab.ts';
import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../postgres/wal-segment.ts';
import { walHeaderKey } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader } from '../repository/wal-file.ts';

/** A backup, four segments of commits with a restore point, a second backup, and commits behind it. */
async function story(): Promise<{ life: Life; repository: Repository; commits: Noted[]; more: Noted[] }> {
  const life = new Life();
  life.commit();
  life.backup();
  const commits: Noted[] = [];
  for (let index = 0; index < 40; index += 1) {
    life.fill(90_000);
    commits.push(life.commit());
    if (index === 20) life.name('here');
  }
  life.backup();
  const more: Noted[] = [];
  for (let index = 0; index < 20; index += 1) {
    life.fill(60_000);
    more.push(life.commit());
  }
  life.switch();
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer);
  return { life, repository, commits, more };
}

test('planRestore() for latest promises the end of the last record, by the start of that record', async () => {
  const { life, repository } = await story();
  const { stop, backup } = await plan(repository, life.recordsOfBackups(), { kind: 'latest' });
  const last = nth(life.records, -1);
  assert.equal(backup.id, 'b1');
  assert.equal(stop.lsn, last.endLsn);
  assert.deepEqual(stop.setting, { kind: 'lsn', lsn: last.lsn, inclusive: true });
  assert.equal(stop.lastCommit?.xid, life.xid);
});

test('planRestore() takes the newest backup whose stop lies before the target', async () => {
  const { life, repository, commits, more } = await story();
  const backups = life.recordsOfBackups();
  for (const [commit, id] of [
    [nth(commits, 0), 'b0'],
    [nth(commits, 25), 'b0'],
    [nth(commits, -1), 'b0'],
    [nth(more, 0), 'b1'],
    [nth(more, 7), 'b1'],
  ] as const) {
    const { time = 0n, xid = 0, lsn, endLsn } = commit;
    const byXid = await plan(repository, backups, { kind: 'xid', xid, inclusive: true });
    const byTime = await plan(repository, backups, { kind: 'time', time, inclusive: true });
    const byLsn = await plan(repository, backups, { kind: 'lsn', lsn, inclusive: true });
    assert.deepEqual(
      [byXid, byTime, byLsn].map((one) => one.backup.id),
      [id, id, id],
    );
    assert.equal(byXid.stop.lsn, endLsn);
    assert.equal(byLsn.stop.lsn, endLsn);
    assert.equal(byTime.stop.lastCommit?.xid, xid);
  }
});

test('planRestore() opens only the segments that may decide', async () => {
  const { life, repository, commits } = await story();
  const read = new Set<string>();
  const counting: Repository = {
    ...repository,
    storage: {
      ...repository.storage,
      get: (key, options) => {
        if (key.includes('wal-data/')) read.add(key);
        return repository.storage.get(key, options);
      },
      list: (prefix, options) => repository.storage.list(prefix, options),
      head: (key, options) => repository.storage.head(key, options),
    },
  };
  const wanted = nth(commits, 30);
  const found = await plan(counting, life.recordsOfBackups(), {
    kind: 'xid',
    xid: wanted.xid ?? 0,
    inclusive: true,
  });
  assert.equal(found.stop.lsn, wanted.endLsn);
  const segments = life.writer.segments().length;
  assert(read.size < segments, `${read.size} of ${segments} segments were opened`);
});

test('planRestore() finds a commit that lies across two segments', async () => {
  for (const gap of [8, 16, 24, 32, 40]) {
    const life = new Life();
    life.backup();
    const plain = (): void => {
      for (let count = 0; count < 12; count += 1) life.fill(200_000);
    };
    life.commit();
    plain();
    const left = SEGMENT_SIZE - Number(life.writer.end % BigInt(SEGMENT_SIZE));
    // Page headers take 24 bytes each; a filler's own header 24 and five of its data header.
    const pages = Math.floor((left - 1) / 8192);
    life.fill(left - pages * 24 - 29 - gap);
    const straddling = life.commit();
    plain();
    life.switch();
    const crosses =
      segmentOfLsn(straddling.lsn, SEGMENT_SIZE) !==
      segmentOfLsn(lsnOf(straddling.endLsn - 1n), SEGMENT_SIZE);
    const repository = await createRestoreLab();
    await storeSegments(repository, life.writer);
    const target = { kind: 'xid', xid: straddling.xid ?? 0, inclusive: true } as const;
    const { stop } = await plan(repository, life.recordsOfBackups(), target);
    assert.equal(stop.lsn, straddling.endLsn, `gap ${gap}, ${crosses ? 'across' : 'within'}`);
    const { time = 0n } = straddling;
    const before = await plan(repository, life.recordsOfBackups(), {
      kind: 'time',
      time: time - 1n,
      inclusive: true,
    });
    assert.equal(before.stop.lastCommit?.xid, (straddling.xid ?? 0) - 1);
  }
});

test('planRestore() refuses what lies before the first backup and says from where', async () => {
  const { life, repository } = await story();
  const first = nth(life.backups, 0);
  await assert.rejects(
    plan(repository, life.recordsOfBackups(), { kind: 'lsn', lsn: lsnOf(first.stop - 8n), inclusive: true }),
    (error: Error & { code?: string }) =>
      error.code === 'target-unreachable' && error.message.includes(formatLsn(first.stop)),
  );
  await assert.rejects(
    plan(repository, life.recordsOfBackups(), { kind: 'time', time: EPOCH, inclusive: true }),
    { code: 'target-unreachable' },
  );
});

test('planRestore() never takes a backup that may hold commits behind a time', async () => {
  const { life, repository, commits } = await story();
  // Nothing was committed between this moment and the second backup's start but the last of these commits.
  const last = nth(commits, -1);
  const { backup, stop } = await plan(repository, life.recordsOfBackups(), {
    kind: 'time',
    time: (last.time ?? 0n) - 1n,
    inclusive: true,
  });
  assert.equal(backup.id, 'b0');
  assert.equal(stop.lastCommit?.xid, (last.xid ?? 0) - 1);
});

test('planRestore() resolves a time behind the last commit only where the archive proves it', async () => {
  const life = new Life();
  life.backup();
  const commit = life.commit();
  life.checkpoint();
  const known = life.now;
  life.switch();
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer);
  const { stop } = await plan(repository, life.recordsOfBackups(), {
    kind: 'time',
    time: known,
    inclusive: true,
  });
  assert.equal(stop.how, 'resolved');
  assert.equal(stop.lsn, nth(life.records, -1).endLsn);
  assert.equal(stop.lastCommit?.xid, commit.xid);
  await assert.rejects(
    plan(repository, life.recordsOfBackups(), { kind: 'time', time: known + 1n, inclusive: true }),
    (error: Error & { code?: string; hint?: string }) =>
      error.code === 'target-unreachable' && /--target latest/.test(error.hint ?? ''),
  );
});

test('planRestore() for an lsn at the very end of the archive stops behind the last record', async () => {
  const { life, repository } = await story();
  const { endLsn, lsn } = nth(life.records, -1);
  const { stop } = await plan(repository, life.recordsOfBackups(), {
    kind: 'lsn',
    lsn: endLsn,
    inclusive: true,
  });
  assert.equal(stop.lsn, endLsn);
  assert.deepEqual(stop.setting, { kind: 'lsn', lsn, inclusive: true });
  const beyond = lsnOf(endLsn + 8n);
  await assert.rejects(
    plan(repository, life.recordsOfBackups(), { kind: 'lsn', lsn: beyond, inclusive: true }),
    {
      code: 'target-unreachable',
    },
  );
});

test('planRestore() refuses a gap, and what lies behind it, from every backup before it', async () => {
  const { life, commits, more } = await story();
  const firstStop = segmentOfLsn(nth(life.backups, 0).stop, SEGMENT_SIZE);
  const gap = firstStop + 2n;
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer, { without: [gap] });
  const backups = life.recordsOfBackups();
  const missing = walSegmentName(timelineOf(1), gap, SEGMENT_SIZE);
  const behind = commits.find(({ lsn }) => segmentOfLsn(lsn, SEGMENT_SIZE) > gap);
  await assert.rejects(
    plan(repository, backups, { kind: 'xid', xid: behind?.xid ?? 0, inclusive: true }),
    (error: Error & { code?: string }) =>
      error.code === 'target-unreachable' && error.message.includes(missing),
  );
  await assert.rejects(
    plan(repository, backups, { kind: 'time', time: behind?.time ?? 0n, inclusive: true }),
    {
      code: 'target-unreachable',
    },
  );
  // Behind the second backup all is well, and so is latest.
  const later = await plan(repository, backups, { kind: 'xid', xid: nth(more, 5).xid ?? 0, inclusive: true });
  assert.equal(later.backup.id, 'b1');
  const latest = await plan(repository, backups, { kind: 'latest' });
  assert.equal(latest.backup.id, 'b1');
  // With the first backup alone, latest would end before WAL that is there.
  await assert.rejects(plan(repository, backups.slice(0, 1), { kind: 'latest' }), { code: 'wal-gap' });
});

test('planRestore() treats a segment without its data, cut short, or with a damaged header as missing', async () => {
  for (const damage of ['gone', 'short', 'header', 'flipped'] as const) {
    const { life, repository, more } = await story();
    const victim = walSegmentName(timelineOf(1), segmentOfLsn(nth(more, 10).lsn, SEGMENT_SIZE), SEGMENT_SIZE);
    const header = await readWalHeader(repository, IDENTITY, victim);
    assert(header !== undefined);
    const key = damage === 'header' ? walHeaderKey(IDENTITY, victim) : header.stored.key;
    const chunks: Buffer[] = [];
    for await (const chunk of repository.storage.get(key)) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    if (damage === 'gone') await repository.storage.delete(key);
    else if (damage === 'short') await repository.storage.put(key, bytes.subarray(0, bytes.length - 1));
    else {
      const at = Math.floor(bytes.length / 2);
      bytes[at] = (bytes[at] ?? 0) ^ 1;
      await repository.storage.put(key, bytes);
    }
    const wanted = nth(more, 10);
    await assert.rejects(
      plan(repository, life.recordsOfBackups(), { kind: 'xid', xid: wanted.xid ?? 0, inclusive: true }),
      { code: 'target-unreachable' },
      damage,
    );
    if (damage !== 'flipped') {
      await assert.rejects(
        plan(repository, life.recordsOfBackups(), { kind: 'latest' }),
        { code: 'wal-gap' },
        damage,
      );
    }
  }
});

test('planRestore() for latest fails where WAL that this host stored is no longer there', async () => {
  const { life, repository } = await story();
  const end = nth(life.records, -1).endLsn;
  const mark = (endLsn: Lsn) => ({
    timeline: 1,
    name: 'x',
    endLsn,
    lastCommitTime: null,
    repositories: ['local'],
  });
  const backups = life.recordsOfBackups();
  await assert.rejects(
    plan(repository, backups, { kind: 'latest' }, { highWater: mark(lsnOf(end + BigInt(SEGMENT_SIZE))) }),
    { code: 'wal-gap' },
  );
  await plan(repository, backups, { kind: 'latest' }, { highWater: mark(end) });
  await plan(
    repository,
    backups,
    { kind: 'lsn', lsn: end, inclusive: true },
    { highWater: mark(lsnOf(end + 8n)) },
  );
});

test('planRestore() refuses an unknown backup, transaction, restore point and timeline', async () => {
  const { life, repository } = await story();
  const backups = life.recordsOfBackups();
  await assert.rejects(plan(repository, backups, { kind: 'latest' }, { backupId: 'b9' }), {
    code: 'backup-unknown',
  });
  await assert.rejects(plan(repository, backups, { kind: 'xid', xid: 5, inclusive: true }), {
    code: 'target-unreachable',
  });
  await assert.rejects(plan(repository, backups, { kind: 'name', name: 'nowhere' }), {
    code: 'target-unreachable',
  });
  await assert.rejects(plan(repository, backups, { kind: 'latest' }, { timeline: timelineOf(7) }), {
    code: 'target-unreachable',
  });
  await assert.rejects(plan(repository, [], { kind: 'latest' }), { code: 'target-unreachable' });
});

test('planRestore() reaches a restore point and the end of a backup', async () => {
  const { life, repository } = await story();
  const named = await plan(repository, life.recordsOfBackups(), { kind: 'name', name: 'here' });
  assert.equal(named.backup.id, 'b0');
  assert.equal(named.stop.lsn, life.records.find(({ name }) => name === 'here')?.endLsn);
  const immediate = await plan(repository, life.recordsOfBackups(), { kind: 'immediate' });
  assert.equal(immediate.backup.id, 'b1');
  assert.equal(immediate.stop.lsn, nth(life.backups, 1).stop);
});

test('planRestore() refuses a time in the second in which the only backup began, and says why', async () => {
  const life = new Life();
  life.now += 300_000n;
  const { checkpointTime } = life.backup();
  life.now = checkpointTime + 500_000n;
  life.commit();
  life.switch();
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer);
  const time = checkpointTime + 900_000n;
  await assert.rejects(
    plan(repository, life.recordsOfBackups(), { kind: 'time', time, inclusive: true }),
    (error: Error & { code?: string }) =>
      error.code === 'target-unreachable' && error.message.includes('in the very second'),
  );
  const later = { kind: 'time', time: checkpointTime + 1_000_000n, inclusive: true } as const;
  assert.equal((await plan(repository, life.recordsOfBackups(), later)).backup.id, 'b0');
});
