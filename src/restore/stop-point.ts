import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import type { Instant } from './instant.ts';

/** What PostgreSQL is told so that it ends at a stop point. */
export type RecoverySetting =
  | { kind: 'time'; time: Instant; inclusive: boolean }
  | { kind: 'xid'; xid: number; inclusive: boolean }
  | { kind: 'name'; name: string }
  | { kind: 'lsn'; lsn: Lsn; inclusive: boolean }
  | { kind: 'immediate' };

export interface Commit {
  time: Instant;
  /** Unknown where the segment was not opened. */
  xid: number | undefined;
  lsn: Lsn;
}

/** Where recovery will end: found in the archived WAL, or known from the backup. */
export interface StopPoint {
  /** What `pg_last_wal_replay_lsn()` will say: the end of the last record that is replayed. */
  lsn: Lsn;
  /** The timeline whose WAL is replayed last. */
  timeline: TimelineId;
  /** WAL up to here must be readable: the record that ends recovery is read even where it is not replayed. */
  neededLsn: Lsn;
  setting: RecoverySetting;
  /** `exact`: the user's own words found their record. `resolved`: they were translated into an LSN, as `reason` says. */
  how: 'exact' | 'resolved';
  reason: string;
  /** The last transaction that is part of the result, if one committed between the backup's start and the stop. */
  lastCommit: Commit | undefined;
  /** What `pg_last_xact_replay_timestamp()` will say, where that is known: the last end of a transaction, aborts included. */
  lastTransactionTime: Instant | undefined;
}
