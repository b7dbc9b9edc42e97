import { throwIfCancelled } from '../cancellation.ts';
import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';
import { type TimelineId, timelineOf } from '../postgres/timeline.ts';
import { lastSegmentBefore, segmentOfLsn, walSegmentName } from '../postgres/wal-segment.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { hasWalData } from '../repository/wal-listing.ts';
import type { WalHighWaterMark } from '../repository/wal-high-water.ts';
import { type BackupOutcome, tryBackup } from './backup-stop.ts';
import { type Candidate, candidateOf, candidatesOn } from './choose-backup.ts';
import { countSegments, coveredEnd, coveringTimeline, type Coverage } from './coverage.ts';
import { lastDecisionIn } from './last-decision.ts';
import { ambiguous, unreachable } from './plan-errors.ts';
import type { TimelineChoice } from './recovery-target.ts';
import type { StopPoint } from './stop-point.ts';
import { type TimelinePath, branchTips, describeTimeline, isOnPath } from './timelines.ts';
import { type WalArchive, isUnusable, listedEnd, segmentTails } from './wal-archive.ts';
import { readNote } from './segment-note.ts';

/** Everything that a restore will do, known before a byte is written. */
export interface RestorePlan {
  repository: Repository;
  identity: ClusterIdentity;
  target: RecoveryTarget;
  backup: BackupRecord;
  /** The timelines recovery passes through, up to the one it stops on. */
  path: TimelinePath;
  /** Every segment that recovery reads. */
  segments: { first: string; last: string; count: number };
  /** The last of them, where it is not complete: up to here it is there, as tails. */
  tail: { segment: string; endLsn: Lsn } | undefined;
  bytes: {
    /** Size of the data directory. */
    write: number;
    /** Stored size of the backup, all of its packs. */
    readBackup: number;
    readWal: number;
  };
  stop: StopPoint;
  /** What the user should know about the choice. */
  notes: string[];
}

export interface PlanOptions {
  archive: WalArchive;
  backups: readonly BackupRecord[];
  target: RecoveryTarget;
  timeline: TimelineChoice;
  /** Only this backup. */
  backupId?: string | undefined;
  /** The newest WAL this host ever saw confirmed. */
  highWater?: WalHighWaterMark | undefined;
  signal?: AbortSignal | undefined;
  /** Told which backup is looked at and how many segments behind it. */
  progress?: ((backupId: string, segments: number) => void) | undefined;
}

/** What following one path came to. */
export interface PathOutcome {
  tip: TimelineId;
  path: TimelinePath;
  candidates: readonly Candidate[];
  reached: { candidate: Candidate; stop: StopPoint; coverage: Coverage } | undefined;
  tried: readonly { candidate: Candidate; outcome: BackupOutcome }[];
}

/**
 * Finds the newest backup that leads to the target, and exactly where recovery will stop, by reading the archived WAL.
 * Writes nothing. Throws `target-unreachable` (with the nearest points that can be reached), `target-ambiguous` where the
 * target lies on several branches, `wal-gap` where `latest` would end before WAL that is known to exist,
 * `backup-unknown`.
 */
export async function planRestore(options: PlanOptions): Promise<RestorePlan> {
  const { archive, target } = options;
  const notes: string[] = archive.problems.map((problem) => problem);
  const candidates = selectBackups(options);
  const outcomes: PathOutcome[] = [];
  for (const { tip, eligible } of await pathsToTry(options, candidates)) {
    outcomes.push(await followPath(options, tip, eligible, notes));
  }
  const chosen = choosePath(options, outcomes, notes);
  if (chosen?.reached === undefined) throw await unreachable(options, outcomes, candidates);
  const { candidate, stop, coverage } = chosen.reached;
  if (target.kind === 'latest') {
    refuseLostEnd(options, chosen, coverage, notes);
    const { name } = coverage.missing;
    if (await hasWalData(archive.repository, archive.identity, name, options.signal)) {
      notes.push(
        `the repository has data of wal segment ${name} that is not committed: it is being stored just now, a push of it broke off, or its header was lost`,
      );
    }
  }
  const segments = await measureSegments(archive, candidate, stop, coverage);
  return {
    repository: archive.repository,
    identity: archive.identity,
    target,
    backup: candidate.record,
    path: pathUpTo(chosen.path, stop.timeline),
    segments: segments.named,
    tail: tailInUse(coverage, segments.named.last),
    bytes: {
      write: candidate.record.files.sizeBytes,
      readBackup: candidate.record.stored.totalBytes,
      readWal: segments.storedBytes,
    },
    stop,
    notes,
  };
}

