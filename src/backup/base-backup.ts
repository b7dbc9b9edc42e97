import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';

import type { Clock } from '../clock.ts';
import { errorText, HoldfastError } from '../errors.ts';
import { BackupManifestReader, type ManifestEnd } from '../postgres/backup-manifest.ts';
import type { BackupStart } from '../postgres/base-backup-reader.ts';
import { type ControlData, readControlData } from '../postgres/control-data.ts';
import { formatLsn, type Lsn, parseLsn } from '../postgres/lsn.ts';
import { connectReplication, type ReplicationConnection } from '../postgres/replication.ts';
import { type BackupRecord, writeBackupRecord } from '../repository/backup-record.ts';
import { listBackups } from '../repository/catalog.ts';
import { type ClusterIdentity, FORMAT_VERSION } from '../repository/layout.ts';
import { packsOfChunks, writeChunks, writeIndex, writeReferences } from '../repository/map-index.ts';
import { PackWriter } from '../repository/pack-writer.ts';
import { PreviousBackup } from '../repository/previous-backup.ts';
import type { Repository } from '../repository/repository.ts';
import type { StoredObject } from '../repository/sealed-object.ts';
import { awaitWal, segmentsBetween } from './await-wal.ts';
import { makeBackupId } from './backup-id.ts';
import { BlockWriter } from './block-writer.ts';
import { LocalChunkCache } from './chunk-cache.ts';
import { CopySink } from './copy-sink.ts';
import { MapSpool } from './map-spool.ts';
import { beginRun } from './run-journal.ts';
import { isSealedAlike } from './sealed-alike.ts';

/** The unit of comparison and deduplication. Measured from 8 to 128 KiB: see docs/performance.md. */
const DEFAULT_BLOCK_BYTES = 16 * 1024;

/** The server that was chosen, as it looked when it was. */
export interface BackupServer {
  url: string;
  version: number;
  versionText: string;
  role: 'primary' | 'standby';
  /** Why this one. */
  reason: string;
}

export interface BaseBackupRequest {
  repository: Repository;
  identity: ClusterIdentity;
  server: BackupServer;
  label: string;
  pinned: boolean;
  /** Where the run journal, sort runs and, for sealed repositories, block maps are kept. */
  stateDirectory: string;
  programVersion: string;
  clock: Clock;
  /** How long WAL may take to arrive after the copy. */
  walTimeoutMs: number;
  blockSizeBytes?: number;
  /** Bytes per second. */
  maxRate?: number;
  /** Called once before waiting for WAL that is not there yet: a chance to end the segment. */
  endSegment?: () => Promise<void>;
  checkpoint?: 'fast' | 'spread';
  report: (event: BaseBackupEvent) => void;
  signal?: AbortSignal;
}

export type BaseBackupEvent =
  | {
      event: 'started';
      backupId: string;
      startLsn: string;
      previous: string | null;
      totalBytes: number | null;
    }
  | { event: 'progress'; doneBytes: number; totalBytes: number | null }
  | { event: 'waiting-for-wal'; segment: string }
  | { event: 'note'; text: string }
  | { event: 'warning'; text: string };

/**
 * Takes a base backup and stores it. When it resolves the backup is complete: every file compared with PostgreSQL's own
 * manifest, every segment of WAL from start to stop read back from the repository, every object durable, the record
 * written last. When it rejects there is no backup: nothing that looks like one is left, and what was stored is removed
 * now, or by the next run if this process dies. It may be tried again at any time.
 *
 * Pages whose checksum the server finds wrong do not hide the backup: it is stored, with the findings in its record
 * (`damagedPages`), and a warning is reported.
 */
