/** Backups of made-up files, stored as `backup base` stores those of a server, without a server. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { BlockWriter } from '../../src/backup/block-writer.ts';
import { MapSpool } from '../../src/backup/map-spool.ts';
import { type BackupRecord, writeBackupRecord } from '../../src/repository/backup-record.ts';
import {
  blockCount,
  entryKey,
  FRAME_MAX_BYTES,
  type FrameLocation,
  HASH_BYTES,
  type MapEntry,
  SPAN_BLOCKS,
} from '../../src/repository/block-map.ts';
import { type ClusterIdentity, FORMAT_VERSION } from '../../src/repository/layout.ts';
import {
  type ChunkReference,
  packOf,
  packsOfChunks,
  readEntries,
  readReferences,
  writeChunks,
  writeIndex,
  writeReferences,
} from '../../src/repository/map-index.ts';
import { PackWriter } from '../../src/repository/pack-writer.ts';
import { type ChunkCache, PreviousBackup } from '../../src/repository/previous-backup.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { collect, openSealed, type StoredObject } from '../../src/repository/sealed-object.ts';
import { crc32c } from '../../src/stream/crc32c.ts';
import { blake3 } from '../../src/stream/hash.ts';
import { decompressBounded } from '../../src/stream/zstd.ts';

export const IDENTITY: ClusterIdentity = { cluster: 'app', systemIdentifier: '7000000000000000001' };

/** Content in the pieces it arrives in, or a directory. */
export type SyntheticEntry =
  | { path: string; pieces: Iterable<Buffer>; mode?: number }
  | { path: string; directory: true };

export interface SyntheticOptions {
  blockSizeBytes?: number;
  previous?: BackupRecord;
  cache?: ChunkCache & { keep?: (hash: string, plain: Buffer) => Promise<void> };
  /** Told why the previous backup, or a part of it, is of no use. */
  say?: (text: string) => void;
}

export interface SyntheticBackup {
  record: BackupRecord;
  chunks: ChunkReference[];
}

