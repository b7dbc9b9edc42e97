import type { TimelineId } from '../postgres/timeline.ts';
import { lastSegmentBefore, segmentOfLsn } from '../postgres/wal-segment.ts';
import type { WalGapNote } from '../repository/wal-gap-note.ts';
import type { SegmentRange } from './coverage.ts';
import type { WalFault } from './wal-audit.ts';

/** Why WAL is not there, as far as anybody can know. */
export type GapCause =
  /** Nothing of it was ever seen here. */
  | 'never-archived'
  /** It was stored: its header, its data or this host's memory of it is left. */
  | 'deleted'
  /** It is there and cannot be used. */
  | 'damaged'
  /** The server wrote WAL that cannot be recovered. */
  | 'wal-level-minimal'
  | 'slot-lost'
  | 'removed-by-server';

export interface CausedRange extends SegmentRange {
  cause: GapCause;
  detail: string;
  /** A header is left, which copying from another repository does not replace. */
  headerLeft: boolean;
}

export interface CauseEvidence {
  faults: readonly WalFault[];
  notes: readonly WalGapNote[];
  /** Segments this host saw confirmed in this repository: they were there. */
  confirmed: readonly (SegmentRange & { timeline: TimelineId })[];
  /** Segments from which on `wal_level` was `minimal`. */
  minimal: readonly { timeline: TimelineId; segment: bigint }[];
}

const FAULT_CAUSE: Readonly<Record<WalFault['kind'], GapCause>> = {
  'data-lost': 'deleted',
  'header-lost': 'deleted',
  uncommitted: 'deleted',
  expired: 'deleted',
  damaged: 'damaged',
};

/** Cuts missing segments of one timeline up by why they are missing. Pure. */
export function causesOf(
  timeline: TimelineId,
  missing: SegmentRange,
  evidence: CauseEvidence,
  segmentSize: number,
): CausedRange[] {
  const known = explanations(timeline, missing, evidence, segmentSize);
  const starts = new Set<bigint>([missing.first]);
  for (const { first, last } of known) {
    if (first > missing.first && first <= missing.last) starts.add(first);
    if (last >= missing.first && last < missing.last) starts.add(last + 1n);
  }
  const ordered = [...starts].sort((a, b) => (a < b ? -1 : 1));
  const cut: CausedRange[] = [];
  for (const [index, first] of ordered.entries()) {
    const next = ordered[index + 1];
    const last = next === undefined ? missing.last : next - 1n;
    const why = known.find((one) => one.first <= first && last <= one.last) ?? NEVER;
    const before = cut.at(-1);
    if (before?.cause === why.cause && before.detail === why.detail) before.last = last;
    else cut.push({ ...why, first, last });
  }
  return cut;
}

const NEVER = {
  cause: 'never-archived',
  detail: 'nothing of it was ever seen here',
  headerLeft: false,
} as const;

/** What is known of the segments, the surest first. */
function explanations(
  timeline: TimelineId,
  missing: SegmentRange,
  { faults, notes, confirmed, minimal }: CauseEvidence,
  segmentSize: number,
): CausedRange[] {
  const own = <One extends { timeline: TimelineId }>(all: readonly One[]): One[] =>
    all.filter((one) => one.timeline === timeline);
  const known: CausedRange[] = own(faults).map(({ first, last, kind, detail }) => ({
    first,
    last,
    cause: FAULT_CAUSE[kind],
    detail,
    headerLeft: kind === 'data-lost' || kind === 'damaged',
  }));
  for (const { fromLsn, toLsn, cause, detail } of own(notes)) {
    if (toLsn <= fromLsn) continue;
    // What was lost begins with the segment that was to be read next, of which a part may have arrived.
    const [first, last] = [segmentOfLsn(fromLsn, segmentSize), lastSegmentBefore(toLsn, segmentSize)];
    known.push({ first, last, cause, detail, headerLeft: false });
  }
  for (const { first, last } of own(confirmed)) {
    const detail = 'this host saw it confirmed here';
    known.push({ first, last, cause: 'deleted', detail, headerLeft: false });
  }
  if (own(minimal).some(({ segment }) => segment + 1n === missing.first || segment === missing.first)) {
    known.push({ ...missing, cause: 'wal-level-minimal', detail: MINIMAL, headerLeft: false });
  }
  return known;
}

export const MINIMAL = 'wal_level was minimal, so that nothing was archived';
