import { type Lsn, parseLsn } from '../postgres/lsn.ts';
import { type TimelineId, timelineOf } from '../postgres/timeline.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { type Instant, instantOfRecord } from './instant.ts';
import { type TimelinePath, isOnPath } from './timelines.ts';

/** A backup with the figures that choices are made by. */
export interface Candidate {
  record: BackupRecord;
  timeline: TimelineId;
  start: Lsn;
  /** Consistent from here on. */
  stop: Lsn;
  stoppedAt: Instant;
}

export function candidateOf(record: BackupRecord): Candidate {
  return {
    record,
    timeline: timelineOf(record.timeline),
    start: parseLsn(record.startLsn),
    stop: parseLsn(record.stopLsn),
    stoppedAt: instantOfRecord(record.stoppedAt),
  };
}

/** The backups that recovery along a path may begin with, newest first. */
export function candidatesOn(path: TimelinePath, backups: readonly Candidate[]): Candidate[] {
  return backups
    .filter(({ timeline, stop }) => isOnPath(path, timeline, stop))
    .sort((a, b) => (a.stop < b.stop ? 1 : a.stop > b.stop ? -1 : a.record.id < b.record.id ? 1 : -1));
}

/** What the backup's own WAL tells about when it began. */
export interface BeginEvidence {
  /** Time of the checkpoint it began with: whole seconds, rounded down. */
  checkpointTime: Instant | undefined;
  /** The first transaction that ended while it was made. */
  firstTransactionTime: Instant | undefined;
}

/**
 * Whether a backup can hold nothing that was committed after `time`. What was committed before its start is in it
 * whatever recovery does later, and only the server's own clock, as written into the WAL, can be compared with commit
 * times: a checkpoint of second 10 may follow a commit at 10.9. Where the WAL tells nothing, the backup host's clock decides.
 */
export function beganBefore(candidate: Candidate, time: Instant, evidence: BeginEvidence): boolean {
  const { checkpointTime, firstTransactionTime } = evidence;
  if (firstTransactionTime !== undefined && firstTransactionTime <= time) return true;
  if (checkpointTime !== undefined) return checkpointTime + 1_000_000n <= time;
  return candidate.stoppedAt <= time;
}
