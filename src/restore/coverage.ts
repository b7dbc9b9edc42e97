import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { type WalSegmentName, segmentOfLsn, segmentStart, walSegmentName } from '../postgres/wal-segment.ts';
import { type TimelinePath, timelineOfSegment } from './timelines.ts';

/** Consecutive segments of one timeline, both included. */
export interface SegmentRange {
  first: bigint;
  last: bigint;
}

/** Which segments of each timeline are there, in ascending ranges with holes between them. */
export type SegmentRanges = (timeline: TimelineId) => readonly SegmentRange[];

/** What there is of a segment that is not there whole. */
export interface SegmentTail {
  segment: bigint;
  /** Exclusive. At most the segment's end: then all of it is there. */
  end: Lsn;
}

/** The tails of each timeline, in the order of the segments, none of which is among the whole ones. */
export type SegmentTails = (timeline: TimelineId) => readonly SegmentTail[];

/** What an archive has. */
interface StoredWal {
  ranges: SegmentRanges;
  tails: SegmentTails;
  segmentSize: number;
}

export interface CoveragePiece extends SegmentRange {
  timeline: TimelineId;
}

/** What of a path is there without a hole, from one segment on. */
export interface Coverage {
  /** In the order of replay. Empty if the first segment is missing. */
  pieces: readonly CoveragePiece[];
  /**
   * Set where the last piece is one segment whose WAL counts only up to here: it is there as tails, or it is a parent's,
   * whose child's version is missing, and the switch point lies in it.
   */
  limit: Lsn | undefined;
  /** The last piece is one segment of which only the beginning is there, as tails. */
  endsInTail: boolean;
  /** The first segment that is not there; with `limit`, the one that is not there whole. */
  missing: { timeline: TimelineId; segment: bigint; name: WalSegmentName };
  /** The next segment of the path that is there after the missing one; undefined: the archive simply ends. */
  resumes: { timeline: TimelineId; segment: bigint; name: WalSegmentName } | undefined;
}

/** Follows a path from a segment as far as nothing is missing. Pure. */
export function coverageOf(
  path: TimelinePath,
  from: bigint,
  ranges: SegmentRanges,
  segmentSize: number,
  tails: SegmentTails = () => [],
): Coverage {
  const stored = { ranges, tails, segmentSize };
  const pieces: CoveragePiece[] = [];
  let segment = from;
  for (;;) {
    const timeline = timelineOfSegment(path, segment, segmentSize);
    const range = rangeWith(ranges(timeline), segment);
    if (range !== undefined) {
      const until = lastSegmentOf(path, timeline, segmentSize);
      const last = until !== undefined && until < range.last ? until : range.last;
      pieces.push({ timeline, first: segment, last });
      segment = last + 1n;
      continue;
    }
    const part = beginningOf(path, timeline, segment, stored);
    if (part !== undefined) pieces.push({ timeline: part.timeline, first: segment, last: segment });
    if (part?.end === segmentStart(segment + 1n, segmentSize)) {
      segment += 1n;
      continue;
    }
    return {
      pieces,
      limit: part?.end,
      endsInTail: part?.isTail === true,
      missing: place(timeline, segment, segmentSize),
      resumes: resumption(path, segment, stored),
    };
  }
}

/** Where the WAL of a coverage ends; undefined if nothing is covered. */
export function coveredEnd(coverage: Coverage, segmentSize: number): Lsn | undefined {
  const last = coverage.pieces.at(-1)?.last;
  return coverage.limit ?? (last === undefined ? undefined : segmentStart(last + 1n, segmentSize));
}

/** The last segment covered, whole or in part; undefined if there is none. */
export function lastCovered(coverage: Coverage): { timeline: TimelineId; segment: bigint } | undefined {
  const piece = coverage.pieces.at(-1);
  return piece && { timeline: piece.timeline, segment: piece.last };
}

