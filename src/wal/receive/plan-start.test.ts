import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';

import { lsnOf } from '../../postgres/lsn.ts';
import { type TimelineAncestor, type TimelineId, timelineOf } from '../../postgres/timeline.ts';
import { planStart, type StoredReach } from './plan-start.ts';

const SIZE = 2 ** 20;

/** One timeline of a random tree: where it leaves its parent. */
interface Branch {
  parent: number;
  fork: number;
  /** In the middle of the segment, or at its very beginning. */
  within: number;
}

/** A receiver of a server on `timeline` stored everything up to `reached` and then lived no longer. */
interface Visit {
  timeline: number;
  reached: number;
  /** Whether it left a tail of the segment behind. */
  tail: boolean;
}

const arbitrary = fc.record({
  branches: fc.array(
    fc.record({ parent: fc.nat(), fork: fc.integer({ min: 0, max: 12 }), within: fc.constantFrom(0, 8192) }),
    { maxLength: 5 },
  ),
  repositories: fc.array(
    fc.array(
      fc.record({ timeline: fc.nat(), reached: fc.integer({ min: 0, max: 16 }), tail: fc.boolean() }),
      { maxLength: 3 },
    ),
    { minLength: 1, maxLength: 3 },
  ),
  server: fc.nat(),
});

/** Ancestors of a timeline, oldest first, itself last, each with the segment from which on its own files are needed. */
function pathTo(branches: readonly Branch[], timeline: number): { timeline: number; from: number }[] {
  if (timeline === 1) return [{ timeline: 1, from: 0 }];
  const { parent, fork } = branches[timeline - 2] ?? { parent: 1, fork: 0 };
  return [...pathTo(branches, parent), { timeline, from: fork }];
}

/** The file that a restore along this path needs for a segment. */
function neededAt(path: readonly { timeline: number; from: number }[], segment: number): string {
  const youngest = path.findLast(({ from }) => from <= segment);
  return `${youngest?.timeline}/${segment}`;
}

void describe('planStart()', () => {
  void it('planStart() begins at the first file of the path that any repository lacks', () => {
    let resumed = 0;
    let outdated = 0;
    fc.assert(
      fc.property(arbitrary, (world) => {
        const branches: Branch[] = [];
        for (const { parent, fork, within } of world.branches) {
          const ancestor = 1 + (parent % (branches.length + 1));
          // A child begins where its parent has begun already.
          const earliest = ancestor === 1 ? 0 : (branches[ancestor - 2]?.fork ?? 0);
          branches.push({ parent: ancestor, fork: Math.max(fork, earliest), within });
        }
        const timelines = branches.length + 1;
        const server = 1 + (world.server % timelines);
        const path = pathTo(branches, server);
        const stored = world.repositories.map((visits) => contentOf(branches, visits, timelines));
        const plan = planStart({
          timeline: timelineOf(server),
          history:
            server === 1 ? undefined : { timeline: timelineOf(server), entries: entriesOf(branches, path) },
          reaches: stored.map(reachOf),
          segmentSize: SIZE,
        });
        const newest = Math.max(
          0,
          ...stored.flatMap(({ files, tails }) => [...files, ...tails].map(timelineOfFile)),
        );
        if (newest > server) {
          outdated += 1;
          assert.deepEqual(plan.kind, 'outdated');
          return;
        }
        const lacking = stored.flatMap(({ files, tails }) => {
          const own = [...files, ...tails].filter((file) =>
            path.some((one) => one.timeline === timelineOfFile(file)),
          );
          if (own.length === 0) return [];
          let segment = 0;
          while (files.has(neededAt(path, segment))) segment += 1;
          return [segment];
        });
        if (lacking.length === 0) {
          assert.equal(plan.kind, 'begin');
          return;
        }
        resumed += 1;
        assert.ok(plan.kind === 'resume');
        const first = Math.min(...lacking);
        assert.equal(`${plan.at.timeline}/${plan.at.segment}`, neededAt(path, first));
      }),
      { numRuns: 3000 * Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1) },
    );
    assert.ok(resumed > 500 && outdated > 100, `${resumed} ${outdated}`);
  });

  void it('planStart() of repositories that hold nothing leaves it to the slot', () => {
    const nothing: StoredReach = { next: new Map() };
    for (const reaches of [[], [nothing], [nothing, nothing]]) {
      assert.deepEqual(
        planStart({ timeline: timelineOf(1), history: undefined, reaches, segmentSize: SIZE }),
        { kind: 'begin' },
      );
    }
  });
});

interface Content {
  files: Set<string>;
  tails: Set<string>;
}

/** What receivers leave that lived one after the other, none of a timeline older than what was there. */
function contentOf(branches: readonly Branch[], visits: readonly Visit[], timelines: number): Content {
  const files = new Set<string>();
  const tails = new Set<string>();
  let line = 1;
  for (const visit of visits) {
    const timeline = 1 + (visit.timeline % timelines);
    const path = pathTo(branches, timeline);
    // A server that does not come from what is stored is refused.
    if (timeline < line || !(path.some((one) => one.timeline === line) || files.size + tails.size === 0))
      continue;
    line = timeline;
    for (let segment = 0; segment < visit.reached; segment += 1) files.add(neededAt(path, segment));
    if (visit.tail) tails.add(neededAt(path, visit.reached));
    for (const file of files) tails.delete(file);
  }
  return { files, tails };
}

function reachOf({ files, tails }: Content): StoredReach {
  const next = new Map<TimelineId, bigint>();
  for (const file of files) {
    const [timeline, segment] = [timelineOf(timelineOfFile(file)), segmentOfFile(file) + 1n];
    if (segment > (next.get(timeline) ?? 0n)) next.set(timeline, segment);
  }
  for (const file of tails) {
    const [timeline, segment] = [timelineOf(timelineOfFile(file)), segmentOfFile(file)];
    if (segment > (next.get(timeline) ?? 0n)) next.set(timeline, segment);
    else if (!next.has(timeline)) next.set(timeline, segment);
  }
  return { next };
}

function entriesOf(branches: readonly Branch[], path: readonly { timeline: number }[]): TimelineAncestor[] {
  return path.slice(1).map(({ timeline }) => {
    const { parent = 1, fork = 0, within = 0 } = branches[timeline - 2] ?? {};
    return { timeline: timelineOf(parent), end: lsnOf(BigInt(fork * SIZE + within)), reason: '' };
  });
}

function timelineOfFile(file: string): number {
  return Number(file.split('/')[0]);
}

function segmentOfFile(file: string): bigint {
  return BigInt(file.split('/')[1] ?? 0);
}
