import { type BackupRecord } from '../../repository/backup-record.ts';
import { listBackups, listClusters } from '../../repository/catalog.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHeader } from '../../repository/wal-file.ts';
import { listWal } from '../../repository/wal-listing.ts';

/** Which history of a cluster a repository has, for when no server can be asked. */
export interface KnownHistory {
  systemIdentifier: string;
  /** Bytes. */
  segmentSize: number;
}

/**
 * The history of a name in the repositories: of several, the one with the newest backup, else the last one listed.
 * Undefined where there is none, or nothing that tells its segment size.
 */
export async function findKnownHistory(
  repositories: readonly Repository[],
  cluster: string,
  signal: AbortSignal,
): Promise<KnownHistory | undefined> {
  let best: { known: KnownHistory; stoppedAt: string } | undefined;
  for (const repository of repositories) {
    for await (const identity of listClusters(repository, signal)) {
      if (identity.cluster !== cluster) continue;
      const { backups } = await listBackups(repository, identity, signal);
      const newest = newestOf(backups);
      const segmentSize =
        newest?.server.walSegmentSizeBytes ?? (await sizeOfSegment(repository, identity, signal));
      const stoppedAt = newest?.stoppedAt ?? '';
      if (segmentSize === undefined || (best !== undefined && stoppedAt < best.stoppedAt)) continue;
      best = { known: { systemIdentifier: identity.systemIdentifier, segmentSize }, stoppedAt };
    }
  }
  return best?.known;
}

function newestOf(backups: readonly BackupRecord[]): BackupRecord | undefined {
  return backups.reduce<BackupRecord | undefined>(
    (newest, one) => (newest === undefined || one.stoppedAt > newest.stoppedAt ? one : newest),
    undefined,
  );
}

async function sizeOfSegment(
  repository: Repository,
  identity: { cluster: string; systemIdentifier: string },
  signal: AbortSignal,
): Promise<number | undefined> {
  for await (const { kind, name } of listWal(repository, identity, { signal })) {
    if (kind !== 'segment') continue;
    return (await readWalHeader(repository, identity, name, signal))?.sizeBytes;
  }
  return undefined;
}