function selectBackups({ backups, backupId, archive }: PlanOptions): Candidate[] {
  const all = backups.map((record) => candidateOf(record));
  const cluster = archive.identity.cluster;
  const hint = `run "holdfast list ${cluster}" to see which backups there are`;
  if (backupId !== undefined) {
    const one = all.filter(({ record }) => record.id === backupId);
    if (one.length === 0) {
      throw new HoldfastError(
        'backup-unknown',
        `there is no backup ${backupId} of cluster ${cluster} in repository ${archive.repository.name}`,
        { hint },
      );
    }
    return one;
  }
  if (all.length === 0) {
    throw new HoldfastError(
      'target-unreachable',
      `repository ${archive.repository.name} has no usable base backup of cluster ${cluster}`,
      {
        hint: `make one: holdfast backup base ${cluster}`,
      },
    );
  }
  return all;
}

/** The branches to follow, each with the backups it may begin with. */
async function pathsToTry(
  { archive, timeline }: PlanOptions,
  candidates: readonly Candidate[],
): Promise<{ tip: TimelineId; eligible: readonly Candidate[] }[]> {
  const { tree } = archive;
  if (timeline === 'current') {
    const tips = [...new Set(candidates.map((one) => one.timeline))];
    return tips.map((tip) => ({ tip, eligible: candidates.filter((one) => one.timeline === tip) }));
  }
  if (timeline !== 'auto' && timeline !== 'latest') return [{ tip: timeline, eligible: candidates }];
  refuseOrphans(archive);
  if (timeline === 'latest') {
    const leading = tree.timelines.filter((tip) => leadsAnywhere(archive, tip, candidates));
    const tip = leading.at(-1);
    return tip === undefined ? [] : [{ tip, eligible: candidates }];
  }
  const tips = await branchesOf(archive, candidates);
  return tips.map((tip) => ({ tip, eligible: candidates }));
}

/** A timeline that nothing is known to lead to may be the one that matters: only the user can say that it is not. */
function refuseOrphans({ tree }: WalArchive): void {
  for (const timeline of tree.timelines) {
    try {
      tree.path(timeline);
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code !== 'target-unreachable') throw error;
      throw new HoldfastError(error.code, `${error.message}, so nobody can tell where it branches off`, {
        hint: `${error.hint ?? ''}; or say which timeline to follow: --target-timeline N`,
        context: error.context,
        cause: error,
      });
    }
  }
}

/** The branches that a restore from these backups may follow. */
export async function branchesOf(
  archive: WalArchive,
  candidates: readonly Candidate[],
): Promise<TimelineId[]> {
  const archived = await exactReach(archive);
  const reach = (timeline: TimelineId): Lsn | undefined => {
    // A backup proves that its timeline went on, also where the WAL it was made from is damaged.
    const stops = candidates.flatMap((one) => (one.timeline === timeline ? one.stop : []));
    return stops.reduce<Lsn | undefined>(
      (end, stop) => (end === undefined || stop > end ? stop : end),
      archived(timeline),
    );
  };
  return branchTips(archive.tree, reach).filter((tip) => leadsAnywhere(archive, tip, candidates));
}

