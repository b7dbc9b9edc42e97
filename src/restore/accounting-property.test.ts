import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import * as fc from 'fast-check';

import {
  Model,
  type World,
  type WorldTimeline,
  createWorld,
  hex,
  recordsOf,
  storeWorld,
} from '../../test/accounting-lab.ts';
import { IDENTITY, archiveOf, createRestoreLab } from '../../test/restore-lab.ts';
import { SEGMENT_SIZE } from '../../test/wal-lab.ts';
import { type ArchiveAccount, accountArchive } from './account-archive.ts';
import { type DigestCache, createDigestCache } from './digest-cache.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const SIZE = BigInt(SEGMENT_SIZE);
const NOW = () => new Date('2026-01-01T00:00:00Z');

test('accountArchive() agrees with a walk over every segment of random archives with holes', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1 }), async (seed) => {
      const world = createWorld(seed);
      const repository = await createRestoreLab();
      await storeWorld(repository, world, 'after');
      const account = await accountOf(world, repository);
      compare(account, new Model(world, false));
    }),
    { numRuns: Math.ceil(600 * SCALE) },
  );
});

test('accountArchive() tells what was deleted by what it remembers', async () => {
  const state = await mkdtemp(join(tmpdir(), 'hf-account-'));
  try {
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1 }), async (seed) => {
        const world = createWorld(seed);
        const repository = { ...(await createRestoreLab()), id: `r${seed}` };
        const cache = createDigestCache(state, repository, IDENTITY);
        await storeWorld(repository, world, 'before');
        await accountOf(world, repository, cache);
        await storeWorld(repository, world, 'after');
        // Nothing that a header says of damage at the source was there before: it is another segment's life.
        const changed = [...world.timelines.values()].some((one) =>
          [...one.segments.values()].some(({ fate }) =>
            ['minimal', 'damaged', 'header-corrupt'].includes(fate),
          ),
        );
        if (changed) return;
        compare(await accountOf(world, repository, cache), new Model(world, true));
      }),
      { numRuns: Math.ceil(200 * SCALE) },
    );
  } finally {
    await rm(state, { recursive: true, force: true });
  }
});

async function accountOf(
  world: World,
  repository: Awaited<ReturnType<typeof createRestoreLab>>,
  cache?: DigestCache,
): Promise<ArchiveAccount> {
  const records = recordsOf(world);
  const archive = await archiveOf(repository, records);
  return await accountArchive(archive, records, {
    highWater: undefined,
    now: NOW,
    ...(cache && { cache }),
  });
}

function compare({ account }: ArchiveAccount, model: Model): void {
  const told = model.describe();
  const { world } = model;
  const points = pointsOf(world);
  const seen = new Map<number, (lsn: bigint) => boolean>();
  for (const { tip, path, ranges } of account.branches) {
    const way = model.path(tip);
    assert(way !== undefined, `timeline ${tip} has no way\n${told}`);
    assert.deepEqual(
      path.map(({ timeline }) => timeline),
      way.map(({ id }) => id),
    );
    const inRange = (lsn: bigint): boolean =>
      ranges.some(({ backups, bound }) => backups[0].stop <= lsn && lsn <= bound);
    for (const lsn of points) {
      assert.equal(inRange(lsn), reachable(model, way, lsn), `branch ${tip} at ${hex(lsn)}\n${told}`);
    }
    for (const [at, part] of way.entries()) {
      const before = seen.get(part.id);
      const end = way[at + 1]?.begin;
      const here = (lsn: bigint): boolean =>
        lsn > part.begin && (end === undefined || lsn <= end) && inRange(lsn);
      seen.set(part.id, (lsn) => before?.(lsn) === true || here(lsn));
    }
  }
  for (const timeline of world.timelines.values()) {
    const way = model.path(timeline.id);
    const seenAs = account.timelines.find((one) => one.timeline === timeline.id);
    assert.equal(seenAs !== undefined, isKnown(model, timeline), `timeline ${timeline.id}\n${told}`);
    if (seenAs === undefined) continue;
    assert.equal(seenAs.orphan, way === undefined, `timeline ${timeline.id}\n${told}`);
    if (way === undefined) continue;
    // Nothing that can be restored is left out by the choice of branches.
    for (const lsn of points) {
      if (lsn <= timeline.begin || lsn > timeline.end || !reachable(model, way, lsn)) continue;
      assert(seen.get(timeline.id)?.(lsn), `timeline ${timeline.id} at ${hex(lsn)} is left out\n${told}`);
    }
  }
  compareGaps(account, model, told);
  comparePresent(account, model, told);
}

