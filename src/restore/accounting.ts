import { HoldfastError } from '../errors.ts';
import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import { type TimelineId, historyFileName } from '../postgres/timeline.ts';
import { lastSegmentBefore, segmentOfLsn, segmentStart } from '../postgres/wal-segment.ts';
import type { WalGapNote } from '../repository/wal-gap-note.ts';
import type { Candidate } from './choose-backup.ts';
import type { SegmentRange } from './coverage.ts';
import { type CausedRange, type GapCause, MINIMAL, causesOf } from './gap-causes.ts';
import { type ReachedRange, type ReplayableWal, reachedRanges } from './path-reach.ts';
import type { TimelinePath, TimelineTree } from './timelines.ts';
import type { WalFault } from './wal-audit.ts';

/** Everything that accounting goes by: one history in one repository. */
export interface AccountInput extends ReplayableWal {
  tree: TimelineTree;
  /** Timelines whose history file this host cannot read: in the tree they begin by themselves. */
  sealed: ReadonlySet<TimelineId>;
  candidates: readonly Candidate[];
  /** The branches that a restore may follow. */
  tips: readonly TimelineId[];
  faults: readonly WalFault[];
  notes: readonly WalGapNote[];
  /** The newest WAL that this host saw confirmed in this very repository. */
  confirmed: { timeline: TimelineId; endLsn: Lsn } | undefined;
}

/** WAL of one timeline that is not there, or that recovery cannot pass, and is not simply yet to come. */
export interface AccountGap extends CausedRange {
  timeline: TimelineId;
  fromLsn: Lsn;
  /** Exclusive. */
  toLsn: Lsn;
  /** Nothing behind it can be restored: no backup begins there that leads to the present end. */
  blocking: boolean;
}

export interface AccountBranch {
  tip: TimelineId;
  path: TimelinePath;
  /** Oldest first. */
  ranges: readonly ReachedRange[];
}

export interface AccountTimeline {
  timeline: TimelineId;
  /** Undefined for the first one, and for one whose history file is missing (`orphan`). */
  parent: { timeline: TimelineId; at: Lsn } | undefined;
  orphan: boolean;
  /** Its history file is there, and this host has no key for it. */
  sealed: boolean;
  /** From its first segment that is there to the end of what is known of it; undefined where there is nothing. */
  stored: { from: Lsn; to: Lsn } | undefined;
}

/** Whether the newest WAL that is known of can be restored. */
export interface PresentEnd {
  timeline: TimelineId;
  /** End of what is known to have been written. */
  lsn: Lsn | undefined;
  state: /** Some backup leads there. */
    | 'reachable'
    /** A gap lies between the last backup and the present. */
    | 'gap'
    /** The history file of its timeline is missing. */
    | 'orphan'
    /** No backup leads to its timeline at all. */
    | 'no-backup'
    /** The history file of its timeline cannot be read without a key, and no backup was taken on it. */
    | 'unknown';
  /** The stretch that reaches furthest along its path. */
  range: ReachedRange | undefined;
}

export interface Account {
  branches: readonly AccountBranch[];
  gaps: readonly AccountGap[];
  timelines: readonly AccountTimeline[];
  present: PresentEnd | undefined;
}

/** Says what can be restored and what cannot, and why. Pure. */
export function planAccount(input: AccountInput): Account {
  const branches = input.tips.map((tip) => {
    const path = input.tree.path(tip);
    return { tip, path, ranges: reachedRanges(input, path, input.candidates) };
  });
  const sight = new Sight(input);
  const present = presentEnd(input, sight);
  const gaps = sight.timelines.flatMap((timeline) => gapsOf(input, sight, timeline));
  const path = present === undefined ? undefined : sight.pathTo(present.timeline);
  return {
    branches,
    gaps: gaps.map((gap) => ({ ...gap, blocking: isBlocking(gap, present, path) })),
    timelines: sight.timelines.map((timeline) => sight.describe(timeline)),
    present,
  };
}

/** What is known of each timeline, from whatever there is. */
class Sight {
  /** Ascending; also those of which nothing is left but a memory. */
  readonly timelines: readonly TimelineId[];
  readonly #input: AccountInput;

