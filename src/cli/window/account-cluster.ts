import type { Configuration, RepositoryConfiguration } from '../../config/configuration.ts';
import { HoldfastError } from '../../errors.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { lastSegmentBefore } from '../../postgres/wal-segment.ts';
import type { BackupRecord } from '../../repository/backup-record.ts';
import type { DamagedRecord } from '../../repository/catalog.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHighWater } from '../../repository/wal-high-water.ts';
import { type ArchiveAccount, accountArchive } from '../../restore/account-archive.ts';
import { createDigestCache } from '../../restore/digest-cache.ts';
import { type WalArchive, readWalArchive } from '../../restore/wal-archive.ts';
import type { CommandContext } from '../command.ts';
import { openArchive } from '../restore/open-archives.ts';

/** What one repository says of a cluster. */
export interface RepositoryAccount {
  repository: string;
  /** Undefined where it has nothing of the cluster, or could not be read. */
  account: ArchiveAccount | undefined;
  damaged: readonly DamagedRecord[];
  failure: HoldfastError | undefined;
}

export interface AccountRequest {
  stateDirectory: string;
  now: () => Date;
  signal?: AbortSignal | undefined;
}

/** Accounts for a cluster in each of the repositories. One that fails is described; a cancellation is thrown. */
export async function accountCluster(
  context: CommandContext,
  configuration: Configuration,
  repositories: readonly RepositoryConfiguration[],
  choice: { cluster: string; systemIdentifier: string | undefined },
): Promise<RepositoryAccount[]> {
  const request = {
    stateDirectory: configuration.stateDirectory,
    now: () => new Date(),
    signal: context.signal,
  };
  const found: RepositoryAccount[] = [];
  for (const target of repositories) {
    const none = { repository: target.name, account: undefined, damaged: [], failure: undefined };
    try {
      const opened = await openArchive(context, configuration, target, choice);
      if (opened === undefined) found.push(none);
      else {
        const account = await accountOpened(opened.archive, opened.backups, request);
        found.push({ ...none, account, damaged: opened.damaged });
      }
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      found.push({ ...none, failure: error });
    }
  }
  return found;
}

/**
 * Says what one repository can give back of one history: what is restorable, which gaps there are, whether the present
 * end is reachable. For `check` and `wal status`. `backups`: all that it has of the history. Throws the store's errors.
 */
export async function accountRepository(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  backups: readonly BackupRecord[],
  request: AccountRequest,
): Promise<ArchiveAccount> {
  const timelines = backups.map(({ timeline }) => timelineOf(timeline));
  const archive = await readWalArchive(repository, identity, segmentSize, timelines, request.signal);
  return await accountOpened(archive, backups, request);
}

async function accountOpened(
  opened: WalArchive,
  backups: readonly BackupRecord[],
  { stateDirectory, now, signal }: AccountRequest,
): Promise<ArchiveAccount> {
  const { repository, identity, segmentSize } = opened;
  const highWater = await readWalHighWater(stateDirectory, identity.systemIdentifier);
  let archive = opened;
  if (highWater !== undefined) {
    const listed = opened.ranges(timelineOf(highWater.timeline)).at(-1)?.last ?? -1n;
    // It may have been stored after it was listed: what is seen now was there before the mark was read.
    if (listed < lastSegmentBefore(highWater.endLsn, segmentSize)) {
      const timelines = backups.map(({ timeline }) => timelineOf(timeline));
      archive = await readWalArchive(repository, identity, segmentSize, timelines, signal);
    }
  }
  const cache = createDigestCache(stateDirectory, repository, identity);
  return await accountArchive(archive, backups, { cache, highWater, now, signal });
}
