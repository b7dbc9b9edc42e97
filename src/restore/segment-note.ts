import { type Lsn, parseLsn } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';
import type { WalSummary } from '../postgres/wal-summary.ts';
import { type Instant, parseInstant } from './instant.ts';

/** A segment's summary as far as planning uses it, read from its header. */
export interface SegmentNote {
  endLsn: Lsn;
  commits: number;
  aborts: number;
  firstCommitTime: Instant | undefined;
  lastCommitTime: Instant | undefined;
  lastCommitLsn: Lsn | undefined;
  xids: { min: number; max: number } | undefined;
  restorePoints: readonly string[];
  /** Decoding it is the only way to know: it breaks off, or holds WAL that cannot be recovered. */
  suspicious: boolean;
  /** The last record goes on in the next segment. */
  endsInPartialRecord: boolean;
  /** Where it cannot be read on although it should be whole. */
  damage: { at: Lsn; detail: string } | undefined;
  /** Whether `wal_level` became `minimal` in it, and with which record where its writer noted that. */
  minimal: { at: Lsn | undefined } | undefined;
}

/** Reads a header's summary; undefined where there is none or where it is not understood, and the segment must be opened. */
export function readNote(wal: Readonly<Record<string, unknown>> | undefined): SegmentNote | undefined {
  if (wal === undefined) return undefined;
  const summary = wal as Partial<WalSummary>;
  const { endLsn, commits, aborts, restorePoints } = summary;
  if (typeof endLsn !== 'string' || !Number.isSafeInteger(commits) || !Number.isSafeInteger(aborts))
    return undefined;
  if (!Array.isArray(restorePoints)) return undefined;
  try {
    return {
      endLsn: parseLsn(endLsn),
      commits: commits ?? 0,
      aborts: aborts ?? 0,
      firstCommitTime: timeOf(summary.firstCommitTime),
      lastCommitTime: timeOf(summary.lastCommitTime),
      lastCommitLsn: summary.lastCommitLsn === undefined ? undefined : parseLsn(summary.lastCommitLsn),
      xids:
        summary.minXid === undefined || summary.maxXid === undefined
          ? undefined
          : { min: summary.minXid, max: summary.maxXid },
      restorePoints: restorePoints.map(({ name }) => name),
      suspicious: summary.damagedAt !== undefined || summary.walLevelMinimal !== false,
      endsInPartialRecord: summary.endsInPartialRecord === true,
      damage:
        summary.damagedAt === undefined
          ? undefined
          : { at: parseLsn(summary.damagedAt), detail: summary.damage ?? 'it is damaged' },
      minimal:
        summary.walLevelMinimal === true
          ? {
              at: summary.walLevelMinimalAt === undefined ? undefined : parseLsn(summary.walLevelMinimalAt),
            }
          : undefined,
    };
  } catch {
    return undefined;
  }
}

/**
 * Whether a segment must be opened to find out about a target: it may hold the record that decides. A summary counts
 * whole records only, and knows no times of aborted transactions: the caller also opens the segment before each one
 * that is named here, and where nothing was found, looks again at everything.
 */
export function mayDecide(note: SegmentNote | undefined, target: RecoveryTarget, segmentEnd: Lsn): boolean {
  if (note === undefined || note.suspicious) return true;
  switch (target.kind) {
    case 'latest':
    case 'immediate':
      return false;
    case 'lsn':
      return segmentEnd > target.lsn;
    case 'time': {
      if (note.commits === 0) return note.aborts > 0;
      return note.lastCommitTime === undefined || note.lastCommitTime >= target.time;
    }
    case 'xid':
      return note.xids !== undefined && isBetween(target.xid, note.xids);
    case 'name':
      return note.restorePoints.includes(target.name);
    default:
      return target satisfies never;
  }
}

/** In the circular order of 32-bit transaction ids. */
function isBetween(xid: number, { min, max }: { min: number; max: number }): boolean {
  return ((xid - min) | 0) >= 0 && ((max - xid) | 0) >= 0;
}

function timeOf(text: string | undefined): Instant | undefined {
  return text === undefined ? undefined : parseInstant(text, 0n);
}
