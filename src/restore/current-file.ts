import { assert, HoldfastError } from '../errors.ts';
import {
  type Extent,
  HASH_BYTES,
  type MapEntry,
  SPAN_BLOCKS,
  type StoredExtent,
} from '../repository/block-map.ts';
import { blake3 } from '../stream/hash.ts';
import type { DataFile } from './data-file.ts';

/** Consecutive blocks of a file that must come out of one frame. */
export interface Missing {
  frame: StoredExtent['frame'];
  plainOffset: number;
  fileOffset: number;
  bytes: number;
  hashes: Buffer;
}

/** The file whose entries are being read: its size, how far its blocks have come, what it holds already. */
export class CurrentFile implements Disposable {
  readonly #blockSize: number;
  #file: DataFile | undefined;
  #path = '';
  #sizeBytes = 0;
  #position = 0;
  #existingBytes = 0;

  constructor(blockSize: number) {
    this.#blockSize = blockSize;
  }

  /** Takes the file over, also where this throws because the one before was not described to its end. */
  next(entry: { path: string; sizeBytes: number }, file: DataFile, delta: boolean): void {
    try {
      this.close();
    } finally {
      this.#file = file;
    }
    this.#path = entry.path;
    this.#sizeBytes = entry.sizeBytes;
    this.#position = 0;
    this.#existingBytes = delta ? Math.min(file.sizeBytes, entry.sizeBytes) : 0;
    file.truncate(entry.sizeBytes);
  }

  /** Checks that the file before was described to its end, and closes it. */
  close(): void {
    this[Symbol.dispose]();
    if (this.#position !== this.#sizeBytes) throw this.#damaged();
  }

  [Symbol.dispose](): void {
    this.#file?.close();
    this.#file = undefined;
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
      const there = this.#read(offset + at, length);
      if (!there.equals(zeros.subarray(0, length)))
        await this.#file?.write(zeros.subarray(0, length), offset + at);
    }
    return [];
  }

  /** The parts of an extent that the file does not hold already. */
  missing(extent: StoredExtent, offset: number, bytes: number): Missing[] {
    const { frame, plainOffset, hashes } = extent;
    if (offset >= this.#existingBytes) return [{ frame, plainOffset, fileOffset: offset, bytes, hashes }];
    const parts: Missing[] = [];
    for (let at = 0, block = 0; at < bytes; at += this.#blockSize, block += 1) {
      const length = Math.min(this.#blockSize, bytes - at);
      const hash = hashes.subarray(block * HASH_BYTES, (block + 1) * HASH_BYTES);
      const there = this.#read(offset + at, length);
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

  #read(offset: number, length: number): Buffer {
    assert(this.#file !== undefined, 'no file is open');
    return this.#file.read(offset, length);
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
