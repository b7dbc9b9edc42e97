import { rm } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';

import { throwIfCancelled } from '../cancellation.ts';
import { assert, HoldfastError, systemErrorCode } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import {
  type Extent,
  HASH_BYTES,
  type MapEntry,
  SPAN_BLOCKS,
  type StoredExtent,
} from '../repository/block-map.ts';
import { readEntries, readReferences } from '../repository/map-index.ts';
import type { Repository } from '../repository/repository.ts';
import type { StoredObject } from '../repository/sealed-object.ts';
import { ExternalSort } from '../stream/external-sort.ts';
import { blake3 } from '../stream/hash.ts';
import {
  CONTROL_FILE,
  DataTree,
  type FileOwner,
  PENDING_CONTROL_FILE,
  syncDirectory,
  walkTree,
  withdrawControlFile,
} from './data-tree.ts';
import {
  assertTablespacesAreFree,
  claimTablespaces,
  rewriteTablespaceMap,
  type TablespacePlaces,
} from './tablespaces.ts';
import { writeFrames } from './write-frames.ts';
import { encodeWanted } from './wanted-blocks.ts';

export interface WriteFilesOptions {
  repository: Repository;
  record: BackupRecord;
  /** Exists; empty unless `delta`. */
  targetDirectory: string;
  /** New location by old location, for every tablespace of the record that lies outside the data directory. */
  tablespaceMapping: ReadonlyMap<string, string>;
  /** Keep what is there already and right, replace what differs, remove what the backup does not have. */
  delta: boolean;
  owner?: FileOwner;
  /** For sort runs; a file system with some room. */
  scratchDirectory: string;
  signal?: AbortSignal;
  progress?: (doneBytes: number, totalBytes: number) => void;
}

export interface WrittenFiles {
  files: number;
  bytesWritten: number;
  bytesKept: number;
  /** Removed because the backup does not have them (`delta`). */
  removed: number;
}

/**
 * Writes all files of a base backup. Each block is checked against its hash before it is written; when this resolves
 * every byte is accounted for and on disk (files and directories fsynced), and only `commitDataDirectory` is missing to
 * make it a data directory. Any doubt throws; running it again with `delta` continues.
 */
export async function writeBackupFiles(options: WriteFilesOptions): Promise<WrittenFiles> {
  const { repository, record, signal } = options;
  const packs = await readReferences(repository, record, signal);
  const locations = new Map(
    record.tablespaces.map(({ oid, location }) => [oid, options.tablespaceMapping.get(location) ?? location]),
  );
  const places: TablespacePlaces = {
    root: options.targetDirectory,
    locations,
    versionPrefix: versionPrefixOf(record),
    delta: options.delta,
    ...(options.owner && { owner: options.owner }),
  };
  const tree = new DataTree({ ...places, tablespaces: locations });
  await assertTablespacesAreFree(places);
  if (options.delta) await withdrawControlFile(options.targetDirectory);
  await claimTablespaces(places);
  await using wanted = new ExternalSort(options.scratchDirectory);
  const planned = await layOut(options, tree, packs, wanted);
  const progress = (done: number): void =>
    options.progress?.(planned.bytesKept + done, record.files.sizeBytes);
  const bytesWritten = await writeFrames({
    repository,
    record,
    packs,
    tree,
    wanted: wanted.sorted(),
    progress,
    ...(signal && { signal }),
  });
  if (bytesWritten !== planned.bytesWanted) {
    throw new HoldfastError(
      'restore-incomplete',
      `${bytesWritten} bytes were written where ${planned.bytesWanted} were due`,
    );
  }
  const removed = options.delta ? await removeOthers(options, tree, packs) : 0;
  if (record.tablespaces.some(({ oid, location }) => locations.get(oid) !== location)) {
    await rewriteTablespaceMap(places);
  }
  await syncAll(options, tree, packs);
  return { files: planned.files, bytesWritten, bytesKept: planned.bytesKept, removed };
}

interface Planned {
  files: number;
  /** Bytes that must come out of packs. */
  bytesWanted: number;
  /** Bytes that are right already, holes included. */
  bytesKept: number;
}

