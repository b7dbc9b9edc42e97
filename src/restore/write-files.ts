import { rm } from 'node:fs/promises';

import { throwIfCancelled } from '../cancellation.ts';
import { HoldfastError, systemErrorCode } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { readEntries, readReferences } from '../repository/map-index.ts';
import type { Repository } from '../repository/repository.ts';
import type { StoredObject } from '../repository/sealed-object.ts';
import { ExternalSort } from '../stream/external-sort.ts';
import { CurrentFile } from './current-file.ts';
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
  using current = new CurrentFile(blockSize);
  for await (const entry of readEntries(options.repository, record, packs, options.signal)) {
    throwIfCancelled(options.signal);
    switch (entry.kind) {
      case 'directory':
        await tree.directory(entry.path, entry.mode);
        break;
      case 'file':
        current.next(entry, await tree.createFile(entry.path, entry.mode), options.delta);
        planned.files += 1;
        break;
      case 'span':
        break;
    }
    if (entry.kind !== 'file' && entry.kind !== 'span') continue;
    for (const { extent, offset, bytes } of current.extents(entry)) {
      const missing =
        'zeroBlocks' in extent ? await current.clear(offset, bytes) : current.missing(extent, offset, bytes);
      planned.bytesKept += bytes;
      for (const part of missing) {
        planned.bytesKept -= part.bytes;
        planned.bytesWanted += part.bytes;
        await wanted.add(...encodeWanted({ ...part, path: entry.path }));
      }
    }
  }
  current.close();
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
  const file = tree.openFile(path);
  try {
    await file.sync();
  } finally {
    file.close();
  }
}
