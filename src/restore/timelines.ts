import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import {
  type TimelineAncestor,
  type TimelineHistory,
  type TimelineId,
  formatTimeline,
  historyFileName,
  timelineOf,
} from '../postgres/timeline.ts';

/** One stretch of a path: WAL of `timeline` from `begin` (inclusive) up to `end` (exclusive; undefined: as far as it goes). */
export interface PathPart {
  timeline: TimelineId;
  begin: Lsn;
  end: Lsn | undefined;
}

/** From LSN 0 on timeline 1 (or the oldest known) to the end of the last part's timeline; oldest first, never empty. */
export type TimelinePath = readonly PathPart[];

/** How the branches of one cluster descend from one another. */
export interface TimelineTree {
  /** Every known timeline, ascending. */
  readonly timelines: readonly TimelineId[];
  /** The way to a timeline. `target-unreachable` where it is unknown or its history file is missing. */
  path(timeline: TimelineId): TimelinePath;
  /** Children: timelines forked directly off this one, with the switch point. */
  children(timeline: TimelineId): readonly { timeline: TimelineId; at: Lsn }[];
}

/**
 * Builds the tree from history files and from the timelines that have any WAL or backup. A timeline other than 1 with no
 * history file is in the tree, but nothing leads to it. Histories that contradict each other throw `wal-conflict`.
 */
export function timelineTree(
  histories: readonly TimelineHistory[],
  known: Iterable<TimelineId> = [],
): TimelineTree {
  const byTimeline = new Map(histories.map((history) => [history.timeline, history] as const));
  const all = new Set<TimelineId>([...known, ...byTimeline.keys()]);
  const parents = new Map<TimelineId, { timeline: TimelineId; at: Lsn }>();
  const link = (child: TimelineId, parent: TimelineId, at: Lsn): void => {
    const other = parents.get(child);
    if (other !== undefined && (other.timeline !== parent || other.at !== at)) {
      throw new HoldfastError(
        'wal-conflict',
        `history files disagree: timeline ${child} forked off timeline ${other.timeline} at ${formatLsn(other.at)} and off timeline ${parent} at ${formatLsn(at)}`,
        { hint: 'two clusters have written into one archive: see "holdfast window"' },
      );
    }
    parents.set(child, { timeline: parent, at });
  };
  for (const { timeline, entries } of byTimeline.values()) {
    for (const entry of entries) all.add(entry.timeline);
    const ancestors = effectiveAncestors(entries);
    ancestors.forEach((entry, index) => {
      link(ancestors[index + 1]?.timeline ?? timeline, entry.timeline, entry.end);
    });
  }
  const timelines = [...all].sort((a, b) => a - b);
  return {
    timelines,
    children: (timeline) =>
      timelines.flatMap((child) => {
        const parent = parents.get(child);
        return parent?.timeline === timeline ? [{ timeline: child, at: parent.at }] : [];
      }),
    path: (timeline) => {
      if (!all.has(timeline)) {
        throw new HoldfastError('target-unreachable', `there is no timeline ${timeline} in the archive`, {
          hint: `known timelines: ${timelines.join(', ') || 'none'}`,
        });
      }
      return pathTo(timeline, parents);
    },
  };
}

/**
 * Recovery along timeline 2 that ends before 2 begins makes a timeline whose file still lists 2 as its parent, with an end
 * before its begin. What it really grew out of is the ancestor that holds that position.
 */
function effectiveAncestors(entries: readonly TimelineAncestor[]): TimelineAncestor[] {
  const kept: TimelineAncestor[] = [];
  for (const entry of entries) {
    let { timeline } = entry;
    for (let last = kept.at(-1); last !== undefined && last.end >= entry.end; last = kept.at(-1)) {
      timeline = last.timeline;
      kept.pop();
    }
    kept.push({ ...entry, timeline });
  }
  return kept;
}

function pathTo(
  timeline: TimelineId,
  parents: ReadonlyMap<TimelineId, { timeline: TimelineId; at: Lsn }>,
): TimelinePath {
  const parts: PathPart[] = [];
  let end: Lsn | undefined;
  for (let at = timeline; ;) {
    const parent = parents.get(at);
    if (parent === undefined && at !== 1) {
      throw new HoldfastError(
        'target-unreachable',
        `the history file ${historyFileName(at)} of timeline ${at} is not in the archive`,
        { hint: `push it: holdfast wal push pg_wal/${historyFileName(at)}`, context: { timeline: at } },
      );
    }
    parts.unshift({ timeline: at, begin: parent?.at ?? lsnOf(0n), end });
    if (parent === undefined) return parts;
    end = parent.at;
    at = parent.timeline;
  }
}

/** The part of a path that holds the byte at `lsn`; a switch point belongs to the child. */
export function partAt(path: TimelinePath, lsn: Lsn): PathPart {
  const part = path.find(({ end }) => end === undefined || lsn < end);
  if (part === undefined) throw new HoldfastError('assertion', `the path has no end at ${formatLsn(lsn)}`);
  return part;
}

/** Whether a position that was reached on `timeline` (the end of a record there, such as a backup's stop) lies on the path. */
export function isOnPath(path: TimelinePath, timeline: TimelineId, lsn: Lsn): boolean {
  const part = path.find((one) => one.timeline === timeline);
  return part !== undefined && lsn > part.begin && (part.end === undefined || lsn <= part.end);
}

/**
 * Which timeline's file recovery along this path reads for a segment: the youngest that begins in or before it, because
 * a new timeline's first segment repeats its parent's up to the switch point.
 */
export function timelineOfSegment(
  path: TimelinePath,
  segmentNumber: bigint,
  segmentSize: number,
): TimelineId {
  const size = BigInt(segmentSize);
  for (let index = path.length - 1; index > 0; index -= 1) {
    const part = path[index];
    if (part !== undefined && part.begin / size <= segmentNumber) return part.timeline;
  }
  return path[0]?.timeline ?? timelineOf(1);
}

/**
 * The branches a restore may follow: timelines nothing forks off, and timelines that went on after a child forked off
 * (`reach`: the end of what the archive holds of a timeline, undefined for nothing).
 */
export function branchTips(
  tree: TimelineTree,
  reach: (timeline: TimelineId) => Lsn | undefined,
): TimelineId[] {
  return tree.timelines.filter((timeline) => {
    const children = tree.children(timeline);
    const end = reach(timeline);
    return children.length === 0 || (end !== undefined && children.every(({ at }) => end > at));
  });
}

/** `1 → 2 at 0/5000060 → 4 at 0/70000A0`, for messages. */
export function describePath(path: TimelinePath): string {
  return path
    .map(({ timeline, begin }, index) => (index === 0 ? `${timeline}` : `${timeline} at ${formatLsn(begin)}`))
    .join(' → ');
}

/** `timeline 10 (0000000A)`: decimal as PostgreSQL's functions show it, and as in file names. */
export function describeTimeline(timeline: TimelineId): string {
  return timeline < 10 ? `timeline ${timeline}` : `timeline ${timeline} (${formatTimeline(timeline)})`;
}