/** Makes directories, links and files of their full size, and notes which blocks are wanted. */
async function layOut(
  options: WriteFilesOptions,
  tree: DataTree,
  packs: ReadonlyMap<string, StoredObject>,
  wanted: ExternalSort,
): Promise<Planned> {
  const { record } = options;
  const blockSize = record.layout.blockSizeBytes;
  const planned: Planned = { files: 0, bytesWanted: 0, bytesKept: 0 };
  await using current = new CurrentFile(blockSize);
  for await (const entry of readEntries(options.repository, record, packs, options.signal)) {
    throwIfCancelled(options.signal);
    switch (entry.kind) {
      case 'directory':
        await tree.directory(entry.path, entry.mode);
        break;
      case 'file':
        await current.next(entry, await tree.createFile(entry.path, entry.mode), options.delta);
        planned.files += 1;
        break;
      case 'span':
        break;
    }
    if (entry.kind !== 'file' && entry.kind !== 'span') continue;
    for (const { extent, offset, bytes } of current.extents(entry)) {
      const missing =
        'zeroBlocks' in extent
          ? await current.clear(offset, bytes)
          : await current.missing(extent, offset, bytes);
      planned.bytesKept += bytes;
      for (const part of missing) {
        planned.bytesKept -= part.bytes;
        planned.bytesWanted += part.bytes;
        await wanted.add(...encodeWanted({ ...part, path: entry.path }));
      }
    }
  }
  await current.close();
  if (
    planned.files !== record.files.count ||
    planned.bytesKept + planned.bytesWanted !== record.files.sizeBytes
  ) {
    throw new HoldfastError(
      'object-damaged',
      `the block map of backup ${record.id} does not add up to what its record says`,
      {
        hint: 'use another backup or another repository',
      },
    );
  }
  return planned;
}

interface Missing {
  frame: StoredExtent['frame'];
  plainOffset: number;
  fileOffset: number;
  bytes: number;
  hashes: Buffer;
}

/** The file whose entries are being read: its size, how far its blocks have come, what it holds already. */
class CurrentFile implements AsyncDisposable {
  readonly #blockSize: number;
  #handle: FileHandle | undefined;
  #path = '';
  #sizeBytes = 0;
  #position = 0;
  #existingBytes = 0;

  constructor(blockSize: number) {
    this.#blockSize = blockSize;
  }

  async next(entry: { path: string; sizeBytes: number }, handle: FileHandle, delta: boolean): Promise<void> {
    try {
      await this.close();
    } finally {
      this.#handle = handle;
    }
    this.#path = entry.path;
    this.#sizeBytes = entry.sizeBytes;
    this.#position = 0;
    this.#existingBytes = delta ? Math.min((await handle.stat()).size, entry.sizeBytes) : 0;
    await handle.truncate(entry.sizeBytes);
  }