export async function takeBaseBackup(request: BaseBackupRequest): Promise<BackupRecord> {
  const { repository, identity, clock, report, signal } = request;
  const startedAt = clock.now();
  const { backups } = await listBackups(repository, identity, signal);
  const newestId = backups
    .map(({ id }) => id)
    .sort()
    .at(-1);
  const backupId = makeBackupId(startedAt, newestId, randomBytes(2));
  const say = (text: string): void => report({ event: 'note', text });
  await mkdir(request.stateDirectory, { recursive: true, mode: 0o750 });
  await using run = await beginRun(repository, identity, backupId, request.stateDirectory, say);
  const scratch = await mkdtemp(join(request.stateDirectory, 'backup-'));
  try {
    const record = await copyAndCommit(request, { backupId, backups, startedAt, scratch });
    await removeStale(request);
    return record;
  } catch (error) {
    await run.discard().catch((cleaning: unknown) => {
      report({ event: 'warning', text: `what was stored could not be removed yet: ${errorText(cleaning)}` });
    });
    throw error;
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Nothing writes one object for a day. */
const STALE_MS = 24 * 60 * 60 * 1000;

/** Tidying is no part of the backup: where it fails the backup is as good as it was. */
async function removeStale({ repository, report, signal }: BaseBackupRequest): Promise<void> {
  try {
    const removed = await repository.storage.removeStale?.(STALE_MS, { ...(signal && { signal }) });
    if (removed !== undefined && removed.files > 0) {
      report({
        event: 'note',
        text: `removed ${removed.files} unfinished files that interrupted writers had left`,
      });
    }
  } catch (error) {
    report({
      event: 'warning',
      text: `unfinished files of interrupted writers could not be removed: ${errorText(error)}`,
    });
  }
}

interface RunFacts {
  backupId: string;
  backups: readonly BackupRecord[];
  startedAt: Date;
  scratch: string;
}

async function copyAndCommit(request: BaseBackupRequest, facts: RunFacts): Promise<BackupRecord> {
  const { repository, identity, clock, report, signal } = request;
  const { backupId } = facts;
  const blockSizeBytes = request.blockSizeBytes ?? DEFAULT_BLOCK_BYTES;
  await using connection = await connectReplication(request.server.url, {
    applicationName: `holdfast ${backupId}`,
    ...(signal && { signal }),
  });
  await assertIdentity(connection, identity);

  const cache =
    repository.sealer.kind === 'none'
      ? undefined
      : new LocalChunkCache(request.stateDirectory, repository, identity);
  const previous = await openPrevious(request, facts.backups, blockSizeBytes, cache);
  const blockPacks = new PackWriter(repository, identity, backupId, 'b', signal);
  await using spool = new MapSpool(facts.scratch);
  const blocks = new BlockWriter(blockPacks, previous, blockSizeBytes, (entry) => spool.add(entry));
  const copy = await copyFiles(request, connection, facts, { blocks, spool, previous }).catch(
    async (error: unknown) => {
      await blockPacks.abort(error);
      throw error;
    },
  );
  await blocks.finish();

  const { systemIdentifier } = copy.manifest;
  if (systemIdentifier !== undefined && systemIdentifier !== identity.systemIdentifier) {
    throw anotherCluster(connection.server, identity, systemIdentifier);
  }
  const mapPacks = new PackWriter(repository, identity, backupId, 'm', signal);
  const chunks = await writeChunks(
    spool.entries(),
    mapPacks,
    { get: (hash) => previous?.sharedChunk(hash) },
    (hash, plain) => cache?.keep(hash, plain),
  ).catch(async (error: unknown) => {
    await mapPacks.abort(error);
    throw error;
  });
  const index = await writeIndex(repository, identity, backupId, chunks, signal);
  const newPacks = [...blockPacks.packs, ...mapPacks.packs];
  const packs = usedPacks(newPacks, [...blocks.reusedPacks, ...packsOfChunks(identity, chunks)], previous);
  const references = await writeReferences(repository, identity, backupId, packs, signal);

  const { control, end, start } = copy;
  const segments = segmentsBetween(start.timeline, start.startLsn, end.stopLsn, control.walSegmentSize);
  await awaitWal({
    repository,
    identity,
    segments,
    stopLsn: end.stopLsn,
    clock,
    timeoutMs: request.walTimeoutMs,
    waiting: async (segment) => {
      report({ event: 'waiting-for-wal', segment });
      await request.endSegment?.().catch((error: unknown) => {
        report({ event: 'warning', text: `the WAL segment could not be ended: ${errorText(error)}` });
      });
    },
    ...(signal && { signal }),
  });
  const sum = (objects: readonly StoredObject[]): number =>
    objects.reduce((total, { sizeBytes }) => total + sizeBytes, 0);
  const {
    maxConnections,
    maxWorkerProcesses,
    maxWalSenders,
    maxPreparedTransactions,
    maxLocksPerTransaction,
  } = control.settings;
  const record: BackupRecord = {
    format: FORMAT_VERSION,
    kind: 'base',
    id: backupId,
    repositoryId: repository.id,
    cluster: identity.cluster,
    systemIdentifier: identity.systemIdentifier,
    label: request.label,
    pinned: request.pinned,
    holdfast: request.programVersion,
    startedAt: facts.startedAt.toISOString(),
    stoppedAt: copy.stoppedAt.toISOString(),
    startLsn: formatLsn(start.startLsn),
    stopLsn: formatLsn(end.stopLsn),
    timeline: start.timeline,
    server: {
      version: request.server.version,
      versionText: request.server.versionText,
      address: connection.server,
      role: request.server.role,
      reason: request.server.reason,
      walSegmentSizeBytes: control.walSegmentSize,
      blockSizeBytes: control.blockSize,
      catalogVersion: control.catalogVersion,
      dataChecksums: control.dataChecksumVersion !== 0,
      settings: {
        max_connections: maxConnections,
        max_worker_processes: maxWorkerProcesses,
        max_wal_senders: maxWalSenders,
        max_prepared_transactions: maxPreparedTransactions,
        max_locks_per_transaction: maxLocksPerTransaction,
      },
    },
    layout: { blockSizeBytes, hash: 'blake3-128', compression: 'zstd' },
    seal: { kind: repository.sealer.kind, recipients: [...repository.sealer.recipients] },
    files: { count: blocks.counts.files, sizeBytes: blocks.counts.sizeBytes },
    stored: {
      newBytes: sum(newPacks) + index.sizeBytes + references.sizeBytes,
      newBlocks: blocks.counts.newBlocks,
      blocks: blocks.counts.blocks,
      totalBytes: sum(packs),
    },
    tablespaces: start.tablespaces
      .filter(({ location }) => location.startsWith('/'))
      .map(({ oid, location }) => ({ oid, location: Buffer.from(location, 'latin1').toString('utf8') })),
    manifest: { version: copy.manifest.version, files: copy.manifest.fileCount },
    wal: { first: segments[0] ?? '', last: segments.at(-1) ?? '', count: segments.length },
    previous: previous?.record.id ?? null,
    damagedPages: copy.damagedPages,
    references,
    index,
  };
  await writeBackupRecord(repository.storage, record, signal);
  await cache?.commit(record, chunks).catch((error: unknown) => {
    report({ event: 'warning', text: `the next backup will be stored in full: ${errorText(error)}` });
  });
  if (copy.damagedPages.length > 0) {
    report({
      event: 'warning',
      text: `the server found damaged pages while it was backed up: ${copy.damagedPages.join('; ')}`,
    });
  }
  return record;
}

async function assertIdentity(connection: ReplicationConnection, identity: ClusterIdentity): Promise<void> {
  const { systemIdentifier } = await connection.identifySystem();
  if (systemIdentifier !== identity.systemIdentifier) {
    throw anotherCluster(connection.server, identity, systemIdentifier);
  }
}

function anotherCluster(server: string, identity: ClusterIdentity, found: string): HoldfastError {
  return new HoldfastError(
    'cluster-mismatch',
    `${server} is another cluster than it was: system identifier ${found} instead of ${identity.systemIdentifier}`,
    { hint: `see which server is behind ${server} now, then run "holdfast check ${identity.cluster}"` },
  );
}

async function openPrevious(
  request: BaseBackupRequest,
  backups: readonly BackupRecord[],
  blockSizeBytes: number,
  cache: LocalChunkCache | undefined,
): Promise<PreviousBackup | undefined> {
  const { sealer } = request.repository;
  const record = backups.findLast(
    ({ layout, seal }) => layout.blockSizeBytes === blockSizeBytes && isSealedAlike(seal, sealer),
  );
  if (record === undefined) return undefined;
  return PreviousBackup.open(request.repository, record, {
    say: (text) => request.report({ event: 'note', text }),
    ...(cache && { cache }),
    ...(request.signal && { signal: request.signal }),
  });
}

interface Copy {
  start: BackupStart;
  end: { stopLsn: Lsn };
  stoppedAt: Date;
  control: ControlData;
  manifest: ManifestEnd;
  damagedPages: string[];
}

/** Runs BASE_BACKUP into the block writer. */
async function copyFiles(
  request: BaseBackupRequest,
  connection: ReplicationConnection,
  facts: RunFacts,
  parts: { blocks: BlockWriter; spool: MapSpool; previous: PreviousBackup | undefined },
): Promise<Copy> {
  const { report } = request;
  const { blocks, spool, previous } = parts;
  const damagedPages: string[] = [];
  const manifest = new BackupManifestReader();
  const sink = new CopySink(blocks, manifest, spool, (start) => {
    report({
      event: 'started',
      backupId: facts.backupId,
      startLsn: formatLsn(start.startLsn),
      previous: previous?.record.id ?? null,
      totalBytes: estimatedBytes(start),
    });
    return (doneBytes) => report({ event: 'progress', doneBytes, totalBytes: estimatedBytes(start) });
  });
  const end = await connection
    .baseBackup(
      {
        label: request.label,
        checkpoint: request.checkpoint ?? 'fast',
        ...(request.maxRate !== undefined && { maxRate: request.maxRate }),
        onNotice: (message) => {
          if (damagedPages.length < 20) damagedPages.push(message);
        },
      },
      sink,
    )
    .then(({ stopLsn }) => ({ stopLsn, damaged: false }))
    .catch((error: unknown) => endDespiteDamage(error, damagedPages));
  if (sink.start === undefined || sink.control === undefined) {
    throw new HoldfastError('object-damaged', 'the server sent no pg_control: this is no whole backup');
  }
  const control = readControlData(sink.control);
  if (control.systemIdentifier !== request.identity.systemIdentifier) {
    throw anotherCluster(connection.server, request.identity, control.systemIdentifier);
  }
  return {
    start: sink.start,
    end,
    stoppedAt: request.clock.now(),
    control,
    manifest: manifest.finish(),
    damagedPages: end.damaged ? damagedPages : [],
  };
}

/** PostgreSQL reports damaged pages as an error after it has sent everything: the copy is whole all the same. */
function endDespiteDamage(error: unknown, messages: string[]): { stopLsn: Lsn; damaged: boolean } {
  if (!(error instanceof HoldfastError) || error.context['checksumFailures'] !== true) throw error;
  const { stopLsn } = error.context;
  if (typeof stopLsn !== 'string') throw error;
  messages.push(error.message);
  return { stopLsn: parseLsn(stopLsn), damaged: true };
}

/** Every pack the backup needs, own and older ones, each once, in order of keys. */
function usedPacks(
  own: readonly StoredObject[],
  usedKeys: readonly string[],
  previous: PreviousBackup | undefined,
): StoredObject[] {
  const packs = new Map(own.map((pack) => [pack.key, pack]));
  for (const key of usedKeys) {
    const older = previous?.packs.get(key);
    if (older !== undefined) packs.set(older.key, older);
  }
  return [...packs.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
}

function estimatedBytes(start: BackupStart): number | null {
  if (start.sizeBytes === undefined) return null;
  return Number(start.tablespaces.reduce((sum, { sizeBytes }) => sum + (sizeBytes ?? 0n), start.sizeBytes));
}
