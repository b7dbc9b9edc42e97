import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { type World, recordsOf, storeWorld } from '../../test/accounting-lab.ts';
import { testRepository, withIdentity } from '../../test/harness/backup.ts';
import { IDENTITY, archiveOf, createRestoreLab, storeSegments } from '../../test/restore-lab.ts';
import { Life, plan } from '../../test/restore-life.ts';
import { SEGMENT_SIZE, openTestRepository } from '../../test/wal-lab.ts';
import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { walSegmentName } from '../postgres/wal-segment.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { walDataPrefix, walHeaderKey } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { storeGapNote } from '../repository/wal-gap-note.ts';
import { type AccountOptions, type ArchiveAccount, accountArchive } from './account-archive.ts';
import { filledBy, judgePresent, unionRanges } from './account-union.ts';
import { createDigestCache } from './digest-cache.ts';

const SIZE = BigInt(SEGMENT_SIZE);
const ONE = timelineOf(1);
const NOW = new Date('2026-01-01T00:00:00Z');

/** Segments 2 to 9 of timeline 1, and a backup in segment 3. */
function world(): World {
  const segments = new Map(
    Array.from({ length: 8 }, (_, n) => [BigInt(n + 2), { fate: 'whole' as const, at: 0n }]),
  );
  const one = {
    id: 1,
    parent: undefined,
    begin: 0n,
    end: 10n * SIZE,
    segments,
    tail: undefined,
    historyMissing: false,
  };
  return {
    timelines: new Map([[1, one]]),
    backups: [{ id: 'b0', timeline: 1, start: 3n * SIZE + 64n, stop: 3n * SIZE + 4096n }],
  };
}

async function stored(name = 'local'): Promise<Repository> {
  const repository = await openTestRepository(undefined, name);
  await storeWorld(repository, world(), 'before');
  return repository;
}

async function account(
  repository: Repository,
  more: Partial<AccountOptions> = {},
  records: BackupRecord[] = recordsOf(world()),
): Promise<ArchiveAccount> {
  const archive = await archiveOf(repository, records);
  return await accountArchive(archive, records, { highWater: undefined, now: () => NOW, ...more });
}

function told({ account: { gaps, present } }: ArchiveAccount): unknown[] {
  return [present?.state, ...gaps.map(({ first, last, cause, blocking }) => [first, last, cause, blocking])];
}

async function deleteHeader(repository: Repository, segment: bigint): Promise<void> {
  await repository.storage.delete(walHeaderKey(IDENTITY, walSegmentName(ONE, segment, SEGMENT_SIZE)));
}

async function deleteData(repository: Repository, segment: bigint): Promise<void> {
  const name = walSegmentName(ONE, segment, SEGMENT_SIZE);
  for await (const { key } of repository.storage.list(walDataPrefix(IDENTITY))) {
    if (key.includes(name)) await repository.storage.delete(key);
  }
}

test('accountArchive() takes data without a header at the live end for a push that is going on', async () => {
  const repository = await stored();
  await deleteHeader(repository, 9n);
  assert.deepEqual(told(await account(repository)), ['reachable']);
  await deleteHeader(repository, 7n);
  assert.deepEqual(told(await account(repository)), ['gap', [7n, 7n, 'deleted', true]]);
});

test('accountArchive() puts a gap down to what the receiver noted, also where nothing came behind it', async () => {
  const repository = await stored();
  const note = { timeline: ONE, detail: 'the slot was invalidated', noticedAt: NOW.toISOString(), host: 'h' };
  const at = (segment: bigint): Lsn => lsnOf(segment * SIZE);
  await deleteHeader(repository, 6n);
  await deleteData(repository, 6n);
  await storeGapNote(repository, IDENTITY, { ...note, fromLsn: at(6n), toLsn: at(7n), cause: 'slot-lost' });
  assert.deepEqual(told(await account(repository)), ['gap', [6n, 6n, 'slot-lost', true]]);
  await storeGapNote(repository, IDENTITY, {
    ...note,
    fromLsn: at(10n),
    toLsn: at(12n),
    cause: 'removed-by-server',
  });
  assert.deepEqual(told(await account(repository)), [
    'gap',
    [6n, 6n, 'slot-lost', true],
    [10n, 11n, 'removed-by-server', true],
  ]);
});

test('accountArchive() misses what this host saw confirmed in this repository, and in no other', async () => {
  const repository = await stored();
  const highWater = {
    timeline: 1,
    name: walSegmentName(ONE, 11n, SEGMENT_SIZE),
    endLsn: lsnOf(12n * SIZE),
    lastCommitTime: null,
    repositories: ['local'],
  };
  assert.deepEqual(told(await account(repository, { highWater })), ['gap', [10n, 11n, 'deleted', true]]);
  const elsewhere = { ...highWater, repositories: ['other'] };
  assert.deepEqual(told(await account(repository, { highWater: elsewhere })), ['reachable']);
});

