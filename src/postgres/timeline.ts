import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn, parseLsn } from './lsn.ts';

/** A branch of a cluster's history: 1 at initdb, one more at each promotion. PostgreSQL manual, "Timelines". */
export type TimelineId = number & { readonly __brand: 'TimelineId' };

/** One ancestor: WAL of `timeline` belongs to the history up to `end` (exclusive), where the next one forked off. */
export interface TimelineAncestor {
  timeline: TimelineId;
  end: Lsn;
  reason: string;
}

export interface TimelineHistory {
  timeline: TimelineId;
  /** The ancestors, oldest first; empty for timeline 1. */
  entries: TimelineAncestor[];
}

const MAX_TIMELINE = 0xffff_ffff;
const HEX8 = /^[0-9A-F]{8}$/;
const HISTORY_LINE = /^\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}\/[0-9A-Fa-f]{1,8})(?:\s+(.*?))?\s*$/;

/** Brands a number as a timeline. Throws `assertion` outside 1 … 2^32-1. */
export function timelineOf(value: number): TimelineId {
  if (!Number.isInteger(value) || value < 1 || value > MAX_TIMELINE) {
    throw new HoldfastError('assertion', `no timeline can have the number ${value}`);
  }
  return value as TimelineId;
}

/** Reads the eight upper-case hexadecimal digits of file names (base 16: `0000000A` is ten); else `wal-invalid`. */
export function parseTimeline(text: string): TimelineId {
  const value = HEX8.test(text) ? Number.parseInt(text, 16) : 0;
  if (value === 0)
    throw new HoldfastError('wal-invalid', `"${text}" is not a timeline of eight hexadecimal digits`);
  return value as TimelineId;
}

/** Eight upper-case hexadecimal digits, as in file names. */
export function formatTimeline(timeline: TimelineId): string {
  return timeline.toString(16).toUpperCase().padStart(8, '0');
}

/** `0000000A.history`. Timeline 1 has a name, though PostgreSQL never writes that file. */
export function historyFileName(timeline: TimelineId): string {
  return `${formatTimeline(timeline)}.history`;
}

/**
 * Reads the text of `timeline`'s history file. Lines are `parent<TAB>switch point<TAB>reason`, the parent in decimal;
 * empty lines and lines starting with `#` are skipped. As PostgreSQL does, it demands rising timelines that are all
 * below `timeline`; any breach is `wal-invalid`. Switch points may go back: a server that recovers along timeline 2 to a
 * point before 2 begins writes such a file.
 */
export function parseTimelineHistory(timeline: TimelineId, text: string): TimelineHistory {
  const entries: TimelineAncestor[] = [];
  for (const line of text.split('\n')) {
    if (/^\s*(#|$)/.test(line)) continue;
    const match = HISTORY_LINE.exec(line);
    const parent = Number(match?.[1] ?? 0);
    const previous = entries.at(-1);
    if (match === null || parent < 1 || parent <= (previous?.timeline ?? 0) || parent >= timeline) {
      throw invalidHistory(timeline, line);
    }
    const end = parseLsn(match[2] ?? '');
    entries.push({ timeline: timelineOf(parent), end, reason: match[3] ?? '' });
  }
  return { timeline, entries };
}

/** The text PostgreSQL would write for this history. */
export function formatTimelineHistory(history: TimelineHistory): string {
  return history.entries.map((e) => `${e.timeline}\t${formatLsn(e.end)}\t${e.reason}\n`).join('\n');
}

/**
 * The timeline whose WAL holds the byte at `lsn` in this history. A switch point belongs to the child: its first record
 * is written there. The youngest timeline that begins at or before it, as PostgreSQL's tliOfPointInHistory.
 */
export function timelineAt(history: TimelineHistory, lsn: Lsn): TimelineId {
  const { entries, timeline } = history;
  const forkedBefore = entries.findLastIndex(({ end }) => end <= lsn);
  return entries[forkedBefore + 1]?.timeline ?? timeline;
}

function invalidHistory(timeline: TimelineId, line: string): HoldfastError {
  return new HoldfastError('wal-invalid', `history of timeline ${timeline} has an invalid line`, {
    context: { timeline, line: line.slice(0, 200) },
  });
}
