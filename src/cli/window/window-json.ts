import { formatLsn } from '../../postgres/lsn.ts';
import { walSegmentName } from '../../postgres/wal-segment.ts';
import type { ArchiveAccount, KnownCommit } from '../../restore/account-archive.ts';
import { type PresentVerdict, filledBy, judgePresent, unionRanges } from '../../restore/account-union.ts';
import { type AccountGap, pushHistoryHint } from '../../restore/accounting.ts';
import type { Coverage } from '../../restore/coverage.ts';
import { formatInstant } from '../../restore/instant.ts';
import type { ReachedRange } from '../../restore/path-reach.ts';
import { describePath } from '../../restore/timelines.ts';
import type { RepositoryAccount } from './account-cluster.ts';

interface Point {
  lsn: string;
  time: string | null;
  timeline: number;
}

export interface RangeJson {
  from: Point & { backup: string };
  /** `time`: of the last commit in it. `inTail`: the last segment is not complete; records end at or before `lsn`. */
  to: Point & { lastCommitLsn: string | null; inTail: boolean };
  backups: number;
  /** Oldest first. */
  backupIds: string[];
  /** Null where the archive simply ends. */
  gap: { firstMissing: string; lastMissing: string; resumesAt: string } | null;
  /** Where the WAL breaks off inside of a segment that is there. */
  broken: { lsn: string; cause: string; detail: string } | null;
  next: string;
}

export interface GapJson {
  timeline: number;
  firstMissing: string;
  lastMissing: string;
  segments: number;
  fromLsn: string;
  toLsn: string;
  /** As far as headers tell. */
  lastCommitBefore: string | null;
  firstCommitAfter: string | null;
  cause: string;
  detail: string;
  /** It lies between the last backup and the present. */
  blocking: boolean;
  /** Other repositories that have what is missing. */
  filledBy: string[];
  /** The next thing to type; null where nothing needs doing. */
  fix: string | null;
}

export interface TimelineJson {
  timeline: number;
  parent: number | null;
  /** Where it left its parent. */
  switchLsn: string | null;
  /** Its history file is missing, so that nobody knows where it came from. */
  orphan: boolean;
  /** Its history file is there, and this host has no key for it. */
  sealed: boolean;
  from: string | null;
  to: string | null;
}

export interface RepositoryJson {
  repository: string;
  systemIdentifier: string | null;
  branches: { timeline: number; path: string; ranges: RangeJson[] }[];
  gaps: GapJson[];
  timelines: TimelineJson[];
  present: { state: string; timeline: number; lsn: string | null; reachable: boolean } | null;
  recoveryPoint: RecoveryPointJson | null;
  problems: string[];
}

export interface RecoveryPointJson extends Point {
  commitLsn: string | null;
  /** By this host's clock; null where no commit is known. */
  ageSeconds: number | null;
}

export interface WindowJson {
  cluster: string;
  repositories: RepositoryJson[];
  /** Over all repositories. */
  present: {
    state: string;
    timeline: number;
    lsn: string | null;
    repositories: string[];
    recoveryPoint: (RecoveryPointJson & { repository: string }) | null;
  } | null;
  /** What one repository or another can restore. */
  union: { timeline: number; path: string; fromLsn: string; toLsn: string; repositories: string[] }[];
}

/** Everything `window` says, as JSON. */
export function windowJson(cluster: string, found: readonly RepositoryAccount[], now: Date): WindowJson {
  const accounts = found.flatMap(({ account }) => account ?? []);
  return {
    cluster,
    repositories: found.map((one) => repositoryJson(cluster, one, accounts, now)),
    present: presentJson(judgePresent(accounts), now),
    union: unionRanges(accounts).map(({ tip, path, from, to, repositories }) => ({
      timeline: tip,
      path: describePath(path),
      fromLsn: formatLsn(from),
      toLsn: formatLsn(to),
      repositories,
    })),
  };
}

function presentJson(verdict: PresentVerdict | undefined, now: Date): WindowJson['present'] {
  if (verdict === undefined) return null;
  const { state, timeline, lsn, repositories, recoveryPoint } = verdict;
  return {
    state,
    timeline,
    lsn: lsn === undefined ? null : formatLsn(lsn),
    repositories,
    recoveryPoint:
      recoveryPoint === undefined
        ? null
        : { ...pointJson(recoveryPoint, now), repository: recoveryPoint.repository },
  };
}

