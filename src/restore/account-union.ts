import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import type { ArchiveAccount, RangeEnd } from './account-archive.ts';
import type { AccountGap, PresentEnd } from './accounting.ts';
import { type TimelinePath, describePath } from './timelines.ts';

/** What can be restored along a path from one repository or another; recovery never mixes two of them. */
export interface UnionRange {
  tip: TimelineId;
  path: TimelinePath;
  from: Lsn;
  to: Lsn;
  /** Which repositories reach any of it. */
  repositories: string[];
}

/** Whether the newest WAL that any repository knows of can be restored from at least one. */
export interface PresentVerdict {
  state: PresentEnd['state'];
  timeline: TimelineId;
  /** End of the WAL that is known of. */
  lsn: Lsn | undefined;
  /** The repositories that reach it. */
  repositories: string[];
  /** The newest commit that can be restored, and where. */
  recoveryPoint: (RangeEnd & { repository: string }) | undefined;
}

/** Repositories are written one after another: one that is this many segments behind another is taken for up to date. */
const IN_STEP = 2n;

/** Judges the present over all repositories. Undefined where none has anything. Pure. */
export function judgePresent(accounts: readonly ArchiveAccount[]): PresentVerdict | undefined {
  const seen = accounts.flatMap((one) => (one.account.present === undefined ? [] : [one.account.present]));
  const timeline = seen.reduce<TimelineId | undefined>(
    (newest, one) => (newest === undefined || one.timeline > newest ? one.timeline : newest),
    undefined,
  );
  if (timeline === undefined) return undefined;
  const newest = seen.filter((one) => one.timeline === timeline);
  const lsn = newest.reduce<Lsn | undefined>(
    (end, one) => (one.lsn !== undefined && (end === undefined || one.lsn > end) ? one.lsn : end),
    undefined,
  );
  const inStep = ({ archive, account: { present } }: ArchiveAccount): boolean =>
    present?.state === 'reachable' &&
    present.timeline === timeline &&
    (lsn === undefined ||
      (present.lsn !== undefined && lsn - present.lsn <= IN_STEP * BigInt(archive.segmentSize)));
  const repositories = accounts.filter(inStep).map(({ archive }) => archive.repository.name);
  const order: readonly PresentEnd['state'][] = ['gap', 'orphan', 'no-backup', 'unknown'];
  const state =
    repositories.length > 0
      ? 'reachable'
      : (order.find((one) => newest.some((present) => present.state === one)) ?? 'gap');
  return { state, timeline, lsn, repositories, recoveryPoint: newestPoint(accounts) };
}

/** The end of the stretch that reaches furthest on the newest timeline it reaches. */
function newestPoint(accounts: readonly ArchiveAccount[]): PresentVerdict['recoveryPoint'] {
  let best: PresentVerdict['recoveryPoint'];
  for (const { archive, account, ends } of accounts) {
    const range = account.present?.range;
    const end = range && ends.get(range);
    if (end === undefined) continue;
    const isFurther =
      best === undefined ||
      end.timeline > best.timeline ||
      (end.timeline === best.timeline && end.lsn > best.lsn);
    if (isFurther) best = { ...end, repository: archive.repository.name };
  }
  return best;
}

/** The other repositories that have all segments of a gap, usable. Pure. */
export function filledBy(
  gap: AccountGap,
  own: ArchiveAccount,
  accounts: readonly ArchiveAccount[],
): string[] {
  return accounts
    .filter((other) => {
      if (other === own || other.archive.identity.systemIdentifier !== own.archive.identity.systemIdentifier)
        return false;
      const isBroken = other.account.gaps.some(
        (one) => one.timeline === gap.timeline && one.fromLsn < gap.toLsn && gap.fromLsn < one.toLsn,
      );
      const ranges = other.archive.ranges(gap.timeline);
      return !isBroken && ranges.some(({ first, last }) => first <= gap.first && gap.last <= last);
    })
    .map(({ archive }) => archive.repository.name);
}

/** The ranges of all repositories joined, path by path. Pure. */
export function unionRanges(accounts: readonly ArchiveAccount[]): UnionRange[] {
  const byPath = new Map<string, UnionRange[]>();
  for (const { account, archive } of accounts) {
    for (const { tip, path, ranges } of account.branches) {
      const key = `${archive.identity.systemIdentifier} ${describePath(path)}`;
      const known = byPath.get(key) ?? [];
      for (const { backups, bound } of ranges) {
        const repositories = [archive.repository.name];
        known.push({ tip, path, from: backups[0].stop, to: bound, repositories });
      }
      byPath.set(key, known);
    }
  }
  return [...byPath.values()].flatMap((ranges) => joined(ranges));
}

function joined(ranges: readonly UnionRange[]): UnionRange[] {
  const result: UnionRange[] = [];
  for (const range of [...ranges].sort((a, b) => (a.from < b.from ? -1 : a.from > b.from ? 1 : 0))) {
    const last = result.at(-1);
    if (last === undefined || range.from > last.to) {
      result.push({ ...range });
      continue;
    }
    if (range.to > last.to) last.to = range.to;
    last.repositories = [...new Set([...last.repositories, ...range.repositories])];
  }
  return result;
}
