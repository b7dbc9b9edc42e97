import { type Lsn, formatLsn } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import type { WalRecord } from '../postgres/wal-record.ts';
import { lastSegmentBefore, segmentOfLsn } from '../postgres/wal-segment.ts';
import { type Candidate, beganBefore } from './choose-backup.ts';
import { type Coverage, lastCovered } from './coverage.ts';
import { formatInstant } from './instant.ts';
import type { StopPoint } from './stop-point.ts';
import { type TimelinePath, partAt } from './timelines.ts';
import {
  type UnusableSegment,
  type WalArchive,
  archivedFrom,
  isUnusable,
  segmentTails,
} from './wal-archive.ts';
import { type ScanResult, scanWal } from './wal-scan.ts';

/** What became of one backup and one target on one path. */
export type BackupOutcome =
  | { kind: 'reached'; stop: StopPoint; coverage: Coverage }
  /** The backup holds more than the target allows: an older one is needed. */
  | { kind: 'too-new'; reason?: string }
  /** Not even the WAL that makes the backup consistent is there. */
  | { kind: 'unusable'; reason: string }
  /** The archive, followed from this backup, ends or breaks before the target; older backups end there too. */
  | { kind: 'short'; reason: string; end: ScanResult['lastRecord']; gap: boolean }
  /** The transaction or restore point is not in the archive from this backup on; it may be before it. */
  | { kind: 'not-found'; reason: string };

export interface TryOptions {
  archive: WalArchive;
  path: TimelinePath;
  candidate: Candidate;
  target: RecoveryTarget;
  /**
   * Open every segment. Summaries count whole records only, so that a transaction or restore point that lies across two
   * segments is in none of them.
   */
  thorough: boolean;
  signal?: AbortSignal | undefined;
  progress?: ((segments: number) => void) | undefined;
  /** Told of each segment that was listed and cannot be used. */
  onUnusable?: ((segment: UnusableSegment) => void) | undefined;
}

/** Follows the WAL from one backup along a path and finds where recovery to the target would stop. Writes nothing. */
export async function tryBackup(options: TryOptions): Promise<BackupOutcome> {
  const { archive, path, candidate, target, thorough } = options;
  if (target.kind === 'lsn' && target.lsn < candidate.stop) return { kind: 'too-new' };
  for (;;) {
    const coverage = archivedFrom(archive, path, segmentOfLsn(candidate.start, archive.segmentSize));
    const unready = await backupWalFault(options, coverage);
    if (unready !== undefined) return { kind: 'unusable', reason: unready };
    if (target.kind === 'immediate') return { kind: 'reached', stop: immediateStop(candidate), coverage };
    const scanFrom = (openFrom: bigint | undefined): Promise<ScanResult> =>
      scanWal({
        archive,
        coverage,
        from: candidate.start,
        consistentFrom: candidate.stop,
        target,
        openFrom,
        signal: options.signal,
        progress: options.progress,
      });
    let scan = await scanFrom(thorough ? 0n : undefined);
    const unseen =
      target.kind === 'time' && !thorough ? firstUnseen(scan, coverage, archive.segmentSize) : undefined;
    if (unseen !== undefined) scan = await scanFrom(unseen);
    if (scan.unusable !== undefined) {
      // It counts as missing from here on, so the next round ends before it.
      archive.exclude(scan.unusable.timeline, scan.unusable.segment);
      options.onUnusable?.(scan.unusable);
      continue;
    }
    return judge(options, coverage, scan);
  }
}

/**
 * With a time, the first transaction behind it decides, and one that lies across two segments is in no summary. Behind
 * the last segment known to have a commit every segment must have been opened, up to the one that decides; where some
 * were passed over, this is where to begin.
 */