function leadsAnywhere(archive: WalArchive, tip: TimelineId, candidates: readonly Candidate[]): boolean {
  try {
    return candidatesOn(archive.tree.path(tip), candidates).length > 0;
  } catch (error) {
    // A timeline whose history file is missing: it is named among the problems.
    if (error instanceof HoldfastError && error.code === 'target-unreachable') return false;
    throw error;
  }
}

/**
 * How far each timeline reaches; exactly where it ends in the very segment that another forked off in. A timeline that
 * ends in tails there counts only up to the last record that a target could be about: behind the switch point an old
 * primary's last bytes are seldom more than a torn record.
 */
async function exactReach(archive: WalArchive): Promise<(timeline: TimelineId) => Lsn | undefined> {
  const size = archive.segmentSize;
  const ends = new Map<TimelineId, Lsn | undefined>();
  for (const timeline of archive.tree.timelines) {
    let end = listedEnd(archive, timeline);
    const last = end === undefined ? undefined : lastSegmentBefore(end, size);
    const fork = archive.tree.children(timeline).find(({ at }) => lastSegmentBefore(at, size) === last);
    if (fork !== undefined && last !== undefined) {
      if (segmentTails(archive, timeline).some(({ segment }) => segment === last)) {
        end = (await lastDecisionIn(archive, timeline, last)) ?? end;
      } else {
        const facts = await archive.examine(timeline, last);
        if (!isUnusable(facts)) end = readNote(facts.wal)?.endLsn ?? end;
      }
    }
    ends.set(timeline, end);
  }
  return (timeline) => ends.get(timeline);
}

async function followPath(
  options: PlanOptions,
  tip: TimelineId,
  eligible: readonly Candidate[],
  notes: string[],
): Promise<PathOutcome> {
  const { archive, target } = options;
  const path = archive.tree.path(tip);
  const candidates = candidatesOn(path, eligible);
  const tried: { candidate: Candidate; outcome: BackupOutcome }[] = [];
  const attempt = async (candidate: Candidate, thorough: boolean): Promise<BackupOutcome> => {
    throwIfCancelled(options.signal);
    return await tryBackup({
      archive,
      path,
      candidate,
      target,
      thorough,
      signal: options.signal,
      progress: (segments) => options.progress?.(candidate.record.id, segments),
      onUnusable: ({ name, reason }) => {
        notes.push(`wal segment ${name} cannot be used: ${reason}`);
      },
    });
  };
  const reached = (candidate: Candidate, outcome: BackupOutcome): PathOutcome['reached'] =>
    outcome.kind === 'reached' ? { candidate, stop: outcome.stop, coverage: outcome.coverage } : undefined;

  for (const candidate of candidates) {
    const outcome = await attempt(candidate, false);
    tried.push({ candidate, outcome });
    const found = reached(candidate, outcome);
    if (found !== undefined) return { tip, path, candidates, reached: found, tried };
    // What this backup cannot reach for want of WAL, no older one can.
    if (outcome.kind === 'short') break;
  }
  // It may lie across two segments. All of the WAL is read once, from the oldest backup that has its own.
  const oldest = tried.findLast(({ outcome }) => outcome.kind === 'not-found')?.candidate;
  const whole = oldest && (await attempt(oldest, true));
  if (whole?.kind === 'reached') {
    for (const candidate of candidates) {
      if (candidate.stop > whole.stop.lsn) continue;
      const found = reached(candidate, await attempt(candidate, true));
      if (found !== undefined) return { tip, path, candidates, reached: found, tried };
    }
  }
  return { tip, path, candidates, reached: undefined, tried };
}

