import type { FileHandle } from 'node:fs/promises';

import { throwIfCancelled } from '../cancellation.ts';
import { HoldfastError } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { FRAME_MAX_BYTES, HASH_BYTES } from '../repository/block-map.ts';
import { packOf } from '../repository/map-index.ts';
import { readFrames } from '../repository/pack-reader.ts';
import type { Repository } from '../repository/repository.ts';
import type { StoredObject } from '../repository/sealed-object.ts';
import type { SortRecord } from '../stream/external-sort.ts';
import { blake3 } from '../stream/hash.ts';
import { decompressBounded } from '../stream/zstd.ts';
import type { DataTree } from './data-tree.ts';
import { decodeWanted, type WantedBlocks } from './wanted-blocks.ts';

export interface WriteFramesOptions {
  repository: Repository;
  record: BackupRecord;
  packs: ReadonlyMap<string, StoredObject>;
  tree: DataTree;
  /** Records of `encodeWanted`, in order. */
  wanted: AsyncIterable<SortRecord>;
  progress: (doneBytes: number) => void;
  signal?: AbortSignal;
}

interface FrameWork {
  offset: number;
  bytes: number;
  targets: WantedBlocks[];
}

interface PackWork {
  run: string;
  pack: number;
  frames: FrameWork[];
}

/** Frames being decompressed, checked and written at once. */
const FRAMES_IN_FLIGHT = 6;
const OPEN_FILES = 128;

/**
 * Reads each wanted frame once, pack by pack, checks each block against its hash and writes it to its place. Returns
 * the bytes written. A block that is not what the backup says throws `object-damaged` before it is written.
 */
export async function writeFrames(options: WriteFramesOptions): Promise<number> {
  let done = 0;
  await using files = new OpenFiles(options.tree);
  const inFlight = new Set<Promise<void>>();
  let failure: unknown;
  try {
    for await (const work of byPack(options.wanted)) {
      const pack = packOf(options.packs, options.record, work.run, 'b', work.pack);
      for await (const { frame, compressed } of readFrames(
        options.repository,
        pack,
        work.frames,
        options.signal,
      )) {
        throwIfCancelled(options.signal);
        const task = writeFrame(compressed, frame, files, options.record.layout.blockSizeBytes)
          .then((bytes) => {
            done += bytes;
            options.progress(done);
          })
          .catch((error: unknown) => {
            failure ??= nameObject(error, pack.key);
          })
          .finally(() => inFlight.delete(task));
        inFlight.add(task);
        if (inFlight.size >= FRAMES_IN_FLIGHT) await Promise.race(inFlight);
        if (failure !== undefined) break;
      }
      if (failure !== undefined) break;
    }
  } finally {
    // They write to files that are closed when this returns.
    await Promise.all(inFlight);
  }
  if (failure !== undefined) throw failure;
  return done;
}

async function writeFrame(
  compressed: Buffer,
  frame: FrameWork,
  files: OpenFiles,
  blockSize: number,
): Promise<number> {
  const plain = await decompressBounded(compressed, FRAME_MAX_BYTES);
  let done = 0;
  for (const { path, plainOffset, fileOffset, bytes, hashes } of frame.targets) {
    const content = plain.subarray(plainOffset, plainOffset + bytes);
    for (let at = 0, block = 0; at < bytes; at += blockSize, block += 1) {
      const hash = blake3(content.subarray(at, at + blockSize));
      if (hash.compare(hashes, block * HASH_BYTES, (block + 1) * HASH_BYTES, 0, HASH_BYTES) !== 0) {
        throw new HoldfastError(
          'object-damaged',
          `a block of ${JSON.stringify(path)} is not what was backed up`,
        );
      }
    }
    await files.write(path, content, fileOffset);
    done += bytes;
  }
  return done;
}

function nameObject(error: unknown, key: string): unknown {
  if (!(error instanceof HoldfastError) || error.code !== 'object-damaged') return error;
  return new HoldfastError('object-damaged', `${key} is damaged: ${error.message}`, {
    hint: 'use another backup (--backup) or another repository (--repository)',
    context: { key },
    cause: error,
  });
}

/** Groups the ordered records into frames and packs; holds one pack's worth. */
async function* byPack(wanted: AsyncIterable<SortRecord>): AsyncGenerator<PackWork> {
  let work: PackWork | undefined;
  for await (const { key, value } of wanted) {
    const target = decodeWanted(key, value);
    const { run, pack, offset, bytes } = target.frame;
    if (work !== undefined && (work.run !== run || work.pack !== pack)) {
      yield work;
      work = undefined;
    }
    work ??= { run, pack, frames: [] };
    const last = work.frames.at(-1);
    if (last?.offset === offset) last.targets.push(target);
    else work.frames.push({ offset, bytes, targets: [target] });
  }
  if (work !== undefined) yield work;
}

interface OpenFile {
  handle: Promise<FileHandle>;
  users: number;
}

/** Keeps the files written last open: neighbouring frames mostly belong to one file. */
class OpenFiles implements AsyncDisposable {
  readonly #tree: DataTree;
  readonly #files = new Map<string, OpenFile>();

  constructor(tree: DataTree) {
    this.#tree = tree;
  }

  async write(path: string, content: Buffer, offset: number): Promise<void> {
    const file = this.#files.get(path) ?? { handle: this.#tree.openFile(path), users: 0 };
    this.#files.delete(path);
    this.#files.set(path, file);
    file.users += 1;
    try {
      const handle = await file.handle;
      for (let done = 0; done < content.length;) {
        done += (await handle.write(content, done, content.length - done, offset + done)).bytesWritten;
      }
    } finally {
      file.users -= 1;
    }
    await this.#closeSome();
  }

  async #closeSome(): Promise<void> {
    if (this.#files.size <= OPEN_FILES) return;
    for (const [path, file] of this.#files) {
      if (file.users > 0) continue;
      this.#files.delete(path);
      await (await file.handle).close();
      return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { handle } of this.#files.values())
      await handle.then((file) => file.close()).catch(() => undefined);
  }
}
