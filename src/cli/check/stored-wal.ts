import { errorText, HoldfastError } from '../../errors.ts';
import type { Lsn } from '../../postgres/lsn.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { walSegmentName } from '../../postgres/wal-segment.ts';
import { listBackups, listClusters } from '../../repository/catalog.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import type { PresentEnd } from '../../restore/accounting.ts';
import type { GapCause } from '../../restore/gap-causes.ts';
import { findNewestWal, type FindNewestWalOptions, type NewestWal } from '../../wal/stored-end.ts';
import { accountRepository } from '../window/account-cluster.ts';

/** WAL that is missing between other WAL, or cannot be recovered. */
export interface WalGap {
  timeline: TimelineId;
  fromLsn: Lsn;
  /** Exclusive. */
  toLsn: Lsn;
  /** First and last segment. */
  first: string;
  last: string;
  cause: GapCause;
  detail: string;
  /** Nothing behind it can be restored: no backup was taken since. */
  present: boolean;
}

/** Where the WAL of a cluster ends in a repository. */
export interface StoredWal {
  repository: string;
  required: boolean;
  /** Undefined where there is none, or where it cannot be told. */
  newest: NewestWal | undefined;
  /** System identifiers of other histories under the cluster's name, where there is nothing of the server's own. */
  others: readonly string[];
  /** Why it cannot be told. */
  problem: string | undefined;
}

/** What of a repository's WAL can be restored. */
export interface WalAccount {
  backups: number;
  /** By timeline and position. */
  gaps: readonly WalGap[];
  /** Whether the newest WAL can be restored; undefined where there is none. */
  present: PresentEnd['state'] | undefined;
}

export const NO_ACCOUNT: WalAccount = { backups: 0, gaps: [], present: undefined };

/** Reads where the WAL of a history ends in a repository. Only a cancellation is thrown. */
export async function seeStoredWal(
  repository: Repository,
  required: boolean,
  identity: ClusterIdentity,
  options: FindNewestWalOptions,
): Promise<StoredWal> {
  const nothing: string[] = [];
  const seen = {
    repository: repository.name,
    required,
    newest: undefined,
    others: nothing,
    problem: undefined,
  };
  try {
    const newest = await findNewestWal(repository, identity, options);
    return {
      ...seen,
      newest,
      others: newest === undefined ? await othersOf(repository, identity, options) : [],
    };
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
    return { ...seen, problem: errorText(error) };
  }
}

async function othersOf(
  repository: Repository,
  identity: ClusterIdentity,
  { signal }: FindNewestWalOptions,
): Promise<string[]> {
  const others: string[] = [];
  for await (const { cluster, systemIdentifier } of listClusters(repository, signal)) {
    const isOther = cluster === identity.cluster && systemIdentifier !== identity.systemIdentifier;
    if (isOther) others.push(systemIdentifier);
  }
  return others;
}

export interface SeeAccountOptions {
  segmentSize: number;
  stateDirectory: string;
  signal: AbortSignal;
}

/**
 * Accounts for every segment of a history in a repository, from listings and the headers that this host does not remember.
 * Throws as the store does.
 */
export async function seeAccount(
  repository: Repository,
  identity: ClusterIdentity,
  { segmentSize, stateDirectory, signal }: SeeAccountOptions,
): Promise<WalAccount> {
  const { backups } = await listBackups(repository, identity, signal);
  const { account } = await accountRepository(repository, identity, segmentSize, backups, {
    stateDirectory,
    now: () => new Date(),
    signal,
  });
  return {
    backups: backups.length,
    present: account.present?.state,
    gaps: account.gaps.map((gap) => ({
      timeline: gap.timeline,
      fromLsn: gap.fromLsn,
      toLsn: gap.toLsn,
      first: walSegmentName(gap.timeline, gap.first, segmentSize),
      last: walSegmentName(gap.timeline, gap.last, segmentSize),
      cause: gap.cause,
      detail: gap.detail,
      present: gap.blocking,
    })),
  };
}