  constructor(input: AccountInput) {
    this.#input = input;
    const { tree, faults, notes, confirmed } = input;
    const lost = [...faults.filter((fault) => isLost(fault)), ...notes, ...(confirmed ? [confirmed] : [])];
    const all = new Set([...tree.timelines, ...lost.map(({ timeline }) => timeline)]);
    this.timelines = [...all].sort((a, b) => a - b);
  }

  pathTo(timeline: TimelineId): TimelinePath | undefined {
    try {
      return this.#input.tree.path(timeline);
    } catch (error) {
      if (error instanceof HoldfastError && error.code === 'target-unreachable') return undefined;
      throw error;
    }
  }

  /** The first segment of which anything is or was there. */
  first(timeline: TimelineId): bigint | undefined {
    const { ranges, tails, candidates, segmentSize } = this.#input;
    return least([
      ranges(timeline)[0]?.first,
      tails(timeline)[0]?.segment,
      ...this.#lost(timeline).map(({ first }) => first),
      ...candidates.flatMap((one) => (one.timeline === timeline ? segmentOfLsn(one.start, segmentSize) : [])),
    ]);
  }

  /** The end of what was written, as far as anything tells. */
  end(timeline: TimelineId): Lsn | undefined {
    const { ranges, tails, candidates, notes, confirmed, segmentSize } = this.#input;
    const whole = ranges(timeline).at(-1)?.last;
    const end = greatest([
      whole === undefined ? undefined : segmentStart(whole + 1n, segmentSize),
      tails(timeline).at(-1)?.end,
      ...this.#lost(timeline).map(({ last }) => segmentStart(last + 1n, segmentSize)),
      ...notes.flatMap((note) => (note.timeline === timeline ? note.toLsn : [])),
      ...candidates.flatMap((one) => (one.timeline === timeline ? one.stop : [])),
      confirmed?.timeline === timeline ? confirmed.endLsn : undefined,
    ]);
    return end === undefined ? undefined : lsnOf(end);
  }

