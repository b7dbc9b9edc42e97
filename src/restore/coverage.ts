import { type Lsn } from '../postgres/lsn.ts';
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

export interface CoveragePiece extends SegmentRange {
  timeline: TimelineId;
}

/** What of a path is there without a hole, from one segment on. */
export interface Coverage {
  /** In the order of replay. Empty if the first segment is missing. */
  pieces: readonly CoveragePiece[];
  /**
   * Set where the last piece is one segment of a parent whose child's version is missing: its WAL counts only up to the
   * switch point.
   */
  limit: Lsn | undefined;
  /** The first segment that is not there. */
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
): Coverage {
  const pieces: CoveragePiece[] = [];
  let limit: Lsn | undefined;
  let segment = from;
  for (;;) {
    const timeline = timelineOfSegment(path, segment, segmentSize);
    const range = rangeWith(ranges(timeline), segment);
    if (range === undefined) {
      const fallback = parentVersion(path, segment, ranges, segmentSize);
      if (fallback !== undefined) {
        pieces.push({ timeline: fallback.timeline, first: segment, last: segment });
        limit = fallback.limit;
      }
      return {
        pieces,
        limit,
        missing: place(timeline, segment, segmentSize),
        resumes: resumption(path, segment, ranges, segmentSize),
      };
    }
    const until = lastSegmentOf(path, timeline, segmentSize);
    const last = until !== undefined && until < range.last ? until : range.last;
    pieces.push({ timeline, first: segment, last });
    segment = last + 1n;
  }
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

function parentVersion(
  path: TimelinePath,
  segment: bigint,
  ranges: SegmentRanges,
  segmentSize: number,
): { timeline: TimelineId; limit: Lsn } | undefined {
  for (let index = path.length - 1; index > 0; index -= 1) {
    const child = path[index];
    const parent = path[index - 1];
    if (child === undefined || parent === undefined) return undefined;
    const startsInside =
      segmentOfLsn(child.begin, segmentSize) === segment && child.begin > segmentStart(segment, segmentSize);
    if (startsInside && rangeWith(ranges(parent.timeline), segment) !== undefined) {
      return { timeline: parent.timeline, limit: child.begin };
    }
  }
  return undefined;
}

function resumption(
  path: TimelinePath,
  after: bigint,
  ranges: SegmentRanges,
  segmentSize: number,
): Coverage['resumes'] {
  for (const part of path) {
    const until = lastSegmentOf(path, part.timeline, segmentSize);
    for (const { first, last } of ranges(part.timeline)) {
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