/** Stores and commits a backup of `entries`, which may come in any order. */
export async function storeFiles(
  repository: Repository,
  backupId: string,
  entries: Iterable<SyntheticEntry> | AsyncIterable<SyntheticEntry>,
  options: SyntheticOptions = {},
): Promise<SyntheticBackup> {
  const { blockSizeBytes = 8192, cache, say = () => undefined } = options;
  const scratch = await mkdtemp(join(tmpdir(), 'hf-synthetic-'));
  try {
    const previous =
      options.previous &&
      (await PreviousBackup.open(repository, options.previous, { say, ...(cache && { cache }) }));
    const blockPacks = new PackWriter(repository, IDENTITY, backupId, 'b');
    await using spool = new MapSpool(scratch);
    const blocks = new BlockWriter(blockPacks, previous, blockSizeBytes, (entry) => spool.add(entry));
    for await (const entry of entries) await feed(blocks, spool, entry);
    await blocks.finish();
    const mapPacks = new PackWriter(repository, IDENTITY, backupId, 'm');
    const chunks = await writeChunks(
      spool.entries(),
      mapPacks,
      { get: (hash) => previous?.sharedChunk(hash) },
      (hash, plain) => cache?.keep?.(hash, plain),
    );
    const index = await writeIndex(repository, IDENTITY, backupId, chunks);
    const packs = new Map([...blockPacks.packs, ...mapPacks.packs].map((pack) => [pack.key, pack]));
    for (const key of [...blocks.reusedPacks, ...packsOfChunks(IDENTITY, chunks)]) {
      const older = previous?.packs.get(key);
      if (older !== undefined) packs.set(older.key, older);
    }
    const references = await writeReferences(repository, IDENTITY, backupId, [...packs.values()]);
    const newPacks = [...blockPacks.packs, ...mapPacks.packs];
    const record = recordOf(repository, backupId, {
      blockSizeBytes,
      files: { count: blocks.counts.files, sizeBytes: blocks.counts.sizeBytes },
      stored: {
        newBytes: newPacks.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
        newBlocks: blocks.counts.newBlocks,
        blocks: blocks.counts.blocks,
        totalBytes: 0,
      },
      references,
      index,
    });
    await writeBackupRecord(repository.storage, record);
    return { record, chunks };
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

let lendable = Buffer.alloc(0);

/** One buffer for all pieces, as the socket has. */
function lend(piece: Buffer): Buffer {
  if (lendable.length < piece.length) lendable = Buffer.alloc(piece.length);
  piece.copy(lendable);
  return lendable.subarray(0, piece.length);
}

/** Leads one entry through a block writer, and into the manifest it is compared with. */
async function feed(blocks: BlockWriter, spool: MapSpool, entry: SyntheticEntry): Promise<void> {
  const { path } = entry;
  if ('directory' in entry) {
    const directory: MapEntry = { kind: 'directory', path, mode: 0o700 };
    blocks.other(directory);
    return;
  }
  await blocks.beginFile(path, entry.mode ?? 0o600);
  let crc = 0;
  let sizeBytes = 0;
  for (const piece of entry.pieces) {
    crc = crc32c(piece, crc);
    sizeBytes += piece.length;
    // What is written is the writer's only until it says so.
    const lent = lend(piece);
    await blocks.write(lent);
    lent.fill(0xee);
  }
  await blocks.endFile();
  await spool.addManifestFile({ path, sizeBytes, crc32c: crc });
}

interface Described {
  blockSizeBytes: number;
  files: BackupRecord['files'];
  stored: BackupRecord['stored'];
  references: StoredObject;
  index: StoredObject;
}

function recordOf(repository: Repository, id: string, described: Described): BackupRecord {
  const { blockSizeBytes, files, stored, references, index } = described;
  return {
    format: FORMAT_VERSION,
    kind: 'base',
    id,
    repositoryId: repository.id,
    ...IDENTITY,
    label: '',
    pinned: false,
    holdfast: '0.0.0',
    startedAt: '2026-01-01T00:00:00.000Z',
    stoppedAt: '2026-01-01T00:00:01.000Z',
    startLsn: '0/2000028',
    stopLsn: '0/2000100',
    timeline: 1,
    server: {
      version: 150018,
      versionText: '15.18',
      address: 'nowhere',
      role: 'primary',
      reason: '',
      walSegmentSizeBytes: 2 ** 24,
      blockSizeBytes: 8192,
      catalogVersion: 202209061,
      dataChecksums: true,
      settings: {},
    },
    layout: { blockSizeBytes, hash: 'blake3-128', compression: 'zstd' },
    seal: { kind: repository.sealer.kind, recipients: [...repository.sealer.recipients] },
    files,
    stored,
    tablespaces: [],
    manifest: { version: 1, files: files.count },
    wal: { first: '', last: '', count: 0 },
    previous: null,
    damagedPages: [],
    references,
    index,
  };
}

/**
 * Reads every file of a backup by the format alone, the plain way: whole packs, one frame at a time, each block's hash
 * checked. Throws where the backup is not whole.
 */
export async function readFiles(repository: Repository, record: BackupRecord): Promise<Map<string, Buffer>> {
  const packs = await readReferences(repository, record);
  const plainPacks = new Map<string, Buffer>();
  const plainFrames = new Map<string, Buffer>();
  const frameOf = async ({ run, pack, offset, bytes }: FrameLocation): Promise<Buffer> => {
    const stored = packOf(packs, record, run, 'b', pack);
    let plain = plainPacks.get(stored.key);
    plain ??= await collect(openSealed(repository, stored), 2 ** 30, stored.key);
    plainPacks.set(stored.key, plain);
    const key = `${stored.key} ${offset}`;
    let frame = plainFrames.get(key);
    frame ??= await decompressBounded(plain.subarray(offset, offset + bytes), FRAME_MAX_BYTES);
    plainFrames.set(key, frame);
    return frame;
  };

  const { blockSizeBytes } = record.layout;
  const files = new Map<string, { sizeBytes: number; crc: number; done: number; parts: Buffer[] }>();
  let last = '';
  for await (const entry of readEntries(repository, record, packs)) {
    const key = entryKey(entry);
    if (key <= last && last !== '') throw new Error(`${JSON.stringify(key)} is out of order`);
    last = key;
    if (entry.kind === 'file')
      files.set(entry.path, { sizeBytes: entry.sizeBytes, crc: entry.crc32c, done: 0, parts: [] });
    if (entry.kind !== 'file' && entry.kind !== 'span') continue;
    const file = files.get(entry.path);
    if (file === undefined) throw new Error(`a span of no file: ${entry.path}`);
    if (entry.kind === 'span' && blockCount(entry.extents) > SPAN_BLOCKS)
      throw new Error('a span is too long');
    for (const extent of entry.extents) {
      if ('zeroBlocks' in extent) {
        const zeros = Math.min(extent.zeroBlocks * blockSizeBytes, file.sizeBytes - file.done);
        file.parts.push(Buffer.alloc(zeros));
        file.done += zeros;
        continue;
      }
      const frame = await frameOf(extent.frame);
      const blocks = extent.hashes.length / HASH_BYTES;
      const bytes = Math.min(blocks * blockSizeBytes, file.sizeBytes - file.done);
      const content = frame.subarray(extent.plainOffset, extent.plainOffset + bytes);
      for (let block = 0; block < blocks; block += 1) {
        const hash = blake3(content.subarray(block * blockSizeBytes, (block + 1) * blockSizeBytes));
        const wanted = extent.hashes.subarray(block * HASH_BYTES, (block + 1) * HASH_BYTES);
        if (!hash.subarray(0, HASH_BYTES).equals(wanted))
          throw new Error(`${entry.path}: a block is another`);
      }
      file.parts.push(content);
      file.done += content.length;
    }
  }
  const contents = new Map<string, Buffer>();
  for (const [path, { sizeBytes, crc, parts }] of files) {
    const content = Buffer.concat(parts);
    if (content.length !== sizeBytes || crc32c(content) !== crc) throw new Error(`${path} is not whole`);
    contents.set(path, content);
  }
  return contents;
}
