import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';

/** Where the WAL of a server ends, by its own clock. Times are microseconds since 1970. */
export interface ServerEnd {
  now: bigint;
  timeline: TimelineId;
  /** Flushed on a primary. */
  position: Lsn;
  /** No transaction has committed since this LSN; undefined where that is not certain. */
  quietSince: Lsn | undefined;
}

/** Where the WAL that a repository durably holds ends. */
export interface StoredEnd {
  timeline: TimelineId;
  /** Exclusive. */
  lsn: Lsn;
  /** Of the newest commit stored. */
  lastCommitTime: bigint | undefined;
}

/** What would be lost if the server were lost now. */
export interface RecoveryPoint {
  /**
   * `current`: every commit is stored. `pending`: there is WAL that is not stored, with commits in it for all that is
   * known. `ahead`: the repository has a timeline that the server does not follow.
   */
  state: 'current' | 'pending' | 'ahead';
  /** WAL of the server that is not stored. */
  pendingBytes: bigint;
  /** Since the last stored commit, by the server's clock; undefined where no stored commit is known. Never negative. */
  ageMs: number | undefined;
  /** By how much the last stored commit lies in the server's future: its clock was set back. 0 where it does not. */
  futureMs: number;
}

/**
 * The age of the recovery point is measured from the last commit that is stored, not from the last segment. Where the
 * state is `current` nothing is lost however old that commit is: the database is idle. Pure.
 */
export function recoveryPointOf(server: ServerEnd, stored: StoredEnd | undefined): RecoveryPoint {
  if (stored === undefined) {
    return { state: 'pending', pendingBytes: server.position, ageMs: undefined, futureMs: 0 };
  }
  const pendingBytes = server.position > stored.lsn ? server.position - stored.lsn : 0n;
  const sinceMs =
    stored.lastCommitTime === undefined ? undefined : Number(server.now - stored.lastCommitTime) / 1000;
  const age = {
    ageMs: sinceMs === undefined ? undefined : Math.max(0, sinceMs),
    futureMs: sinceMs === undefined ? 0 : Math.max(0, -sinceMs),
  };
  if (stored.timeline > server.timeline) return { state: 'ahead', pendingBytes, ...age };
  const quiet = server.quietSince !== undefined && stored.lsn >= server.quietSince;
  // Of an older timeline the same LSN may be other WAL.
  const complete = stored.timeline === server.timeline && (pendingBytes === 0n || quiet);
  return { state: complete ? 'current' : 'pending', pendingBytes, ...age };
}

/** Whether more than the allowed time of commits could be lost. A commit time that is not known counts as too old. */
export function isTooOld(point: RecoveryPoint, limitMs: number): boolean {
  return point.state === 'pending' && (point.ageMs === undefined || point.ageMs > limitMs);
}