function firstUnseen(scan: ScanResult, coverage: Coverage, segmentSize: number): bigint | undefined {
  if (scan.unusable !== undefined) return undefined;
  const from = scan.lastCommitSegment ?? 0n;
  const end =
    scan.hit === undefined ? lastCovered(coverage)?.segment : segmentOfLsn(scan.hit.record.lsn, segmentSize);
  // The last but one was opened with the last.
  return end === undefined || end <= from + 1n ? undefined : from;
}

async function backupWalFault(
  { archive, candidate, path }: TryOptions,
  coverage: Coverage,
): Promise<string | undefined> {
  const size = archive.segmentSize;
  const last = lastSegmentBefore(candidate.stop, size);
  for (let segment = segmentOfLsn(candidate.start, size); segment <= last; segment += 1n) {
    const piece = coverage.pieces.find((one) => one.first <= segment && segment <= one.last);
    if (piece === undefined) return `wal segment ${coverage.missing.name}, which it needs, is missing`;
    const facts = await archive.examine(piece.timeline, segment);
    if (isUnusable(facts))
      return `wal segment ${facts.name}, which it needs, cannot be used: ${facts.reason}`;
  }
  if (coverage.limit !== undefined && candidate.stop > coverage.limit) {
    if (coverage.endsInTail) {
      return `wal segment ${coverage.missing.name}, which it needs, is stored up to ${formatLsn(coverage.limit)} only`;
    }
    return `timeline ${partAt(path, candidate.stop).timeline} begins before it is consistent`;
  }
  return undefined;
}

function immediateStop(candidate: Candidate): StopPoint {
  return {
    lsn: candidate.stop,
    timeline: candidate.timeline,
    neededLsn: candidate.stop,
    setting: { kind: 'immediate' },
    how: 'exact',
    reason: 'the base backup is consistent here',
    lastCommit: undefined,
    lastTransactionTime: undefined,
  };
}

function judge(options: TryOptions, coverage: Coverage, scan: ScanResult): BackupOutcome {
  const { candidate, target } = options;
  const { hit, lastRecord } = scan;
  if (target.kind === 'time') {
    const evidence = {
      checkpointTime: scan.startCheckpointTime,
      firstTransactionTime: scan.firstTransactionTime,
    };
    if (!beganBefore(candidate, target.time, evidence)) {
      const { checkpointTime } = evidence;
      if (checkpointTime === undefined || checkpointTime > target.time) return { kind: 'too-new' };
      const reason = `it began in the very second of ${formatInstant(checkpointTime)}, and may hold what was committed in it behind the target`;
      return { kind: 'too-new', reason };
    }
  }
  if (hit !== undefined) {
    if (hit.stop.stopLsn < candidate.stop) return { kind: 'too-new' };
    return { kind: 'reached', stop: stopAtHit(options, coverage, scan, hit), coverage };
  }
  const end = lastRecord?.record.endLsn;
  if (lastRecord === undefined || end === undefined || end < candidate.stop) {
    return {
      kind: 'unusable',
      reason: scan.broken?.detail ?? `its wal ends before ${formatLsn(candidate.stop)}`,
    };
  }
  // A whole segment is sound up to its end, or up to a switch: what breaks off has lost what came behind.
  const gap = coverage.resumes !== undefined || scan.broken !== undefined;
  const why = whereItEnds(coverage, scan, lastRecord.record);
  const resolved = (reason: string): BackupOutcome => ({
    kind: 'reached',
    stop: stopAfter(options, coverage, scan, lastRecord.record, reason),
    coverage,
  });
  switch (target.kind) {
    case 'latest':
      if (gap) return { kind: 'short', reason: why, end: lastRecord, gap };
      return resolved('the last record in the archive');
    case 'lsn':
      if (end >= target.lsn)
        return resolved(`the archive ends at ${formatLsn(end)}, and the record before it is the last`);
      return { kind: 'short', reason: why, end: lastRecord, gap };
    case 'time':
      if (scan.newestTime !== undefined && scan.newestTime >= target.time) {
        return resolved(
          `nothing was committed after it up to ${formatInstant(scan.newestTime)}, the last time the archive knows of`,
        );
      }
      return { kind: 'short', reason: why, end: lastRecord, gap };
    case 'xid':
    case 'name':
      return { kind: 'not-found', reason: why };
    case 'immediate':
      return { kind: 'reached', stop: immediateStop(candidate), coverage };
    default:
      return target satisfies never;
  }
}

