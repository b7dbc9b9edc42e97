import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { timelineOf } from '../postgres/timeline.ts';
import { walSegmentName } from '../postgres/wal-segment.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { openTestRepository, SEGMENT_SIZE, SYSTEM_IDENTIFIER } from '../../test/wal-lab.ts';
import { walDataKey, walHeaderKey } from './layout.ts';
import { hasWalData, listWal, walCoverage, type WalEntry } from './wal-listing.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

async function repositoryWith(...keys: string[]) {
  const objects = new Map(keys.map((key) => [key, Buffer.from('x')]));
  return openTestRepository(createMemoryStorage(objects));
}

const segment = (timeline: number, number: bigint): string =>
  walSegmentName(timelineOf(timeline), number, SEGMENT_SIZE);

test('listWal() gives every kind in order, timelines base 16, and passes over foreign keys', async () => {
  const names = [
    segment(1, 1n),
    `${segment(1, 2n)}.00000028.backup`,
    segment(1, 2n),
    segment(1, 4096n),
    `${segment(1, 4097n)}.partial`,
    segment(9, 4097n),
    '00000009.history',
    segment(10, 4098n),
    '0000000A.history',
  ];
  const repository = await repositoryWith(
    ...names.map((name) => walHeaderKey(identity, name)),
    `clusters/app/${SYSTEM_IDENTIFIER}/wal/00000001/00000000/notes.txt`,
    walHeaderKey(identity, segment(1, 9n)).replace('/00000000/', '/00000001/'),
    walHeaderKey({ ...identity, cluster: 'app2' }, segment(1, 5n)),
    walDataKey(identity, segment(1, 7n), 'f'.repeat(64), '00000000'),
  );
  const listed = await Array.fromAsync(listWal(repository, identity));
  assert.deepEqual(
    listed.map((entry) => entry.name),
    names,
  );
  assert.deepEqual(
    listed.map((entry) => entry.timeline),
    [1, 1, 1, 1, 1, 9, 9, 10, 10],
  );
});

test('listWal() from a segment includes what belongs to it and nothing before', async () => {
  const names = [segment(1, 1n), `${segment(1, 2n)}.00000028.backup`, segment(1, 2n), segment(1, 3n)];
  const repository = await repositoryWith(...names.map((name) => walHeaderKey(identity, name)));
  const options = { timeline: timelineOf(1), from: segment(1, 2n) };
  const listed = await Array.fromAsync(listWal(repository, identity, options));
  assert.deepEqual(
    listed.map((entry) => entry.name),
    names.slice(1),
  );
});

test('walCoverage() joins exactly what is consecutive on one timeline', async () => {
  const segments = fc.uniqueArray(
    fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 4090, max: 4110 })),
    { selector: ([timeline, number]) => `${timeline}/${number}`, maxLength: 40 },
  );
  await fc.assert(
    fc.asyncProperty(segments, async (present) => {
      present.sort(([ta, na], [tb, nb]) => ta - tb || na - nb);
      const entries = present.flatMap(([timeline, number]): WalEntry[] => {
        const name = segment(timeline, BigInt(number));
        const of = { timeline: timelineOf(timeline) };
        return [
          { ...of, name: `${name}.00000028.backup`, kind: 'backup-label' },
          { ...of, name, kind: 'segment' },
        ];
      });
      const ranges = await Array.fromAsync(walCoverage(entries, SEGMENT_SIZE));
      const expanded = ranges.flatMap((range) => {
        const first = present.findIndex(([t, n]) => segment(t, BigInt(n)) === range.first);
        return present.slice(first, first + range.count);
      });
      assert.deepEqual(expanded, present);
      for (const [index, range] of ranges.entries()) {
        const next = ranges[index + 1];
        const at = present.findIndex(([t, n]) => segment(t, BigInt(n)) === range.last);
        const [timeline = 0, number = 0] = present[at] ?? [];
        assert.ok(next?.first !== segment(timeline, BigInt(number + 1)), 'two ranges touch');
        assert.equal(range.timeline, timeline);
      }
    }),
    { numRuns: 200 },
  );
});

test('hasWalData() tells a segment from its partial and from its neighbours', async () => {
  const name = segment(1, 2n);
  const repository = await repositoryWith(
    walDataKey(identity, `${name}.partial`, 'a'.repeat(64), '1234abcd'),
  );
  assert.equal(await hasWalData(repository, identity, `${name}.partial`), true);
  assert.equal(await hasWalData(repository, identity, name), false);
  assert.equal(await hasWalData(repository, identity, segment(1, 3n)), false);
});
