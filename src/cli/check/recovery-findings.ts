import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import type { GapCause } from '../../restore/gap-causes.ts';
import type { Behind } from '../../wal/behind.ts';
import { isTooOld, type RecoveryPoint } from '../../wal/recovery-point.ts';
import type { Findings } from './finding.ts';
import type { StoredWal, WalAccount, WalGap } from './stored-wal.ts';

export interface RecoveryExpectation {
  cluster: string;
  mode: 'push' | 'stream';
  tailIntervalMs: number;
  /** Of the primary's setting; 0: none. */
  archiveTimeoutMs: number;
}

/** Two clocks that differ by more are worth a word where ages are shown. */
const FUTURE_WARN_MS = 60_000;

/** How old the last stored commit may be while WAL is pending; undefined where nothing bounds it. */
export function oldestAllowed(expected: RecoveryExpectation): number | undefined {
  if (expected.mode === 'stream') return Math.max(15_000, 4 * expected.tailIntervalMs);
  return expected.archiveTimeoutMs === 0 ? undefined : 2 * expected.archiveTimeoutMs + 60_000;
}

/** What would be lost if the server were lost now, for one repository. `noted`: it is known to be behind. Pure. */
export function judgeRecoveryPoint(
  { repository, required, newest, others }: Omit<StoredWal, 'problem'>,
  point: RecoveryPoint,
  expected: RecoveryExpectation,
  noted: boolean,
  findings: Findings,
): void {
  const limit = oldestAllowed(expected);
  if (newest === undefined && others.length > 0) {
    findings.fail(
      `repository ${repository} knows cluster ${expected.cluster} by system identifier ${others.join(' and ')}, and not by that of the server`,
      'another cluster is behind the address: correct it; if this one replaced the other, give it a new name in the configuration',
    );
    return;
  }
  if (newest === undefined) {
    if (noted) return;
    findings.warn(
      `repository ${repository} has no WAL of cluster ${expected.cluster} yet`,
      expected.mode === 'stream'
        ? `holdfast wal receive ${expected.cluster}`
        : 'SELECT pg_switch_wal(); and run this check again: it then shows whether WAL arrives',
    );
    return;
  }
  if (point.state === 'ahead') {
    findings.fail(
      `repository ${repository} has WAL of timeline ${newest.timeline}, which the primary does not come from`,
      'this primary is an old one, or a restored copy archives as this cluster: see which server is the right one',
    );
    return;
  }
  if (point.futureMs > FUTURE_WARN_MS) {
    findings.warn(
      `the last commit in ${repository} lies ${formatDuration(point.futureMs)} in the server's future: its clock was set back, and ages mean nothing until it has caught up`,
      'restore by LSN or restore point rather than by time around the change',
    );
  }
  const last = point.ageMs === undefined ? 'no commit' : `the last one ${formatDuration(point.ageMs)} ago`;
  if (point.state === 'current') {
    findings.ok(`repository ${repository} has every commit (${last})`);
    return;
  }
  const text = `repository ${repository} is ${formatSize(Number(point.pendingBytes))} behind the server, its last commit ${point.ageMs === undefined ? 'unknown' : `${formatDuration(point.ageMs)} old`}`;
  if (limit === undefined || !isTooOld(point, limit)) findings.ok(text);
  else if (!required) {
    if (!noted) findings.warn(text, `see holdfast wal status ${expected.cluster}`);
  } else {
    findings.fail(
      text,
      expected.mode === 'stream'
        ? `holdfast wal status ${expected.cluster} shows what holds it up; if nothing receives: holdfast wal receive ${expected.cluster}`
        : "see the server's log for what the archive command says",
    );
  }
}

/** Push has no bound of its own for commits of a quiet database. Pure. */
export function judgeArchiveTimeout(expected: RecoveryExpectation, findings: Findings): void {
  if (expected.mode !== 'push' || expected.archiveTimeoutMs > 0) return;
  findings.warn(
    'archive_timeout is 0: the last commits of a quiet database are stored when their segment is full, which may take days',
    "ALTER SYSTEM SET archive_timeout = '60s'; SELECT pg_reload_conf(); or stream",
  );
}

/** Optional repositories that lack what the required ones have. Pure. */
export function judgeBehind(behind: readonly Behind[], findings: Findings): void {
  for (const { repository, since, first, reason } of behind) {
    findings.warn(
      `repository ${repository} lacks WAL from ${first} on, since ${since}: ${reason}`,
      `make ${repository} usable again: it is not required, and catches up by itself`,
    );
  }
}

/** Whether the newest WAL cannot be restored although there are backups. */
export function isCutOff({ present, backups }: Pick<WalAccount, 'present' | 'backups'>): boolean {
  return present === 'gap' || present === 'orphan' || (present === 'no-backup' && backups > 0);
}

/**
 * Whether the present can be restored, and which times cannot. A gap that nothing leads over is a failure, one that a
 * backup has left behind is history. Pure.
 */
export function judgeGaps(
  { repository, gaps, ...account }: WalAccount & { repository: string },
  cluster: string,
  findings: Findings,
): void {
  const { present, backups } = account;
  const backup = `holdfast backup base ${cluster}, at once: restores begin anew from there; "holdfast window ${cluster}" shows the rest`;
  const blocking = gaps.filter((gap) => gap.present);
  if (present === 'orphan') {
    findings.fail(
      `repository ${repository} lacks the history file of its newest timeline: nothing of that can be restored`,
      `holdfast wal push PATH, with the .history file of the primary's pg_wal; if it is lost: holdfast backup base ${cluster}`,
    );
  } else if (backups === 0) {
    if (present !== undefined) {
      findings.warn(
        `repository ${repository} has WAL of cluster ${cluster} and no base backup, so nothing can be restored`,
        `holdfast backup base ${cluster}`,
      );
    }
    return;
  } else if (isCutOff(account)) {
    const what =
      blocking.length === 0 ? 'a way from its backups to the present' : blocking.map(describeGap).join(', ');
    findings.fail(`repository ${repository} lacks ${what}: nothing behind that can be restored`, backup);
  }
  const past = gaps.length - blocking.length;
  if (past > 0) {
    findings.warn(
      `repository ${repository} has ${past} gap${past === 1 ? '' : 's'} of the past: times within cannot be restored`,
      `nothing brings them back; holdfast window ${cluster} shows what can be restored`,
    );
  }
}

const CAUSES: Readonly<Record<GapCause, string>> = {
  'never-archived': 'never archived',
  deleted: 'deleted after it was stored',
  damaged: 'damaged',
  'wal-level-minimal': 'wal_level was minimal',
  'slot-lost': 'the slot was lost',
  'removed-by-server': 'the server had removed it',
};

/** `0000… to 0000… (0/1000000 to 0/3000000; slot lost)`. */
export function describeGap({ first, last, fromLsn, toLsn, cause }: WalGap): string {
  const names = first === last ? first : `${first} to ${last}`;
  return `${names} (${formatLsn(fromLsn)} to ${formatLsn(toLsn)}; ${CAUSES[cause]})`;
}