function whereItEnds(coverage: Coverage, scan: ScanResult, last: WalRecord): string {
  const end = `the archive ends at ${formatLsn(last.endLsn)}`;
  const segment = `segment ${coverage.missing.name}`;
  if (scan.broken !== undefined) return `${end}: ${scan.broken.detail}`;
  if (coverage.resumes !== undefined) {
    const what = coverage.endsInTail ? `only the beginning of ${segment} is there` : `${segment} is missing`;
    return `${end}: ${what} (it goes on with ${coverage.resumes.name})`;
  }
  return `${end}: ${segment} is not ${coverage.endsInTail ? 'complete' : 'there'} (yet)`;
}

/**
 * Up to where WAL must be readable for a record to be read. Behind its last byte come padding and, behind a switch, the
 * rest of the segment: tails may end before those.
 */
function neededFor(record: WalRecord, { limit }: Coverage): Lsn {
  return limit !== undefined && limit < record.endLsn ? limit : record.endLsn;
}

function stopAtHit(
  options: TryOptions,
  coverage: Coverage,
  scan: ScanResult,
  { record, timeline, stop }: NonNullable<ScanResult['hit']>,
): StopPoint {
  const { target } = options;
  return {
    lsn: stop.stopLsn,
    timeline: timelineToTell(options, record, timeline),
    neededLsn: neededFor(record, coverage),
    setting: target.kind === 'latest' ? { kind: 'lsn', lsn: record.lsn, inclusive: true } : target,
    how: 'exact',
    reason: describeHit(record, stop.stopLsn === record.endLsn),
    lastCommit: scan.lastCommit,
    lastTransactionTime: scan.lastTransactionTime,
  };
}

function stopAfter(
  options: TryOptions,
  coverage: Coverage,
  scan: ScanResult,
  record: WalRecord,
  reason: string,
): StopPoint {
  const timeline = scan.lastRecord?.timeline ?? options.candidate.timeline;
  return {
    lsn: record.endLsn,
    timeline: timelineToTell(options, record, timeline),
    neededLsn: neededFor(record, coverage),
    // PostgreSQL stops after the first record that starts at or behind the LSN: the start of the last one, not its end.
    setting: { kind: 'lsn', lsn: record.lsn, inclusive: true },
    how: 'resolved',
    reason,
    lastCommit: scan.lastCommit,
    lastTransactionTime: scan.lastTransactionTime,
  };
}

/**
 * The timeline recovery is sent along: the one the record belongs to. Where that one's file of the segment is not in the
 * archive (it ended there, and only its child's copy is), the child's.
 */
function timelineToTell({ archive, path }: TryOptions, record: WalRecord, read: TimelineId): TimelineId {
  const own = partAt(path, record.lsn).timeline;
  if (own === read) return own;
  const size = archive.segmentSize;
  const ranges = archive.ranges(own);
  const tails = segmentTails(archive, own);
  for (let at = segmentOfLsn(record.lsn, size); at <= lastSegmentBefore(record.endLsn, size); at += 1n) {
    const isWhole = ranges.some(({ first, last }) => first <= at && at <= last);
    if (!isWhole && !tails.some((tail) => tail.segment === at && tail.end >= record.endLsn)) return read;
  }
  return own;
}

function describeHit(record: WalRecord, after: boolean): string {
  const what =
    'time' in record ? `${record.kind} of ${formatInstant(record.time)}` : `record (${record.kind})`;
  const whose = 'xid' in record && record.xid !== 0 ? `, transaction ${record.xid}` : '';
  return `${after ? 'after' : 'before'} the ${what}${whose} at ${formatLsn(record.lsn)}`;
}
