import { HoldfastError } from '../errors.ts';
import type { SealKind } from '../seal/sealer.ts';
import { encodeClearObject, readClearObject } from './clear-object.ts';
import type { StoredObject } from './sealed-object.ts';
import { type ClusterIdentity, FORMAT_VERSION, recordKey, runPrefix } from './layout.ts';
import type { Storage } from '../storage/storage.ts';

/**
 * The small clear object that commits a base backup; written last. Times are RFC 3339 UTC, LSNs as PostgreSQL prints
 * them, sizes in bytes. Nothing in it needs a key to be read.
 */
export interface BackupRecord {
  format: number;
  kind: 'base';
  id: string;
  repositoryId: string;
  cluster: string;
  systemIdentifier: string;
  label: string;
  pinned: boolean;
  /** Version of the program that wrote it. */
  holdfast: string;
  /** By the clock of the host that ran it. */
  startedAt: string;
  stoppedAt: string;
  startLsn: string;
  stopLsn: string;
  /** Timeline of the start; BASE_BACKUP fails if it changes before the stop. */
  timeline: number;
  server: {
    version: number;
    versionText: string;
    /** host:port or socket directory; never credentials. */
    address: string;
    role: 'primary' | 'standby';
    /** Why this server was taken. */
    reason: string;
    walSegmentSizeBytes: number;
    blockSizeBytes: number;
    catalogVersion: number;
    dataChecksums: boolean;
    /** Settings that a hot standby needs at least as high as the primary had them, from pg_control. */
    settings: Record<string, number>;
  };
  layout: { blockSizeBytes: number; hash: 'blake3-128'; compression: 'zstd' };
  seal: { kind: SealKind; recipients: string[] };
  files: { count: number; sizeBytes: number };
  stored: {
    /** What this run added to the repository. */
    newBytes: number;
    newBlocks: number;
    blocks: number;
    /** Stored size of every pack it uses, older ones included. */
    totalBytes: number;
  };
  tablespaces: { oid: number; location: string }[];
  /** PostgreSQL's own backup manifest, compared with what arrived. */
  manifest: { version: number; files: number };
  /** First and last segment that must be replayed to reach consistency. */
  wal: { first: string; last: string; count: number };
  previous: string | null;
  /** What the server said of pages with wrong checksums; empty for a clean backup. */
  damagedPages: string[];
  references: StoredObject;
  index: StoredObject;
}

/** Powers of two from 4 KiB to 1 MiB: a block fits in a frame. */
const BLOCK_SIZES = Array.from({ length: 9 }, (_, n) => 4096 * 2 ** n);
const RECORD_MAX_BYTES = 4 * 1024 * 1024;

/** Reads one record. `backup-unknown` where there is none, `object-damaged` where it is not what its key says. */
export async function readBackupRecord(
  storage: Storage,
  identity: ClusterIdentity,
  backupId: string,
  signal?: AbortSignal,
): Promise<BackupRecord> {
  const key = recordKey(identity, backupId);
  const parsed = await readClearObject(storage, key, RECORD_MAX_BYTES, signal);
  if (parsed === undefined) {
    throw new HoldfastError(
      'backup-unknown',
      `there is no backup ${backupId} of cluster ${identity.cluster}`,
      {
        hint: `run "holdfast list ${identity.cluster}" to see which there are`,
      },
    );
  }
  return checkRecord(parsed, key, identity, backupId);
}

/**
 * Commits a backup: durable when it resolves. Everything the record refers to must be durable before. A store that fails
 * may have taken the record all the same; then the backup is committed and this resolves.
 */
export async function writeBackupRecord(
  storage: Storage,
  record: BackupRecord,
  signal?: AbortSignal,
): Promise<void> {
  const key = recordKey(record, record.id);
  const bytes = encodeClearObject({ ...record });
  try {
    const { created } = await storage.put(key, bytes, { ifAbsent: true, ...(signal && { signal }) });
    if (!created) throw new HoldfastError('assertion', `backup record ${key} exists already`);
  } catch (error) {
    if (!(await isCommitted(storage, key, bytes).catch(() => false))) throw error;
  }
}

async function isCommitted(storage: Storage, key: string, bytes: Buffer): Promise<boolean> {
  const chunks: Buffer[] = [];
  for await (const chunk of storage.get(key)) chunks.push(chunk);
  if (!Buffer.concat(chunks).equals(bytes)) return false;
  await storage.confirm(key);
  return true;
}

/** Holds a parsed object to the shape of a record, and to the place it was found at. */
function checkRecord(
  parsed: Record<string, unknown>,
  key: string,
  identity: ClusterIdentity,
  backupId: string,
): BackupRecord {
  const damaged = (what: string): never => {
    throw new HoldfastError('object-damaged', `the backup record ${key} is damaged: ${what}`, {
      hint: 'use another backup or another repository',
      context: { key },
    });
  };
  if (parsed['format'] !== FORMAT_VERSION) damaged(`format ${String(parsed['format'])}`);
  const record = parsed as unknown as BackupRecord;
  for (const [name, type] of RECORD_FIELDS) {
    if (typeof parsed[name] !== type) damaged(`"${name}" is missing or no ${type}`);
  }
  if (record.kind !== 'base') damaged('its kind is not base');
  if (record.id !== backupId || record.cluster !== identity.cluster) damaged('it belongs to another place');
  if (record.systemIdentifier !== identity.systemIdentifier)
    damaged('it belongs to another system identifier');
  for (const object of [record.references, record.index]) {
    if (
      typeof object?.key !== 'string' ||
      typeof object.hash !== 'string' ||
      !Number.isSafeInteger(object.sizeBytes)
    ) {
      damaged('an object it refers to is not described');
    }
  }
  const { hash, blockSizeBytes } = record.layout;
  if (hash !== 'blake3-128' || !BLOCK_SIZES.includes(blockSizeBytes)) damaged('its layout is unknown');
  const own = runPrefix(identity, backupId);
  if (!record.references.key.startsWith(own) || !record.index.key.startsWith(own)) {
    damaged('it refers to objects of another place');
  }
  return record;
}

const RECORD_FIELDS = [
  ['id', 'string'],
  ['repositoryId', 'string'],
  ['cluster', 'string'],
  ['systemIdentifier', 'string'],
  ['startedAt', 'string'],
  ['stoppedAt', 'string'],
  ['startLsn', 'string'],
  ['stopLsn', 'string'],
  ['timeline', 'number'],
  ['server', 'object'],
  ['layout', 'object'],
  ['seal', 'object'],
  ['files', 'object'],
  ['stored', 'object'],
  ['tablespaces', 'object'],
  ['manifest', 'object'],
  ['wal', 'object'],
  ['damagedPages', 'object'],
] as const;
