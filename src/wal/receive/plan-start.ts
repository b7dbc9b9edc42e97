import { type TimelineHistory, type TimelineId } from '../../postgres/timeline.ts';
import { segmentOfLsn } from '../../postgres/wal-segment.ts';

/** What one repository holds of a history, as far as it matters where to go on. */
export interface StoredReach {
  /**
   * By timeline: the first segment that is still to be stored, behind the newest one that is. Timelines without any
   * complete segment count with the segment of their tails.
   */
  next: ReadonlyMap<TimelineId, bigint>;
}

export interface StartQuestion {
  /** The timeline the server is on. */
  timeline: TimelineId;
  /** Its ancestors; undefined on timeline 1. */
  history: TimelineHistory | undefined;
  /** Of every repository that has to confirm. */
  reaches: readonly StoredReach[];
  segmentSize: number;
}

export interface StartPlace {
  timeline: TimelineId;
  segment: bigint;
}

export type StartPlan =
  /** No repository holds anything of the server's past: its slot decides. */
  | { kind: 'begin' }
  | { kind: 'resume'; at: StartPlace }
  /** A repository holds a newer timeline, which the server does not come from: it is an old primary, or a copy. */
  | { kind: 'outdated'; stored: TimelineId };

/**
 * Where streaming goes on: at the first segment that any of the repositories lacks, on the server's own path of
 * timelines. Never anything later: what lies between must not be skipped. Pure.
 */
export function planStart(question: StartQuestion): StartPlan {
  const places: PathPlace[] = [];
  for (const reach of question.reaches) {
    const newer = newerTimeline(reach, question.timeline);
    if (newer !== undefined) return { kind: 'outdated', stored: newer };
    const place = placeOf(reach, question);
    if (place !== undefined) places.push(place);
  }
  const [first, ...others] = places;
  if (first === undefined) return { kind: 'begin' };
  const earliest = others.reduce((best, place) => (isBefore(place, best) ? place : best), first);
  return { kind: 'resume', at: { timeline: earliest.timeline, segment: earliest.segment } };
}

interface PathPlace extends StartPlace {
  /** Position of the timeline among the ancestors. */
  index: number;
}

/** The path of timelines that leads to the server, with the segment in which each one's child begins. */
function pathOf({
  timeline,
  history,
  segmentSize,
}: StartQuestion): { timeline: TimelineId; until?: bigint }[] {
  const ancestors = (history?.entries ?? []).map((entry) => ({
    timeline: entry.timeline,
    until: segmentOfLsn(entry.end, segmentSize),
  }));
  return [...ancestors, { timeline }];
}

function placeOf(reach: StoredReach, question: StartQuestion): PathPlace | undefined {
  const path = pathOf(question);
  for (let index = path.length - 1; index >= 0; index -= 1) {
    const part = path[index];
    const next = part && reach.next.get(part.timeline);
    if (part === undefined || next === undefined) continue;
    return onwards(path, index, next);
  }
  return undefined;
}

/**
 * Once the segment is reached in which a child begins, the child's file of it is what is needed: it repeats the parent's
 * bytes up to the switch.
 */
function onwards(
  path: readonly { timeline: TimelineId; until?: bigint }[],
  from: number,
  next: bigint,
): PathPlace | undefined {
  let [index, segment] = [from, next];
  for (;;) {
    const part = path[index];
    if (part === undefined) return undefined;
    const { timeline, until } = part;
    if (until === undefined || segment < until) return { timeline, segment, index };
    index += 1;
    segment = until;
  }
}

function newerTimeline(reach: StoredReach, timeline: TimelineId): TimelineId | undefined {
  return [...reach.next.keys()].find((stored) => stored > timeline);
}

function isBefore(a: PathPlace, b: PathPlace): boolean {
  return a.index === b.index ? a.segment < b.segment : a.index < b.index;
}