  /** Whether anything is there of what lies before a position of a timeline, on it or on its ancestors. */
  begunBefore(timeline: TimelineId, lsn: Lsn): boolean {
    const path = this.pathTo(timeline) ?? [];
    return path.some((part) => {
      const first = this.first(part.timeline);
      return first !== undefined && segmentStart(first, this.#input.segmentSize) < lsn;
    });
  }

  describe(timeline: TimelineId): AccountTimeline {
    const path = this.pathTo(timeline);
    const [parent, own] = path?.slice(-2) ?? [];
    const first = this.first(timeline);
    const end = this.end(timeline);
    return {
      timeline,
      parent:
        parent === undefined || own === undefined ? undefined : { timeline: parent.timeline, at: own.begin },
      orphan: path === undefined,
      sealed: this.#input.sealed.has(timeline),
      stored:
        first === undefined || end === undefined
          ? undefined
          : { from: segmentStart(first, this.#input.segmentSize), to: end },
    };
  }

  #lost(timeline: TimelineId): WalFault[] {
    return this.#input.faults.filter((fault) => fault.timeline === timeline && isLost(fault));
  }
}

/** Not data that is being stored just now, nor what nobody wants any more. */
function isLost({ kind }: WalFault): boolean {
  return kind !== 'uncommitted' && kind !== 'expired';
}

type BareGap = Omit<AccountGap, 'blocking'>;

function gapsOf(input: AccountInput, sight: Sight, timeline: TimelineId): BareGap[] {
  const window = expectedOf(input, sight, timeline);
  const broken = breakGaps(input, timeline);
  if (window === undefined) return broken;
  const { segmentSize, breaks, faults, notes } = input;
  const confirmed = confirmedSegments(input);
  const minimal = breaks.filter(({ kind }) => kind === 'wal-level-minimal');
  const gaps: BareGap[] = [];
  for (const missing of missingOf(input, sight, timeline, window)) {
    for (const one of causesOf(timeline, missing, { faults, notes, confirmed, minimal }, segmentSize)) {
      gaps.push({ timeline, ...one, ...lsnsOfGap(input, sight, timeline, one) });
    }
  }
  return [...gaps, ...broken].sort((a, b) => (a.fromLsn < b.fromLsn ? -1 : a.fromLsn > b.fromLsn ? 1 : 0));
}

/** The segments of a timeline that should be there: up to whatever is known of it, and to where its children begin. */
function expectedOf(input: AccountInput, sight: Sight, timeline: TimelineId): SegmentRange | undefined {
  const { segmentSize, tree } = input;
  const path = sight.pathTo(timeline);
  const begin = path === undefined || path.length === 1 ? undefined : path.at(-1)?.begin;
  const continues =
    begin !== undefined && sight.begunBefore(timeline, begin) && path !== undefined && path.length > 1;
  const first = continues ? segmentOfLsn(begin, segmentSize) : sight.first(timeline);
  if (first === undefined) return undefined;
  const end = sight.end(timeline);
  const last = greatest([
    end === undefined ? undefined : lastSegmentBefore(end, segmentSize),
    ...tree.children(timeline).map(({ at }) => segmentOfLsn(at, segmentSize) - 1n),
  ]);
  return last === undefined || last < first ? undefined : { first, last };
}

function missingOf(
  input: AccountInput,
  sight: Sight,
  timeline: TimelineId,
  window: SegmentRange,
): SegmentRange[] {
  const { ranges, tails, segmentSize } = input;
  const enough = tails(timeline).filter(
    ({ segment, end }) =>
      end === segmentStart(segment + 1n, segmentSize) || !goesOnBehind(input, sight, end, timeline),
  );
  const present: SegmentRange[] = [
    ...ranges(timeline),
    ...enough.map(({ segment }) => ({ first: segment, last: segment })),
  ].sort((a, b) => (a.first < b.first ? -1 : 1));
  const missing: SegmentRange[] = [];
  let next = window.first;
  for (const { first, last } of present) {
    if (last < next) continue;
    if (first > window.last) break;
    if (first > next) missing.push({ first: next, last: first - 1n });
    next = last + 1n;
  }
  if (next <= window.last) missing.push({ first: next, last: window.last });
  return missing;
}

/** Whether a timeline is known to go on behind the end of a tail that does not fill its segment. */
function goesOnBehind(
  { tree, segmentSize }: AccountInput,
  sight: Sight,
  tailEnd: Lsn,
  timeline: TimelineId,
): boolean {
  const end = sight.end(timeline);
  if (end !== undefined && end > tailEnd) return true;
  const segment = lastSegmentBefore(tailEnd, segmentSize);
  return tree.children(timeline).some(({ at }) => segmentOfLsn(at, segmentSize) > segment);
}

function lsnsOfGap(
  input: AccountInput,
  sight: Sight,
  timeline: TimelineId,
  { first, last }: SegmentRange,
): { fromLsn: Lsn; toLsn: Lsn } {
  const { segmentSize } = input;
  let fromLsn = segmentStart(first, segmentSize);
  let toLsn = segmentStart(last + 1n, segmentSize);
  fromLsn = tailOf(input, timeline, first) ?? fromLsn;
  const [parent, own] = sight.pathTo(timeline)?.slice(-2) ?? [];
  if (parent !== undefined && own !== undefined && segmentOfLsn(own.begin, segmentSize) === first) {
    // Up to the switch point the parent's copy of the segment does as well.
    const end = hasWhole(input, parent.timeline, first) ? own.begin : tailOf(input, parent.timeline, first);
    const known = end !== undefined && end > own.begin ? own.begin : end;
    if (known !== undefined && known > fromLsn) fromLsn = known;
  }
  const end = sight.end(timeline);
  if (end !== undefined && end > fromLsn && end < toLsn) toLsn = end;
  return { fromLsn, toLsn };
}

function tailOf({ tails }: AccountInput, timeline: TimelineId, segment: bigint): Lsn | undefined {
  return tails(timeline).find((tail) => tail.segment === segment)?.end;
}

function hasWhole({ ranges }: AccountInput, timeline: TimelineId, segment: bigint): boolean {
  return ranges(timeline).some(({ first, last }) => first <= segment && segment <= last);
}

/** Places inside of segments that are there, where something behind them would be wanted. */
function breakGaps(input: AccountInput, timeline: TimelineId): BareGap[] {
  const { breaks, segmentSize, candidates, tree, tips } = input;
  const children = tree.children(timeline);
  const gaps: BareGap[] = [];
  for (const { segment, at, kind, detail, ...one } of breaks) {
    if (one.timeline !== timeline || gaps.at(-1)?.first === segment) continue;
    const goesOn = children.length === 0 || tips.includes(timeline);
    const passed = children.some((child) => {
      const first = segmentOfLsn(child.at, segmentSize);
      if (first !== segment) return first > segment;
      return !hasWhole(input, child.timeline, first) && child.at > at;
    });
    if (!goesOn && !passed) continue;
    const end = segmentStart(segment + 1n, segmentSize);
    const again = least(candidates.flatMap(({ start }) => (start > at && start < end ? start : [])));
    gaps.push({
      timeline,
      first: segment,
      last: segment,
      cause: (kind === 'damaged' ? 'damaged' : 'wal-level-minimal') satisfies GapCause,
      detail: kind === 'damaged' ? `as its writer saw: ${detail}` : MINIMAL,
      headerLeft: true,
      fromLsn: at,
      toLsn: again === undefined ? end : lsnOf(again),
    });
  }
  return gaps;
}

/** What this host saw confirmed beyond what is listed. */
function confirmedSegments({
  confirmed,
  ranges,
  segmentSize,
}: AccountInput): (SegmentRange & { timeline: TimelineId })[] {
  if (confirmed === undefined) return [];
  const { timeline, endLsn } = confirmed;
  const last = lastSegmentBefore(endLsn, segmentSize);
  const listed = ranges(timeline).at(-1)?.last;
  const first = listed === undefined || listed >= last ? last : listed + 1n;
  return [{ timeline, first, last }];
}

function presentEnd(input: AccountInput, sight: Sight): PresentEnd | undefined {
  const timeline = sight.timelines.at(-1);
  if (timeline === undefined) return undefined;
  const end = sight.end(timeline);
  const path = sight.pathTo(timeline);
  if (path === undefined) return { timeline, lsn: end, state: 'orphan', range: undefined };
  const begin = path.at(-1)?.begin ?? lsnOf(0n);
  const ranges = reachedRanges(input, path, input.candidates);
  const range = ranges.reduce<ReachedRange | undefined>(
    (best, one) => (best === undefined || one.bound >= best.bound ? one : best),
    undefined,
  );
  if (range === undefined) {
    return { timeline, lsn: end, state: input.sealed.has(timeline) ? 'unknown' : 'no-backup', range };
  }
  // Of a timeline that has just begun nothing may be there yet.
  const wanted = end ?? segmentStart(segmentOfLsn(begin, input.segmentSize), input.segmentSize);
  const reached = range.cut === undefined && range.bound >= wanted;
  return { timeline, lsn: end ?? range.bound, state: reached ? 'reachable' : 'gap', range };
}

function isBlocking(gap: BareGap, present: PresentEnd | undefined, path: TimelinePath | undefined): boolean {
  if (present === undefined || path === undefined) return false;
  if (present.state === 'reachable' || present.state === 'unknown') return false;
  const part = path.find(({ timeline }) => timeline === gap.timeline);
  if (part === undefined || (part.end !== undefined && gap.fromLsn >= part.end)) return false;
  return present.range === undefined || gap.toLsn > present.range.bound;
}

/** What to type where the history file of a timeline is missing. */
export function pushHistoryHint(timeline: TimelineId): string {
  return `holdfast wal push pg_wal/${historyFileName(timeline)}`;
}

function least(values: readonly (bigint | undefined)[]): bigint | undefined {
  return values.reduce(
    (best, value) => (value === undefined || (best !== undefined && best <= value) ? best : value),
    undefined,
  );
}

function greatest(values: readonly (bigint | undefined)[]): bigint | undefined {
  return values.reduce(
    (best, value) => (value === undefined || (best !== undefined && best >= value) ? best : value),
    undefined,
  );
}