test('accountArchive() and planRestore() end at the same record where wal_level became minimal', async () => {
  const life = new Life();
  life.backup();
  life.commit();
  life.fill(100_000);
  const last = life.commit();
  life.writer.parameterChange(0);
  life.commit();
  life.switch();
  life.writer.parameterChange(1);
  life.backup();
  life.commit();
  life.switch();
  const repository = await createRestoreLab();
  await storeSegments(repository, life.writer);
  const records = life.recordsOfBackups();
  const found = await account(repository, {}, records);
  const [before, after] = found.account.branches[0]?.ranges ?? [];
  assert.deepEqual(
    [before?.backups[0].record.id, after?.backups[0].record.id, before?.cut?.kind],
    ['b0', 'b1', 'wal-level-minimal'],
  );
  assert(before !== undefined);
  // The record that says so begins where the last one ends, or behind a page header.
  assert(before.bound - last.endLsn <= 40n, `${formatLsn(before.bound)} ${formatLsn(last.endLsn)}`);
  const to = (lsn: Lsn) => plan(repository, records, { kind: 'lsn', lsn, inclusive: true });
  assert.equal((await to(last.lsn)).stop.lsn, last.endLsn);
  await assert.rejects(to(lsnOf(before.bound + 1n)), { code: 'target-unreachable' });
  assert.equal(found.account.present?.state, 'reachable');
  assert.deepEqual(
    found.account.gaps.map(({ cause, blocking }) => [cause, blocking]),
    [['wal-level-minimal', false]],
  );
});

test('accountArchive() reads each header once a day, and again where anything is in doubt', async () => {
  const state = await mkdtemp(join(tmpdir(), 'hf-digests-'));
  try {
    const repository = await stored();
    const cache = createDigestCache(state, repository, IDENTITY);
    const reads = async (now = NOW): Promise<number> =>
      (await account(repository, { cache, now: () => now })).cost.headersRead;
    assert.equal(await reads(), 8);
    assert.equal(await reads(), 0);
    assert.equal(await reads(new Date(NOW.getTime() + 25 * 3_600_000)), 8);
    // A clock that was set back makes nothing believable.
    assert.equal(await reads(), 8);
    await deleteData(repository, 5n);
    assert.equal(await reads(), 1);
    const directory = join(state, 'wal', 'headers');
    for (const folder of await readdir(directory)) {
      for (const file of await readdir(join(directory, folder))) {
        await writeFile(join(directory, folder, file), '{"format":1}');
      }
    }
    assert.equal(await reads(), 8);
  } finally {
    await rm(state, { recursive: true, force: true });
  }
});

test('judgePresent() and filledBy() see what another repository makes good', async () => {
  const whole = await account(await stored('whole'));
  const broken = await stored('broken');
  await deleteHeader(broken, 6n);
  await deleteData(broken, 6n);
  const holed = await account(broken);
  const [gap] = holed.account.gaps;
  assert(gap !== undefined);
  assert.deepEqual(filledBy(gap, holed, [whole, holed]), ['whole']);
  assert.deepEqual(filledBy(gap, holed, [holed]), []);
  assert.equal(judgePresent([holed])?.state, 'gap');
  const both = judgePresent([holed, whole]);
  assert.deepEqual([both?.state, both?.repositories], ['reachable', ['whole']]);
  const [range, ...more] = unionRanges([holed, whole]);
  assert.deepEqual(
    [range?.from, range?.to, range?.repositories.toSorted(), more.length],
    [3n * SIZE + 4096n, 10n * SIZE, ['broken', 'whole'], 0],
  );
  // One that is far behind does not stand for the present.
  const old = await stored('old');
  for (const segment of [6n, 7n, 8n, 9n]) {
    await deleteHeader(old, segment);
    await deleteData(old, segment);
  }
  const behind = await account(old);
  assert.equal(behind.account.present?.state, 'reachable');
  assert.equal(judgePresent([holed, behind])?.state, 'gap');
});

test('accountArchive() on a host without a key follows the backups of a timeline, and cries no wolf where there are none', async () => {
  const forked = world();
  const begin = 9n * SIZE + 4096n;
  const segments = new Map([9n, 10n].map((segment) => [segment, { fate: 'whole' as const, at: 0n }]));
  forked.timelines.set(2, {
    id: 2,
    parent: 1,
    begin,
    end: 11n * SIZE,
    segments,
    tail: undefined,
    historyMissing: false,
  });
  const repository = await testRepository({ seal: 'age-write-only' });
  await storeWorld(repository, forked, 'before');
  const stateOf = async (on: Repository): Promise<unknown[]> =>
    told(await account(on, {}, recordsOf(forked)));
  assert.deepEqual(await stateOf(repository), ['unknown']);
  assert.deepEqual(await stateOf(await withIdentity(repository)), ['reachable']);
  forked.backups.push({ id: 'b1', timeline: 2, start: 10n * SIZE + 64n, stop: 10n * SIZE + 4096n });
  assert.deepEqual(await stateOf(repository), ['reachable']);
  await deleteHeader(repository, 5n);
  assert.deepEqual(await stateOf(repository), ['reachable', [5n, 5n, 'deleted', false]]);
});