  /** Checks that the file before was described to its end, and closes it. */
  async close(): Promise<void> {
    await this.#handle?.close();
    this.#handle = undefined;
    if (this.#position !== this.#sizeBytes) throw this.#damaged();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle?.close();
  }

  *extents(
    entry: MapEntry & { extents: Extent[] },
  ): Generator<{ extent: Extent; offset: number; bytes: number }> {
    if (entry.path !== this.#path) throw this.#damaged();
    if (entry.kind === 'span' && this.#position !== entry.span * SPAN_BLOCKS * this.#blockSize)
      throw this.#damaged();
    for (const extent of entry.extents) {
      const blocks = 'zeroBlocks' in extent ? extent.zeroBlocks : extent.hashes.length / HASH_BYTES;
      const bytes = Math.min(blocks * this.#blockSize, this.#sizeBytes - this.#position);
      if (bytes <= (blocks - 1) * this.#blockSize) throw this.#damaged();
      if ('zeroBlocks' in extent && bytes < blocks * this.#blockSize) throw this.#damaged();
      yield { extent, offset: this.#position, bytes };
      this.#position += bytes;
    }
  }

  /** Makes a stretch zeros; a fresh file has a hole there already. */
  async clear(offset: number, bytes: number): Promise<Missing[]> {
    const zeros = Buffer.alloc(this.#blockSize);
    for (let at = 0; at < Math.min(bytes, this.#existingBytes - offset); at += zeros.length) {
      const length = Math.min(zeros.length, bytes - at);
      const there = await this.#read(offset + at, length);
      if (!there.equals(zeros.subarray(0, length))) await this.#handle?.write(zeros, 0, length, offset + at);
    }
    return [];
  }

  /** The parts of an extent that the file does not hold already. */
  async missing(extent: StoredExtent, offset: number, bytes: number): Promise<Missing[]> {
    const { frame, plainOffset, hashes } = extent;
    if (offset >= this.#existingBytes) return [{ frame, plainOffset, fileOffset: offset, bytes, hashes }];
    const parts: Missing[] = [];
    for (let at = 0, block = 0; at < bytes; at += this.#blockSize, block += 1) {
      const length = Math.min(this.#blockSize, bytes - at);
      const hash = hashes.subarray(block * HASH_BYTES, (block + 1) * HASH_BYTES);
      const there = await this.#read(offset + at, length);
      if (blake3(there).compare(hash, 0, HASH_BYTES, 0, HASH_BYTES) === 0) continue;
      const last = parts.at(-1);
      if (last !== undefined && last.fileOffset + last.bytes === offset + at) {
        last.bytes += length;
        last.hashes = Buffer.concat([last.hashes, hash]);
      } else {
        parts.push({
          frame,
          plainOffset: plainOffset + at,
          fileOffset: offset + at,
          bytes: length,
          hashes: hash,
        });
      }
    }
    return parts;
  }

  async #read(offset: number, length: number): Promise<Buffer> {
    assert(this.#handle !== undefined, 'no file is open');
    const buffer = Buffer.allocUnsafe(length);
    let done = 0;
    while (done < length) {
      const { bytesRead } = await this.#handle.read(buffer, done, length - done, offset + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return buffer.subarray(0, done);
  }

  #damaged(): HoldfastError {
    return new HoldfastError(
      'object-damaged',
      `the block map does not describe ${JSON.stringify(this.#path)} to its end`,
      {
        hint: 'use another backup or another repository',
      },
    );
  }
}

/** Removes what lies in the data directory and is not of the backup. */
async function removeOthers(
  options: WriteFilesOptions,
  tree: DataTree,
  packs: ReadonlyMap<string, StoredObject>,
): Promise<number> {
  await using there = new ExternalSort(options.scratchDirectory);
  const links = new Set(options.record.tablespaces.map(({ oid }) => `pg_tblspc/${oid}`));
  for await (const { path } of walkTree(Buffer.from(options.targetDirectory))) {
    if (!links.has(path)) await there.add(path === PENDING_CONTROL_FILE ? CONTROL_FILE : path, NOTHING);
  }
  // Another major version may keep its own directory in the same location: only ours is looked at.
  const ours = versionPrefixOf(options.record);
  for (const { oid, location } of options.record.tablespaces) {
    for await (const { path } of walkTree(Buffer.from(options.tablespaceMapping.get(location) ?? location))) {
      if (path.startsWith(ours)) await there.add(`pg_tblspc/${oid}/${path}`, NOTHING);
    }
  }
  const entries = readEntries(options.repository, options.record, packs, options.signal)[
    Symbol.asyncIterator
  ]();
  let entry = await entries.next();
  let removed = 0;
  for await (const { key } of there.sorted()) {
    while (entry.done !== true && entry.value.path < key) entry = await entries.next();
    if (entry.done !== true && entry.value.path === key) continue;
    if (await removeTree(tree.resolve(key))) removed += 1;
  }
  await entries.return?.(undefined);
  return removed;
}

/** False where it is gone already, with the directory it was in. */
async function removeTree(place: Buffer): Promise<boolean> {
  try {
    await rm(place, { recursive: true });
    return true;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return false;
    throw error;
  }
}

/** How the directory of a tablespace begins that is of the backup's major version. */
function versionPrefixOf(record: BackupRecord): string {
  return `PG_${Math.floor(record.server.version / 10_000)}_`;
}

const NOTHING = Buffer.alloc(0);
const SYNCS_IN_FLIGHT = 8;

async function syncAll(
  options: WriteFilesOptions,
  tree: DataTree,
  packs: ReadonlyMap<string, StoredObject>,
): Promise<void> {
  const inFlight = new Set<Promise<void>>();
  let failure: unknown;
  const run = async (work: Promise<void>): Promise<void> => {
    const tracked = work
      .catch((error: unknown) => {
        failure ??= error;
      })
      .finally(() => inFlight.delete(tracked));
    inFlight.add(tracked);
    if (inFlight.size >= SYNCS_IN_FLIGHT) await Promise.race(inFlight);
  };
  for await (const entry of readEntries(options.repository, options.record, packs, options.signal)) {
    if (failure !== undefined) break;
    if (entry.kind === 'file') await run(syncFile(tree, entry.path));
    if (entry.kind === 'directory') await run(syncDirectory(tree.resolve(entry.path)));
  }
  await Promise.all(inFlight);
  if (failure !== undefined) throw failure;
  for (const { location } of options.record.tablespaces) {
    await syncDirectory(options.tablespaceMapping.get(location) ?? location);
  }
  await syncDirectory(options.targetDirectory);
}

async function syncFile(tree: DataTree, path: string): Promise<void> {
  await using file = await tree.openFile(path);
  await file.sync();
}
