import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { segmentOfLsn } from '../postgres/wal-segment.ts';
import { type Candidate, candidatesOn } from './choose-backup.ts';
import {
  type Coverage,
  type SegmentRanges,
  type SegmentTails,
  coverageOf,
  coveredEnd,
  lastCovered,
} from './coverage.ts';
import type { TimelinePath } from './timelines.ts';
import type { WalBreak } from './wal-audit.ts';

/** What of an archive can be replayed, as far as listings and headers tell. */
export interface ReplayableWal {
  segmentSize: number;
  ranges: SegmentRanges;
  tails: SegmentTails;
  breaks: readonly WalBreak[];
}

/** How far recovery from one backup gets along a path. */
export interface Reach {
  coverage: Coverage;
  /** Recovery cannot pass this, whatever follows. No record ends behind it; the last one may end before. */
  bound: Lsn;
  /** Where the last WAL is read from. */
  last: { timeline: TimelineId; segment: bigint };
  /** Set where the WAL breaks off inside a segment that is there. */
  cut: WalBreak | undefined;
}

/** A stretch of a path that can be restored: every point in it, from one backup or another. */
export interface ReachedRange extends Reach {
  /** The backups it can begin with, oldest first. */
  backups: readonly [Candidate, ...Candidate[]];
}

/** Follows the WAL behind a backup. Undefined where not even what makes it consistent is there. Pure. */
function reachOf(wal: ReplayableWal, path: TimelinePath, candidate: Candidate): Reach | undefined {
  const { segmentSize, ranges, tails } = wal;
  const coverage = coverageOf(path, segmentOfLsn(candidate.start, segmentSize), ranges, segmentSize, tails);
  const last = lastCovered(coverage);
  const end = coveredEnd(coverage, segmentSize);
  if (last === undefined || end === undefined) return undefined;
  const cut = firstBreak(wal.breaks, coverage, candidate.start, end);
  const bound = cut?.at ?? end;
  if (bound < candidate.stop) return undefined;
  return {
    coverage,
    bound,
    last: cut === undefined ? last : { timeline: cut.timeline, segment: cut.segment },
    cut,
  };
}

/** What can be restored along a path, oldest first. Backups whose own WAL is not all there are left out. Pure. */
export function reachedRanges(
  wal: ReplayableWal,
  path: TimelinePath,
  candidates: readonly Candidate[],
): ReachedRange[] {
  const ranges: ReachedRange[] = [];
  for (const candidate of candidatesOn(path, candidates).toReversed()) {
    const reach = reachOf(wal, path, candidate);
    if (reach === undefined) continue;
    const open = ranges.at(-1);
    if (open !== undefined && candidate.stop <= open.bound && reach.bound === open.bound) {
      ranges[ranges.length - 1] = { ...open, backups: [...open.backups, candidate] };
    } else ranges.push({ ...reach, backups: [candidate] });
  }
  return ranges;
}

function firstBreak(
  breaks: readonly WalBreak[],
  coverage: Coverage,
  from: Lsn,
  bound: Lsn,
): WalBreak | undefined {
  let first: WalBreak | undefined;
  for (const one of breaks) {
    if (one.at < from || one.at >= bound || (first !== undefined && one.at >= first.at)) continue;
    const onTheWay = coverage.pieces.some(
      (piece) => piece.timeline === one.timeline && piece.first <= one.segment && one.segment <= piece.last,
    );
    if (onTheWay) first = one;
  }
  return first;
}
