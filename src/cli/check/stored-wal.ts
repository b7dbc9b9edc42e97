import { errorText, HoldfastError } from '../../errors.ts';
import type { Lsn } from '../../postgres/lsn.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { segmentStart, walSegmentName } from '../../postgres/wal-segment.ts';
import { listBackups } from '../../repository/catalog.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { candidateOf } from '../../restore/choose-backup.ts';
import { branchesOf } from '../../restore/plan.ts';
import { reachableRanges } from '../../restore/reachable.ts';
import { readWalArchive } from '../../restore/wal-archive.ts';
import { findNewestWal, type FindNewestWalOptions, type NewestWal } from '../../wal/stored-end.ts';

/** WAL that is missing between other WAL. */
export interface WalGap {
  timeline: TimelineId;
  fromLsn: Lsn;
  /** Exclusive: where the WAL goes on. */
  toLsn: Lsn;
  /** First and last missing segment. */
  first: string;
  last: string;
  /** Nothing behind it can be restored: no backup was taken since. */
  present: boolean;
}

/** What a repository holds of a cluster's WAL. */
export interface StoredWal {
  repository: string;
  required: boolean;
  /** Undefined where there is none, or where it cannot be told. */
  newest: NewestWal | undefined;
  backups: number;
  gaps: readonly WalGap[];
  /** Why it cannot be told. */
  problem: string | undefined;
}

/** Reads where the WAL of a history ends in a repository, and where it has holes. Only a cancellation is thrown. */
export async function seeStoredWal(
  repository: Repository,
  required: boolean,
  identity: ClusterIdentity,
  options: FindNewestWalOptions,
): Promise<StoredWal> {
  const seen: StoredWal = {
    repository: repository.name,
    required,
    newest: undefined,
    backups: 0,
    gaps: [],
    problem: undefined,
  };
  try {
    const newest = await findNewestWal(repository, identity, options);
    return { ...seen, newest, ...(await seeGaps(repository, identity, newest, options)) };
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
    return { ...seen, problem: errorText(error) };
  }
}

async function seeGaps(
  repository: Repository,
  identity: ClusterIdentity,
  newest: NewestWal | undefined,
  { segmentSize, signal }: FindNewestWalOptions,
): Promise<Pick<StoredWal, 'gaps' | 'backups'>> {
  const { backups } = await listBackups(repository, identity, signal);
  if (backups.length === 0 || newest === undefined) return { gaps: [], backups: backups.length };
  const candidates = backups.map((record) => candidateOf(record));
  const timelines = candidates.map(({ timeline }) => timeline);
  const archive = await readWalArchive(repository, identity, segmentSize, timelines, signal);
  const gaps = new Map<string, WalGap>();
  for (const tip of await branchesOf(archive, candidates)) {
    const ranges = await reachableRanges(archive, archive.tree.path(tip), candidates);
    for (const [at, { end }] of ranges.entries()) {
      if (end.resumes === undefined) continue;
      const { missing, resumes } = end;
      gaps.set(missing.name, {
        timeline: missing.timeline,
        fromLsn: segmentStart(missing.segment, segmentSize),
        toLsn: segmentStart(resumes.segment, segmentSize),
        first: missing.name,
        last:
          resumes.segment - 1n <= missing.segment
            ? missing.name
            : walSegmentName(missing.timeline, resumes.segment - 1n, segmentSize),
        present: tip === newest.timeline && at === ranges.length - 1,
      });
    }
  }
  return {
    gaps: [...gaps.values()].sort((a, b) => Number(a.fromLsn - b.fromLsn)),
    backups: backups.length,
  };
}
