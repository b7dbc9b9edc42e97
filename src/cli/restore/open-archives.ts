import type { Configuration, RepositoryConfiguration } from '../../config/configuration.ts';
import { HoldfastError } from '../../errors.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import type { BackupRecord } from '../../repository/backup-record.ts';
import { type DamagedRecord, listBackups, listClusters } from '../../repository/catalog.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import { type WalArchive, readWalArchive } from '../../restore/wal-archive.ts';
import type { CommandContext } from '../command.ts';
import { openNamed } from '../open-repository.ts';

/** One history of a cluster in one repository: its backups and its WAL. */
export interface OpenArchive {
  archive: WalArchive;
  backups: BackupRecord[];
  damaged: DamagedRecord[];
}

export interface ArchiveChoice {
  cluster: string;
  backupId?: string | undefined;
  systemIdentifier?: string | undefined;
}

/**
 * Opens what a repository holds of a cluster. Where its data directory was once made anew there are several histories:
 * the one of the given backup or identifier, else the one with the newest backup. Undefined where there is none.
 */
export async function openArchive(
  context: CommandContext,
  configuration: Configuration,
  target: RepositoryConfiguration,
  choice: ArchiveChoice,
): Promise<OpenArchive | undefined> {
  const { environment, signal } = context;
  const repository = await openNamed(target, { configuration, environment, signal });
  let best: { identity: ClusterIdentity; backups: BackupRecord[]; damaged: DamagedRecord[] } | undefined;
  const others: string[] = [];
  for await (const identity of listClusters(repository, signal)) {
    if (identity.cluster !== choice.cluster) continue;
    if (choice.systemIdentifier !== undefined && identity.systemIdentifier !== choice.systemIdentifier)
      continue;
    const { backups, damaged } = await listBackups(repository, identity, signal);
    const found = { identity, backups, damaged };
    const wanted = choice.backupId !== undefined && backups.some(({ id }) => id === choice.backupId);
    if (
      best === undefined ||
      wanted ||
      (newest(backups) > newest(best.backups) && !holds(best.backups, choice))
    ) {
      if (best !== undefined) others.push(best.identity.systemIdentifier);
      best = found;
    } else others.push(identity.systemIdentifier);
  }
  if (best === undefined) return undefined;
  if (others.length > 0) {
    context.output.note(
      `${choice.cluster} has several histories in ${target.name}: taking system identifier ${best.identity.systemIdentifier} (others: ${others.join(', ')}; --system-identifier chooses)`,
    );
  }
  const segmentSize = best.backups[0]?.server.walSegmentSizeBytes;
  if (segmentSize === undefined) {
    const [damage] = best.damaged;
    throw new HoldfastError(
      damage === undefined ? 'target-unreachable' : 'object-damaged',
      damage === undefined
        ? `repository ${target.name} has no base backup of cluster ${choice.cluster}`
        : `no backup of cluster ${choice.cluster} in repository ${target.name} can be used: ${damage.reason}`,
      { hint: `make one: holdfast backup base ${choice.cluster}` },
    );
  }
  const timelines = best.backups.map(({ timeline }) => timelineOf(timeline));
  const archive = await readWalArchive(repository, best.identity, segmentSize, timelines, signal);
  return { archive, backups: best.backups, damaged: best.damaged };
}

function newest(backups: readonly BackupRecord[]): string {
  return backups.reduce((latest, { stoppedAt }) => (stoppedAt > latest ? stoppedAt : latest), '');
}

function holds(backups: readonly BackupRecord[], { backupId }: ArchiveChoice): boolean {
  return backupId !== undefined && backups.some(({ id }) => id === backupId);
}