/** The one path to take, or none. Throws `target-ambiguous` where the branches differ in what the target means. */
function choosePath(
  options: PlanOptions,
  outcomes: readonly PathOutcome[],
  notes: string[],
): PathOutcome | undefined {
  const newestFirst = (a: PathOutcome, b: PathOutcome): number => {
    const [left, right] = [a.reached?.candidate.stoppedAt ?? 0n, b.reached?.candidate.stoppedAt ?? 0n];
    return left < right ? 1 : left > right ? -1 : b.tip - a.tip;
  };
  const reaching = outcomes.filter((one) => one.reached !== undefined).sort(newestFirst);
  const best = reaching[0];
  if (best?.reached === undefined) return undefined;
  const { candidate, stop } = best.reached;
  const rivals = outcomes.filter((other) => {
    if (other === best || isOnPath(other.path, stop.timeline, stop.lsn)) return false;
    return isOnPath(other.path, candidate.timeline, candidate.stop);
  });
  if (rivals.length > 0 && options.timeline === 'auto') throw ambiguous(options.target, [best, ...rivals]);
  for (const other of outcomes) {
    if (other === best || rivals.includes(other) || isOnPath(other.path, stop.timeline, stop.lsn)) continue;
    notes.push(
      `${describeTimeline(other.tip)} is another branch, which does not come from this backup; to follow it give --target-timeline ${other.tip}`,
    );
  }
  return best;
}

/** `latest` must not end before WAL that this host saw stored. */
function refuseLostEnd(
  { highWater, archive }: PlanOptions,
  { path }: PathOutcome,
  coverage: Coverage,
  notes: string[],
): void {
  if (highWater === undefined) return;
  const end = coveredEnd(coverage, archive.segmentSize) ?? 0n;
  const part = path.find(({ timeline }) => timeline === highWater.timeline);
  const newest = lastSegmentBefore(highWater.endLsn, archive.segmentSize);
  const timeline = timelineOf(highWater.timeline);
  const stored =
    archive.ranges(timeline).some(({ first, last }) => first <= newest && newest <= last) ||
    segmentTails(archive, timeline).some((tail) => tail.end >= highWater.endLsn);
  // Another branch, left behind or not asked for: it did not lose anything.
  if (part === undefined && (stored || highWater.timeline < (path.at(-1)?.timeline ?? 0))) {
    notes.push(`this host last archived on timeline ${highWater.timeline}, which is not on the way`);
    return;
  }
  const known = part?.end !== undefined && part.end < highWater.endLsn ? part.end : highWater.endLsn;
  if (part !== undefined && known <= end) return;
  throw new HoldfastError(
    'wal-gap',
    `wal was lost from the end of the archive: ${highWater.name} was stored (up to ${formatLsn(highWater.endLsn)}) and is no longer there`,
    {
      hint: `use another repository, or accept the loss with --target-lsn ${formatLsn(end as Lsn)} (or another explicit target)`,
      context: { lost: highWater.name, lastCommitTime: highWater.lastCommitTime },
    },
  );
}

async function measureSegments(
  archive: WalArchive,
  candidate: Candidate,
  stop: StopPoint,
  coverage: Coverage,
): Promise<{ named: RestorePlan['segments']; storedBytes: number }> {
  const size = archive.segmentSize;
  const first = segmentOfLsn(candidate.start, size);
  const last = lastSegmentBefore(stop.neededLsn, size);
  let storedBytes = 0;
  for (const piece of coverage.pieces) {
    for (let segment = piece.first; segment <= piece.last && segment <= last; segment += 1n) {
      const facts = await archive.examine(piece.timeline, segment);
      if (!isUnusable(facts)) storedBytes += facts.storedBytes;
    }
  }
  const name = (segment: bigint): string =>
    walSegmentName(coveringTimeline(coverage, segment) ?? candidate.timeline, segment, size);
  return {
    named: { first: name(first), last: name(last), count: countSegments(coverage, last) },
    storedBytes,
  };
}

function tailInUse(coverage: Coverage, last: string): RestorePlan['tail'] {
  const { endsInTail, limit, missing } = coverage;
  if (!endsInTail || limit === undefined || last.slice(8) !== missing.name.slice(8)) return undefined;
  return { segment: last, endLsn: limit };
}

function pathUpTo(path: TimelinePath, timeline: TimelineId): TimelinePath {
  const at = path.findIndex((part) => part.timeline === timeline);
  return at < 0 ? path : path.slice(0, at + 1);
}