/** The timeline whose file covers a segment; undefined if it is not covered. */
export function coveringTimeline(coverage: Coverage, segment: bigint): TimelineId | undefined {
  return coverage.pieces.find(({ first, last }) => first <= segment && segment <= last)?.timeline;
}

/** How many segments lie in the pieces up to `last`. */
export function countSegments(coverage: Coverage, last: bigint): number {
  let count = 0n;
  for (const piece of coverage.pieces) {
    const end = piece.last < last ? piece.last : last;
    if (end >= piece.first) count += end - piece.first + 1n;
  }
  return Number(count);
}

function rangeWith(ranges: readonly SegmentRange[], segment: bigint): SegmentRange | undefined {
  return ranges.find(({ first, last }) => first <= segment && segment <= last);
}

/** The last segment that is read from a timeline's own files; undefined for the path's last one. */
function lastSegmentOf(path: TimelinePath, timeline: TimelineId, segmentSize: number): bigint | undefined {
  const next = path[path.findIndex((part) => part.timeline === timeline) + 1];
  return next && segmentOfLsn(next.begin, segmentSize) - 1n;
}

/**
 * What there is of a segment that is not there whole: its tails, or those of the parent's version or that itself, up to
 * the switch point. The one that reaches furthest counts; of two that reach equally far the parent's, as when fetching.
 */
function beginningOf(
  path: TimelinePath,
  timeline: TimelineId,
  segment: bigint,
  stored: StoredWal,
): { timeline: TimelineId; end: Lsn; isTail: boolean } | undefined {
  const tail = tailWith(stored.tails(timeline), segment);
  const own = tail && { timeline, end: tail.end, isTail: true };
  const parents = parentVersion(path, segment, stored);
  return own !== undefined && (parents === undefined || own.end > parents.end) ? own : parents;
}

function parentVersion(
  path: TimelinePath,
  segment: bigint,
  { ranges, tails, segmentSize }: StoredWal,
): { timeline: TimelineId; end: Lsn; isTail: boolean } | undefined {
  for (let index = path.length - 1; index > 0; index -= 1) {
    const child = path[index];
    const parent = path[index - 1];
    if (child === undefined || parent === undefined) return undefined;
    const startsInside =
      segmentOfLsn(child.begin, segmentSize) === segment && child.begin > segmentStart(segment, segmentSize);
    if (!startsInside) continue;
    const { timeline } = parent;
    if (rangeWith(ranges(timeline), segment) !== undefined)
      return { timeline, end: child.begin, isTail: false };
    const tail = tailWith(tails(timeline), segment);
    if (tail === undefined) continue;
    return tail.end < child.begin
      ? { timeline, end: tail.end, isTail: true }
      : { timeline, end: child.begin, isTail: false };
  }
  return undefined;
}

function tailWith(tails: readonly SegmentTail[], segment: bigint): SegmentTail | undefined {
  return tails.find((one) => one.segment === segment);
}

function resumption(
  path: TimelinePath,
  after: bigint,
  { ranges, tails, segmentSize }: StoredWal,
): Coverage['resumes'] {
  for (const part of path) {
    const until = lastSegmentOf(path, part.timeline, segmentSize);
    const pieces = [
      ...ranges(part.timeline),
      ...tails(part.timeline).map(({ segment }) => ({ first: segment, last: segment })),
    ].sort((a, b) => (a.first < b.first ? -1 : 1));
    for (const { first, last } of pieces) {
      const own = segmentOfLsn(part.begin, segmentSize);
      const begin = [first, own, after + 1n].reduce((a, b) => (a > b ? a : b));
      if (begin <= last && (until === undefined || begin <= until))
        return place(part.timeline, begin, segmentSize);
    }
  }
  return undefined;
}

function place(
  timeline: TimelineId,
  segment: bigint,
  segmentSize: number,
): { timeline: TimelineId; segment: bigint; name: WalSegmentName } {
  return { timeline, segment, name: walSegmentName(timeline, segment, segmentSize) };
}
