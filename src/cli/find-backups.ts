import type { Configuration, RepositoryConfiguration } from '../config/configuration.ts';
import { HoldfastError } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { type DamagedRecord, listBackups, listClusters } from '../repository/catalog.ts';
import type { CommandContext } from './command.ts';
import { namedRepository, openNamed } from './open-repository.ts';

export interface FoundBackup {
  repository: string;
  record: BackupRecord;
}

export interface FoundBackups {
  backups: FoundBackup[];
  damaged: (DamagedRecord & { repository: string })[];
  /** Repositories that could not be read, and why: their backups are unknown, not absent. */
  unread: { repository: string; error: HoldfastError }[];
}

/**
 * Every backup of one cluster, or of all, in one repository, or in all. A repository that cannot be read is reported
 * beside what the others hold; where none can be read its error is thrown.
 */
export async function findBackups(
  context: CommandContext,
  configuration: Configuration,
  filter: { cluster?: string; repository?: string },
): Promise<FoundBackups> {
  const found: FoundBackups = { backups: [], damaged: [], unread: [] };
  const repositories =
    filter.repository === undefined
      ? configuration.repositories
      : [namedRepository(configuration, filter.repository)];
  for (const repository of repositories) {
    try {
      await readRepository(context, configuration, repository, filter.cluster, found);
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      found.unread.push({ repository: repository.name, error });
    }
  }
  const [first] = found.unread;
  if (first !== undefined && found.unread.length === repositories.length) throw first.error;
  return found;
}

async function readRepository(
  context: CommandContext,
  configuration: Configuration,
  target: RepositoryConfiguration,
  cluster: string | undefined,
  found: FoundBackups,
): Promise<void> {
  const { environment, signal } = context;
  const repository = await openNamed(target, { configuration, environment, signal });
  for await (const identity of listClusters(repository, signal)) {
    if (cluster !== undefined && identity.cluster !== cluster) continue;
    const { backups, damaged } = await listBackups(repository, identity, signal);
    for (const record of backups) found.backups.push({ repository: target.name, record });
    for (const each of damaged) found.damaged.push({ ...each, repository: target.name });
  }
}
