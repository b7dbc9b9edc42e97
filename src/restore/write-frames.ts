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
import type { DataFile } from './data-file.ts';
import type { DataTree } from './data-tree.ts';
import { decodeWanted, frameOfWanted, type WantedBlocks } from './wanted-blocks.ts';

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

/** What is wanted of one frame, still encoded: a pack may hold blocks of very many small files. */
interface FrameWork {
  key: string;
  offset: number;
  bytes: number;
  targets: Buffer[];
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
  using files = new OpenFiles(options.tree);
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
    await files.settle();
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
  for (const target of targetsOf(frame)) {
    const { path, plainOffset, fileOffset, bytes, hashes } = target;
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
    const { run, pack, offset, bytes } = frameOfWanted(key, value);
    if (work !== undefined && (work.run !== run || work.pack !== pack)) {
      pressTogether(work.frames.at(-1));
      yield work;
      work = undefined;
    }
    work ??= { run, pack, frames: [] };
    let frame = work.frames.at(-1);
    if (frame?.offset !== offset) {
      pressTogether(frame);
      frame = { key, offset, bytes, targets: [] };
      work.frames.push(frame);
    }
    const length = Buffer.allocUnsafe(4);
    length.writeUInt32LE(value.length);
    frame.targets.push(length, value);
  }
  if (work === undefined) return;
  pressTogether(work.frames.at(-1));
  yield work;
}

/** One buffer for many: each would cost more than its bytes. */
function pressTogether(frame: FrameWork | undefined): void {
  if (frame !== undefined) frame.targets = [Buffer.concat(frame.targets)];
}

function* targetsOf({ key, targets: [bytes = Buffer.alloc(0)] }: FrameWork): Generator<WantedBlocks> {
  for (let at = 0; at < bytes.length;) {
    const length = bytes.readUInt32LE(at);
    yield decodeWanted(key, bytes.subarray(at + 4, at + 4 + length));
    at += 4 + length;
  }
}

interface OpenFile {
  file: DataFile;
  users: number;
}

/** After so many bytes the disk is set to work, so that it does not stand idle until everything is synced at the end. */
const FLUSH_BYTES = 64 * 1024 * 1024;

/** Keeps the files written last open: neighbouring frames mostly belong to one file. */
class OpenFiles implements Disposable {
  readonly #tree: DataTree;
  readonly #files = new Map<string, OpenFile>();
  #unflushedBytes = 0;
  #flushing: Promise<void> | undefined;
  #flushFailure: unknown;

  constructor(tree: DataTree) {
    this.#tree = tree;
  }

  async write(path: string, content: Buffer, offset: number): Promise<void> {
    const open = this.#files.get(path) ?? { file: this.#tree.openFile(path), users: 0 };
    this.#files.delete(path);
    this.#files.set(path, open);
    open.users += 1;
    try {
      await open.file.write(content, offset);
    } finally {
      open.users -= 1;
    }
    this.#unflushedBytes += content.length;
    if (this.#unflushedBytes >= FLUSH_BYTES && this.#flushing === undefined) this.#flush(open);
    this.#closeOne();
  }

  /** Waits for the last flush. A file that could not be synced once is never trusted again. */
  async settle(): Promise<void> {
    await this.#flushing;
    if (this.#flushFailure !== undefined) throw this.#flushFailure;
  }

  #flush(open: OpenFile): void {
    this.#unflushedBytes = 0;
    open.users += 1;
    this.#flushing = open.file
      .sync()
      .catch((error: unknown) => {
        this.#flushFailure ??= error;
      })
      .finally(() => {
        open.users -= 1;
        this.#flushing = undefined;
      });
  }

  #closeOne(): void {
    if (this.#files.size <= OPEN_FILES) return;
    for (const [path, { file, users }] of this.#files) {
      if (users > 0) continue;
      this.#files.delete(path);
      file.close();
      return;
    }
  }

  [Symbol.dispose](): void {
    for (const { file } of this.#files.values()) file.close();
    this.#files.clear();
  }
}