function repositoryJson(
  cluster: string,
  { repository, account: found, damaged, failure }: RepositoryAccount,
  accounts: readonly ArchiveAccount[],
  now: Date,
): RepositoryJson {
  if (found === undefined) {
    const problem =
      failure?.message ?? `nothing of cluster ${cluster} is here: holdfast backup base ${cluster}`;
    return {
      repository,
      systemIdentifier: null,
      branches: [],
      gaps: [],
      timelines: [],
      present: null,
      recoveryPoint: null,
      problems: [problem],
    };
  }
  const { archive, account, ends } = found;
  const { present } = account;
  const end = present?.range && ends.get(present.range);
  return {
    repository,
    systemIdentifier: archive.identity.systemIdentifier,
    branches: account.branches.map(({ tip, path, ranges }) => ({
      timeline: tip,
      path: describePath(path),
      ranges: ranges.map((range) => rangeJson(range, found)),
    })),
    gaps: account.gaps.map((gap) => gapJson(cluster, gap, found, accounts)),
    timelines: account.timelines.map(({ timeline, parent, orphan, sealed, stored }) => ({
      timeline,
      parent: parent?.timeline ?? null,
      switchLsn: parent === undefined ? null : formatLsn(parent.at),
      orphan,
      sealed,
      from: stored === undefined ? null : formatLsn(stored.from),
      to: stored === undefined ? null : formatLsn(stored.to),
    })),
    present:
      present === undefined
        ? null
        : {
            state: present.state,
            timeline: present.timeline,
            lsn: present.lsn === undefined ? null : formatLsn(present.lsn),
            reachable: present.state === 'reachable',
          },
    recoveryPoint: end === undefined ? null : pointJson(end, now),
    problems: [
      ...archive.problems,
      ...damaged.map(({ key, reason }) => `${key} cannot be used: ${reason}`),
      ...account.timelines
        .filter(({ orphan }) => orphan)
        .map(
          ({ timeline }) =>
            `nobody can tell where timeline ${timeline} comes from: its history file is missing (where a server has it: ${pushHistoryHint(timeline)})`,
        ),
    ],
  };
}

function pointJson(
  { lsn, timeline, lastCommit }: { lsn: bigint; timeline: number; lastCommit: KnownCommit | undefined },
  now: Date,
): RecoveryPointJson {
  const time = lastCommit?.time;
  return {
    lsn: formatLsn(lsn as Parameters<typeof formatLsn>[0]),
    time: timeText(lastCommit),
    timeline,
    commitLsn: lastCommit?.lsn === undefined ? null : formatLsn(lastCommit.lsn),
    ageSeconds: time === undefined ? null : Math.max(0, now.getTime() / 1000 - Number(time) / 1e6),
  };
}

function rangeJson(range: ReachedRange, { archive, ends }: ArchiveAccount): RangeJson {
  const [first] = range.backups;
  const { coverage, cut } = range;
  const end = ends.get(range) ?? { lsn: range.bound, timeline: range.last.timeline, lastCommit: undefined };
  return {
    from: {
      lsn: formatLsn(first.stop),
      time: formatInstant(first.stoppedAt),
      timeline: first.timeline,
      backup: first.record.id,
    },
    to: {
      lsn: formatLsn(end.lsn),
      time: timeText(end.lastCommit),
      timeline: end.timeline,
      lastCommitLsn: end.lastCommit?.lsn === undefined ? null : formatLsn(end.lastCommit.lsn),
      inTail: cut === undefined && coverage.endsInTail,
    },
    backups: range.backups.length,
    backupIds: range.backups.map(({ record }) => record.id),
    gap: pathGap(coverage, archive.segmentSize),
    broken: cut === undefined ? null : { lsn: formatLsn(cut.at), cause: cut.kind, detail: cut.detail },
    next: coverage.missing.name,
  };
}

function pathGap({ missing, resumes }: Coverage, segmentSize: number): RangeJson['gap'] {
  if (resumes === undefined) return null;
  return {
    firstMissing: missing.name,
    lastMissing:
      resumes.segment - 1n < missing.segment
        ? missing.name
        : walSegmentName(missing.timeline, resumes.segment - 1n, segmentSize),
    resumesAt: resumes.name,
  };
}

function gapJson(
  cluster: string,
  gap: AccountGap,
  own: ArchiveAccount,
  accounts: readonly ArchiveAccount[],
): GapJson {
  const { timeline, first, last, fromLsn, toLsn, cause, detail, blocking } = gap;
  const size = own.archive.segmentSize;
  const times = own.times.get(gap);
  const others = filledBy(gap, own, accounts);
  return {
    timeline,
    firstMissing: walSegmentName(timeline, first, size),
    lastMissing: walSegmentName(timeline, last, size),
    segments: Number(last - first) + 1,
    fromLsn: formatLsn(fromLsn),
    toLsn: formatLsn(toLsn),
    lastCommitBefore: timeText(times?.lastCommitBefore),
    firstCommitAfter: timeText(times?.firstCommitAfter),
    cause,
    detail,
    blocking,
    filledBy: others,
    fix: fixOf(cluster, gap, own.archive.repository.name, others),
  };
}

function fixOf(
  cluster: string,
  { blocking, headerLeft }: AccountGap,
  repository: string,
  others: readonly string[],
): string | null {
  const [other] = others;
  if (other !== undefined && !headerLeft) {
    return `holdfast wal catch-up ${cluster} --repository ${repository}`;
  }
  if (blocking) return `holdfast backup base ${cluster}`;
  return other === undefined ? null : `holdfast restore base ${cluster} --repository ${other} --to DIR`;
}

function timeText(commit: KnownCommit | undefined): string | null {
  return commit === undefined ? null : formatInstant(commit.time);
}
