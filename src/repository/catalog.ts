import { HoldfastError, errorText } from '../errors.ts';
import { parseLsn } from '../postgres/lsn.ts';
import { type BackupRecord, readBackupRecord } from './backup-record.ts';
import { listHistories } from './choose-cluster.ts';
import { type ClusterIdentity, isClusterName, recordsPrefix } from './layout.ts';
import type { Repository } from './repository.ts';

/** A record that is there and cannot be used. */
export interface DamagedRecord {
  key: string;
  backupId: string;
  reason: string;
}

export interface BackupList {
  /** By timeline, then by stop LSN: oldest first. */
  backups: BackupRecord[];
  damaged: DamagedRecord[];
}

const READS_IN_FLIGHT = 8;
const SYSTEM_IDENTIFIER = /^[1-9][0-9]{0,19}$/;

/**
 * Every history of every cluster that a repository holds anything of, sorted by name and system identifier; more than
 * one of a name where its data directory was once made anew. Folders that no Holdfast made are passed over.
 */
export async function* listClusters(
  repository: Repository,
  signal?: AbortSignal,
): AsyncGenerator<ClusterIdentity> {
  for await (const identity of listHistories(repository, signal)) {
    if (isClusterName(identity.cluster) && SYSTEM_IDENTIFIER.test(identity.systemIdentifier)) yield identity;
  }
}

/**
 * Every committed backup of one history. A record that is damaged or of a newer format is reported, not fatal: the others
 * can still be restored. A store that fails is.
 */
export async function listBackups(
  repository: Repository,
  identity: ClusterIdentity,
  signal?: AbortSignal,
): Promise<BackupList> {
  const prefix = recordsPrefix(identity);
  const ids: string[] = [];
  for await (const { key } of repository.storage.list(prefix, { ...(signal && { signal }) })) {
    const name = key.slice(prefix.length);
    if (name.endsWith('.json') && !name.includes('/')) ids.push(name.slice(0, -'.json'.length));
  }
  const backups: BackupRecord[] = [];
  const damaged: DamagedRecord[] = [];
  for (let at = 0; at < ids.length; at += READS_IN_FLIGHT) {
    const batch = ids.slice(at, at + READS_IN_FLIGHT);
    for (const { id, result } of await Promise.all(
      batch.map(async (id) => ({ id, result: await readTolerantly(repository, identity, id, signal) })),
    )) {
      if (typeof result === 'string')
        damaged.push({ key: `${prefix}${id}.json`, backupId: id, reason: result });
      else if (result !== undefined) backups.push(result);
    }
  }
  return { backups: sortBackups(backups), damaged };
}

async function readTolerantly(
  repository: Repository,
  identity: ClusterIdentity,
  id: string,
  signal: AbortSignal | undefined,
): Promise<BackupRecord | string | undefined> {
  try {
    const record = await readBackupRecord(repository.storage, identity, id, signal);
    parseLsn(record.startLsn);
    parseLsn(record.stopLsn);
    return record;
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
    // Expired between the listing and the reading.
    if (error.code === 'backup-unknown') return undefined;
    if (['object-damaged', 'format-too-new', 'usage-invalid'].includes(error.code)) return errorText(error);
    throw error;
  }
}

/** Oldest first: by timeline, then by stop LSN. */
function sortBackups(backups: readonly BackupRecord[]): BackupRecord[] {
  return [...backups].sort((a, b) => {
    if (a.timeline !== b.timeline) return a.timeline - b.timeline;
    const [left, right] = [parseLsn(a.stopLsn), parseLsn(b.stopLsn)];
    return left < right ? -1 : left > right ? 1 : a.id < b.id ? -1 : 1;
  });
}
