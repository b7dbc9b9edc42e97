import { type Lsn } from './lsn.ts';
import { DECODED_KINDS, type WalRecord, type WalRecordKind, type WalTransactionEnd } from './wal-record.ts';

/** `recovery_target*` of PostgreSQL; `latest` is no target at all. Times are microseconds since 1970-01-01 UTC. */
export type RecoveryTarget =
  | { kind: 'time'; time: bigint; inclusive: boolean }
  | { kind: 'lsn'; lsn: Lsn; inclusive: boolean }
  | { kind: 'xid'; xid: number; inclusive: boolean }
  | { kind: 'name'; name: string }
  | { kind: 'immediate' }
  | { kind: 'latest' };

/** Where recovery comes to stand. */
export interface RecoveryStop {
  /** What `pg_last_wal_replay_lsn()` shows there: `endLsn` of the last record that was replayed. */
  stopLsn: Lsn;
  /** The last commit that was replayed; left out if there was none. */
  lastCommit?: { time: bigint; xid: number; lsn: Lsn };
  /**
   * What `pg_last_xact_replay_timestamp()` shows: the time of the last commit or abort replayed; but where an inclusive
   * LSN target stops right behind one, that of the one before.
   */
  lastTransactionTime?: bigint;
  /** The record that decided, replayed or not; at the end of WAL every target but `latest` fails the recovery. */
  stoppedBy: WalRecord | 'end-of-wal';
  /** The server would refuse to open: the base backup is not consistent yet at this point. */
  beforeConsistency: boolean;
}

export interface RecoveryStopOptions {
  target: RecoveryTarget;
  /** The stop LSN of the base backup: `pg_backup_stop()`, or the minimum recovery point of one made on a standby. */
  consistentFrom: Lsn;
}

/** The kinds of record that can decide about a target; the others need not be decoded for it. */
export function kindsForTarget(target: RecoveryTarget): readonly WalRecordKind[] {
  return target.kind === 'lsn' || target.kind === 'immediate' ? [...DECODED_KINDS, 'other'] : DECODED_KINDS;
}

/**
 * Says where PostgreSQL 15 to 18 stops recovering, given the records it would replay in order, the first at the redo
 * point of the base backup. Source: PostgreSQL manual, "Recovery Target", and the server's rules behind it:
 * - time: before the first transaction end later than the target (at or later than it, if exclusive), commit or abort;
 * - lsn: after the first record that starts at or behind the target (before it, if exclusive);
 * - xid: after the end of exactly that transaction (before it, if exclusive);
 * - name: after the first restore point of that name;
 * - immediate: after the record that makes the base backup consistent.
 */
export class RecoveryStopFinder {
  readonly #target: RecoveryTarget;
  readonly #consistentFrom: Lsn;
  #stop: RecoveryStop | undefined;
  #lastCommit: { time: bigint; xid: number; lsn: Lsn } | undefined;
  #lastTransactionTime: bigint | undefined;

  constructor(options: RecoveryStopOptions) {
    this.#target = options.target;
    this.#consistentFrom = options.consistentFrom;
  }

  /** Takes the next record; returns the stop as soon as it is known, and then the same for every later record. */
  feed(record: WalRecord): RecoveryStop | undefined {
    if (this.#stop !== undefined) return this.#stop;
    if (stopsBefore(this.#target, record, record.previousEnd >= this.#consistentFrom)) {
      return this.#stopAt(record.previousEnd, record);
    }
    const stops = stopsAfter(this.#target, record, record.endLsn >= this.#consistentFrom);
    this.#replay(record, stops);
    return stops ? this.#stopAt(record.endLsn, record) : undefined;
  }

  /** The stop when no record follows. `endLsn` is the `endLsn` of the last record, fed or not. */
  finish(endLsn: Lsn): RecoveryStop {
    return this.#stop ?? this.#stopAt(endLsn, 'end-of-wal');
  }

  #replay(record: WalRecord, stops: boolean): void {
    if (!endsTransaction(record)) return;
    const { time, xid, lsn } = record;
    // At an LSN the server stops before it notes the time.
    if (!stops || this.#target.kind !== 'lsn') this.#lastTransactionTime = time;
    if (record.kind === 'commit' || record.kind === 'commit-prepared') this.#lastCommit = { time, xid, lsn };
  }

  #stopAt(stopLsn: Lsn, stoppedBy: WalRecord | 'end-of-wal'): RecoveryStop {
    this.#stop = {
      stopLsn,
      stoppedBy,
      beforeConsistency: stopLsn < this.#consistentFrom,
      ...(this.#lastCommit === undefined ? {} : { lastCommit: this.#lastCommit }),
      ...(this.#lastTransactionTime === undefined ? {} : { lastTransactionTime: this.#lastTransactionTime }),
    };
    return this.#stop;
  }
}

function stopsBefore(target: RecoveryTarget, record: WalRecord, isConsistent: boolean): boolean {
  switch (target.kind) {
    case 'immediate':
      return isConsistent;
    case 'lsn':
      return !target.inclusive && record.lsn >= target.lsn;
    case 'xid':
      return !target.inclusive && endsTransaction(record) && record.xid === target.xid;
    case 'time':
      if (!endsTransaction(record)) return false;
      return target.inclusive ? record.time > target.time : record.time >= target.time;
    case 'name':
    case 'latest':
      return false;
  }
}

function stopsAfter(target: RecoveryTarget, record: WalRecord, isConsistent: boolean): boolean {
  switch (target.kind) {
    case 'name':
      return record.kind === 'restore-point' && record.name === target.name;
    case 'lsn':
      return target.inclusive && record.lsn >= target.lsn;
    case 'xid':
      return target.inclusive && endsTransaction(record) && record.xid === target.xid;
    case 'immediate':
      // Behind other records the server looks only before the next one, so it needs one.
      return isConsistent && endsTransaction(record);
    case 'time':
    case 'latest':
      return false;
  }
}

function endsTransaction(record: WalRecord): record is WalTransactionEnd {
  const { kind } = record;
  return kind === 'commit' || kind === 'abort' || kind === 'commit-prepared' || kind === 'abort-prepared';
}
