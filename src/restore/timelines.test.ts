import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import { type TimelineHistory, type TimelineId, timelineOf } from '../postgres/timeline.ts';
import { branchTips, describePath, isOnPath, partAt, timelineOfSegment, timelineTree } from './timelines.ts';

const SEGMENT = 1024 * 1024;
const t = timelineOf;

function history(timeline: number, ...entries: [number, bigint][]): TimelineHistory {
  return {
    timeline: t(timeline),
    entries: entries.map(([parent, end]) => ({ timeline: t(parent), end: lsnOf(end), reason: 'test' })),
  };
}

/** A random fork tree: timeline n+2 forks off a random earlier one, somewhere after that one's begin. */
const forks = fc.array(fc.record({ parent: fc.nat(), distance: fc.bigInt({ min: 1n, max: 5_000_000n }) }), {
  minLength: 1,
  maxLength: 8,
});

function grow(choices: { parent: number; distance: bigint }[]): {
  histories: TimelineHistory[];
  parents: Map<number, { parent: number; at: bigint }>;
} {
  const parents = new Map<number, { parent: number; at: bigint }>();
  const histories: TimelineHistory[] = [];
  choices.forEach(({ parent: pick, distance }, index) => {
    const child = index + 2;
    const parent = 1 + (pick % (index + 1));
    const at = (parents.get(parent)?.at ?? 0n) + distance;
    parents.set(child, { parent, at });
    const entries: [number, bigint][] = [];
    for (let one = child; ;) {
      const up = parents.get(one);
      if (up === undefined) break;
      entries.unshift([up.parent, up.at]);
      one = up.parent;
    }
    histories.push(history(child, ...entries));
  });
  return { histories, parents };
}

test('timelineTree() finds the way to every timeline of a random fork tree', () => {
  fc.assert(
    fc.property(forks, fc.bigInt({ min: 0n, max: 40_000_000n }), (choices, at) => {
      const { histories, parents } = grow(choices);
      const tree = timelineTree(histories);
      for (const timeline of tree.timelines) {
        const path = tree.path(timeline);
        assert.equal(path[0]?.timeline, 1);
        assert.equal(path.at(-1)?.timeline, timeline);
        assert.equal(path.at(-1)?.end, undefined);
        path.forEach((part, index) => {
          const next = path[index + 1];
          if (next === undefined) return;
          assert.deepEqual(parents.get(next.timeline), { parent: part.timeline, at: part.end });
          assert.equal(next.begin, part.end);
        });
        // Oracle: climb from the tip until the position is no longer before the fork.
        let expected: number = timeline;
        for (let up = parents.get(expected); up !== undefined && at < up.at; up = parents.get(expected)) {
          expected = up.parent;
        }
        assert.equal(partAt(path, lsnOf(at)).timeline, expected);
      }
    }),
  );
});

test('timelineOfSegment() takes the youngest timeline that begins in or before the segment', () => {
  fc.assert(
    fc.property(forks, fc.bigInt({ min: 0n, max: 40n }), (choices, segment) => {
      const tree = timelineTree(grow(choices).histories);
      for (const timeline of tree.timelines) {
        const path = tree.path(timeline);
        const lastByte = lsnOf((segment + 1n) * BigInt(SEGMENT) - 1n);
        assert.equal(timelineOfSegment(path, segment, SEGMENT), partAt(path, lastByte).timeline);
      }
    }),
  );
});

test('branchTips() names the leaves when nothing goes on after a fork', () => {
  fc.assert(
    fc.property(forks, (choices) => {
      const { histories, parents } = grow(choices);
      const tree = timelineTree(histories);
      const forked = new Set([...parents.values()].map(({ parent }) => parent));
      assert.deepEqual(
        branchTips(tree, () => undefined),
        tree.timelines.filter((timeline) => !forked.has(timeline)),
      );
    }),
  );
});

test('branchTips() keeps a timeline that went on after another forked off', () => {
  const tree = timelineTree([history(2, [1, 0x500n])], [t(1)]);
  const reach = (end: bigint) => (timeline: TimelineId) => (timeline === 1 ? lsnOf(end) : undefined);
  assert.deepEqual(branchTips(tree, reach(0x500n)), [2]);
  assert.deepEqual(branchTips(tree, reach(0x501n)), [1, 2]);
});

test('isOnPath() accepts a backup up to the switch point and not after it', () => {
  const path = timelineTree([history(3, [1, 0x500n])]).path(t(3));
  const at = (timeline: number, lsn: bigint): boolean => isOnPath(path, t(timeline), lsnOf(lsn));
  assert.equal(at(1, 0x4ffn), true);
  assert.equal(at(1, 0x500n), true);
  assert.equal(at(1, 0x501n), false);
  assert.equal(at(3, 0x600n), true);
  assert.equal(at(3, 0x500n), false);
  assert.equal(at(2, 0x400n), false);
});

test('timelineTree() places a timeline that was recovered along another to a point before that one', () => {
  const tree = timelineTree([history(2, [1, 0x500n]), history(3, [1, 0x500n], [2, 0x400n])]);
  assert.deepEqual(tree.path(t(3)), [
    { timeline: 1, begin: 0n, end: 0x400n },
    { timeline: 3, begin: 0x400n, end: undefined },
  ]);
  assert.deepEqual(
    tree.children(t(1)).map(({ timeline }) => timeline),
    [2, 3],
  );
});

test('timelineTree() refuses histories that contradict one another', () => {
  assert.throws(() => timelineTree([history(2, [1, 0x500n]), history(3, [1, 0x600n], [2, 0x700n])]), {
    code: 'wal-conflict',
  });
});

test('timelineTree() leads nowhere without a history file', () => {
  const tree = timelineTree([], [t(1), t(10)]);
  assert.throws(() => tree.path(t(10)), /0000000A\.history/);
  assert.throws(() => tree.path(t(4)), { code: 'target-unreachable' });
  assert.deepEqual(tree.path(t(1)), [{ timeline: 1, begin: 0n as Lsn, end: undefined }]);
});

test('describePath() names switch points', () => {
  assert.equal(describePath(timelineTree([history(2, [1, 0x5000060n])]).path(t(2))), '1 → 2 at 0/5000060');
});