/** Whether anything in the archive tells that there is such a timeline. */
function isKnown(model: Model, timeline: WorldTimeline): boolean {
  const told = (one: WorldTimeline): boolean =>
    one.id > 1 && !one.historyMissing && (model.path(one.id) ?? []).some(({ id }) => id === timeline.id);
  return model.knownEnd(timeline) !== undefined || [...model.world.timelines.values()].some(told);
}

function reachable(model: Model, way: readonly WorldTimeline[], lsn: bigint): boolean {
  return model.world.backups.some((backup) => {
    const end = model.reach(way, backup);
    return end !== undefined && backup.stop <= lsn && lsn <= end;
  });
}

function compareGaps(account: ArchiveAccount['account'], model: Model, told: string): void {
  for (const timeline of model.world.timelines.values()) {
    const found = new Map<bigint, string>();
    const broken = new Set<bigint>();
    for (const { first, last, cause, timeline: id, fromLsn, toLsn } of account.gaps) {
      if (id !== timeline.id) continue;
      assert(fromLsn < toLsn, `${hex(fromLsn)} to ${hex(toLsn)}\n${told}`);
      for (let segment = first; segment <= last; segment += 1n) {
        if (model.whole(timeline, segment) === undefined) found.set(segment, cause);
        else {
          const { fate, at } = timeline.segments.get(segment) ?? {};
          assert.equal(cause, fate === 'minimal' ? 'wal-level-minimal' : fate, told);
          assert.equal(fromLsn, at, told);
          broken.add(segment);
        }
      }
    }
    const expected = model.missing(timeline);
    const isTip = account.branches.some(({ tip }) => tip === timeline.id);
    for (const [segment, { fate, at }] of timeline.segments) {
      const isBroken = fate === 'minimal' || fate === 'damaged';
      const wanted = isBroken && model.isWantedBehind(timeline, segment, at, isTip);
      assert.equal(broken.has(segment), wanted, `break in ${segment} of ${timeline.id}\n${told}`);
    }
    assert.deepEqual(new Set(found.keys()), new Set(expected.keys()), `gaps of ${timeline.id}\n${told}`);
    for (const [segment, cause] of expected) {
      const why = found.get(segment);
      // Behind a minimal segment, what never came is put down to that.
      if (cause === 'never-archived' && why === 'wal-level-minimal') continue;
      assert.equal(why, cause, `segment ${segment} of ${timeline.id}\n${told}`);
    }
  }
}

function comparePresent({ present, gaps }: ArchiveAccount['account'], model: Model, told: string): void {
  const newest = [...model.world.timelines.values()].findLast((one) => isKnown(model, one));
  assert.equal(present?.timeline, newest?.id, told);
  if (newest === undefined || present === undefined) return;
  const way = model.path(newest.id);
  if (way === undefined) {
    assert.equal(present.state, 'orphan', told);
    return;
  }
  const reaches = model.world.backups.flatMap((backup) => model.reach(way, backup) ?? []);
  const wanted = model.knownEnd(newest) ?? (newest.begin / SIZE) * SIZE;
  const [furthest] = reaches.sort((a, b) => (a > b ? -1 : 1));
  const state = furthest === undefined ? 'no-backup' : furthest >= wanted ? 'reachable' : 'gap';
  const broken = furthest !== undefined && isBreak(way, furthest);
  if (broken) assert.equal(present.state, 'gap', told);
  else assert.equal(present.state, state, told);
  if (present.state === 'gap')
    assert(
      gaps.some(({ blocking }) => blocking),
      `nothing is blamed\n${told}`,
    );
  else if (present.state === 'reachable') assert(!gaps.some(({ blocking }) => blocking), told);
}

function isBreak(way: readonly WorldTimeline[], lsn: bigint): boolean {
  return way.some((one) =>
    [...one.segments.values()].some(
      ({ fate, at }) => at === lsn && (fate === 'minimal' || fate === 'damaged'),
    ),
  );
}

/** Every place where an answer may change, and those beside it. */
function pointsOf(world: World): bigint[] {
  const points = new Set<bigint>();
  for (const { begin, end, segments, tail } of world.timelines.values()) {
    const own = [begin, end, tail?.end ?? 0n];
    for (const [segment, { at }] of segments) own.push(segment * SIZE, segment * SIZE + SIZE / 2n, at);
    for (const lsn of own) for (const near of [lsn - 1n, lsn, lsn + 1n]) points.add(near);
  }
  for (const { start, stop } of world.backups) {
    for (const lsn of [start, stop - 1n, stop, stop + 1n]) points.add(lsn);
  }
  return [...points].filter((lsn) => lsn > 0n);
}
