/** For tests of restore plans without a server: a repository in memory with synthetic WAL and backup records. */
import { type Lsn, formatLsn, lsnOf } from '../src/postgres/lsn.ts';
import { timelineOf } from '../src/postgres/timeline.ts';
import { lastSegmentBefore, segmentOfLsn, walSegmentName } from '../src/postgres/wal-segment.ts';
import { summarizeWalSegment } from '../src/postgres/wal-summary.ts';
import type { BackupRecord } from '../src/repository/backup-record.ts';
import type { ClusterIdentity } from '../src/repository/layout.ts';
import type { Repository } from '../src/repository/repository.ts';
import { storeWalFile } from '../src/repository/wal-file.ts';
import { compressFrames, piecesOf } from '../src/repository/wal-frames.ts';
import { formatInstant } from '../src/restore/instant.ts';
import { type WalArchive, readWalArchive } from '../src/restore/wal-archive.ts';
import { blake3Hex } from '../src/stream/hash.ts';
import { SEGMENT_SIZE, SYSTEM_IDENTIFIER, historyText, openTestRepository } from './wal-lab.ts';
import type { WalWriter } from './wal-writer.ts';

export const IDENTITY: ClusterIdentity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

/** 2026-01-01T00:00:00Z, in microseconds since 1970: where the clock of the synthetic server starts. */
export const EPOCH = 1_767_225_600_000_000n;

export async function createRestoreLab(): Promise<Repository> {
  return await openTestRepository();
}

/** Stores a file under its name, segments with their summary. */
export async function storeWal(
  repository: Repository,
  name: string,
  bytes: Buffer,
  summary?: Record<string, unknown>,
): Promise<void> {
  await storeWalFile(
    repository,
    IDENTITY,
    {
      name,
      sizeBytes: bytes.length,
      hash: blake3Hex(bytes),
      modifiedAt: new Date(0),
      frames: () => compressFrames(piecesOf(bytes)),
      ...(summary && { wal: summary }),
    },
    { host: 'test', now: () => new Date('2026-01-01T00:00:00Z') },
  );
}

export interface StoreOptions {
  timeline?: number;
  /** Segment numbers to leave out. */
  without?: readonly bigint[];
  /** First and last segment number to store; default all. */
  from?: bigint;
  to?: bigint;
  summaries?: boolean;
}

/** Stores what a writer wrote, segment by segment. */
export async function storeSegments(
  repository: Repository,
  writer: WalWriter,
  options: StoreOptions = {},
): Promise<void> {
  const { timeline = 1, without = [], summaries = true } = options;
  const first = segmentOfLsn(writer.start, SEGMENT_SIZE);
  for (const [index, bytes] of writer.segments().entries()) {
    const segment = first + BigInt(index);
    if (without.includes(segment)) continue;
    if (options.from !== undefined && segment < options.from) continue;
    if (options.to !== undefined && segment > options.to) continue;
    const start = lsnOf(segment * BigInt(SEGMENT_SIZE));
    const name = walSegmentName(timelineOf(timeline), segment, SEGMENT_SIZE);
    const summary = summarizeWalSegment(bytes, { start, segmentSize: SEGMENT_SIZE });
    await storeWal(repository, name, Buffer.from(bytes), summaries ? { ...summary } : undefined);
  }
}

export async function storeHistory(
  repository: Repository,
  timeline: number,
  ...ancestors: (readonly [number, Lsn])[]
): Promise<void> {
  const name = `${timeline.toString(16).toUpperCase().padStart(8, '0')}.history`;
  const text = historyText(...ancestors.map(([parent, lsn]) => [parent, formatLsn(lsn)] as const));
  await storeWal(repository, name, Buffer.from(text));
}

export interface WrittenBackup {
  start: Lsn;
  stop: Lsn;
  /** Time of its checkpoint, whole seconds in microseconds. */
  checkpointTime: bigint;
}

/** The WAL of a base backup: checkpoint, some records, its end, and the switch that follows. */
export function writeBackup(
  writer: WalWriter,
  time: bigint,
  between: () => void = () => undefined,
): WrittenBackup {
  const start = writer.filler(40).lsn;
  const seconds = time / 1_000_000n;
  writer.checkpoint({ shutdown: false, redo: start, seconds: Number(seconds) });
  between();
  const { endLsn } = writer.backupEnd(start);
  writer.switch();
  return { start, stop: endLsn, checkpointTime: seconds * 1_000_000n };
}

/** A record of such a backup. `id` sorts as given. */
export function backupRecord(
  id: string,
  { start, stop, checkpointTime }: WrittenBackup,
  more: Partial<BackupRecord> = {},
): BackupRecord {
  const timeline = timelineOf(more.timeline ?? 1);
  const [first, last] = [segmentOfLsn(start, SEGMENT_SIZE), lastSegmentBefore(stop, SEGMENT_SIZE)];
  const stored = { key: 'none', sizeBytes: 1, hash: '00' };
  return {
    format: 1,
    kind: 'base',
    id,
    repositoryId: 'test',
    cluster: IDENTITY.cluster,
    systemIdentifier: IDENTITY.systemIdentifier,
    label: '',
    pinned: false,
    holdfast: 'test',
    startedAt: formatInstant(checkpointTime),
    stoppedAt: formatInstant(checkpointTime + 2_000_000n),
    startLsn: formatLsn(start),
    stopLsn: formatLsn(stop),
    timeline,
    server: {
      version: 150018,
      versionText: '15.18',
      address: 'test',
      role: 'primary',
      reason: 'test',
      walSegmentSizeBytes: SEGMENT_SIZE,
      blockSizeBytes: 8192,
      catalogVersion: 202209061,
      dataChecksums: true,
      settings: {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
      },
    },
    layout: { blockSizeBytes: 32_768, hash: 'blake3-128', compression: 'zstd' },
    seal: { kind: 'none', recipients: [] },
    files: { count: 1, sizeBytes: 1000 },
    stored: { newBytes: 10, newBlocks: 1, blocks: 1, totalBytes: 10 },
    tablespaces: [],
    manifest: { version: 1, files: 1 },
    wal: {
      first: walSegmentName(timeline, first, SEGMENT_SIZE),
      last: walSegmentName(timeline, last, SEGMENT_SIZE),
      count: Number(last - first) + 1,
    },
    previous: null,
    damagedPages: [],
    references: stored,
    index: stored,
    ...more,
  };
}

export async function archiveOf(
  repository: Repository,
  backups: readonly BackupRecord[],
): Promise<WalArchive> {
  const timelines = backups.map(({ timeline }) => timelineOf(timeline));
  return await readWalArchive(repository, IDENTITY, SEGMENT_SIZE, timelines);
}
