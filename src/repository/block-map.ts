import { assertNever, HoldfastError } from '../errors.ts';
import { ByteReader, ByteWriter } from './byte-codec.ts';

/**
 * Block maps say, for each file of a base backup, the hash of each of its blocks and where the block's bytes lie.
 * Paths are relative to the data directory, as the raw bytes in a latin1 string, so that any file name survives.
 */
export type MapEntry = FileEntry | SpanEntry | DirectoryEntry;

export interface FileEntry {
  kind: 'file';
  path: string;
  mode: number;
  sizeBytes: number;
  /** CRC-32C of the whole file, compared with PostgreSQL's backup manifest. */
  crc32c: number;
  /** The blocks, where they are at most `SPAN_BLOCKS`; else empty, and spans follow. */
  extents: Extent[];
}

/** A stretch of `SPAN_BLOCKS` blocks (the last may be shorter) of a large file, counted from 0. */
export interface SpanEntry {
  kind: 'span';
  path: string;
  span: number;
  extents: Extent[];
}

export interface DirectoryEntry {
  kind: 'directory';
  path: string;
  mode: number;
}

/** Consecutive blocks that lie one behind the other in one frame, or are all zeros and lie nowhere. */
export type Extent = StoredExtent | ZeroExtent;

export interface StoredExtent {
  frame: FrameLocation;
  /** Where the first of the blocks begins in the frame's plain bytes. */
  plainOffset: number;
  /** `HASH_BYTES` for each block. */
  hashes: Buffer;
}

export interface ZeroExtent {
  zeroBlocks: number;
}

/** A zstd frame: `bytes` long, at `offset` of the plain content of a pack of a run. */
export interface FrameLocation {
  /** Backup id of the run that wrote the pack. */
  run: string;
  pack: number;
  offset: number;
  bytes: number;
}

/** 32 MiB of file at 16 KiB a block. */
export const SPAN_BLOCKS = 2048;

/**
 * Block hashes are BLAKE3 cut to 128 bits. A block is only ever compared with its predecessor at one place, and a block
 * that was damaged or forged passes with 2^-128. (Who may choose both blocks finds two that are equal in 2^64 tries.)
 */
export const HASH_BYTES = 16;

/** Largest plain size of a frame; what is larger is damaged. */
export const FRAME_MAX_BYTES = 1024 * 1024;

/** Largest compressed frame: what does not compress grows by less than this allows (ZSTD_compressBound). */
const FRAME_STORED_MAX_BYTES = FRAME_MAX_BYTES + 8192;

/** Entries are ordered by this: a file, then its spans, in byte order of paths. */
export function entryKey(entry: MapEntry): string {
  return entry.kind === 'span' ? spanKey(entry.path, entry.span) : fileKey(entry.path);
}

export function fileKey(path: string): string {
  return `${path}\0`;
}

export function spanKey(path: string, span: number): string {
  return `${path}\0${span.toString(16).padStart(8, '0')}`;
}

export function blockCount(extents: readonly Extent[]): number {
  return extents.reduce(
    (sum, each) => sum + ('zeroBlocks' in each ? each.zeroBlocks : each.hashes.length / HASH_BYTES),
    0,
  );
}

const KINDS = ['file', 'span', 'directory'] as const;

/** Encodes one entry. Equal entries give equal bytes for equal numbering of runs. */
export function encodeEntry(out: ByteWriter, entry: MapEntry, runNumber: (run: string) => number): void {
  out.uint(KINDS.indexOf(entry.kind));
  out.text(entry.path);
  switch (entry.kind) {
    case 'file':
      out.uint(entry.mode);
      out.uint(entry.sizeBytes);
      out.uint32(entry.crc32c);
      encodeExtents(out, entry.extents, runNumber);
      break;
    case 'span':
      out.uint(entry.span);
      encodeExtents(out, entry.extents, runNumber);
      break;
    case 'directory':
      out.uint(entry.mode);
      break;
  }
}

function encodeExtents(
  out: ByteWriter,
  extents: readonly Extent[],
  runNumber: (run: string) => number,
): void {
  out.uint(extents.length);
  for (const extent of extents) {
    if ('zeroBlocks' in extent) {
      out.uint(extent.zeroBlocks * 2 + 1);
      continue;
    }
    const { frame, plainOffset, hashes } = extent;
    out.uint((hashes.length / HASH_BYTES) * 2);
    out.uint(runNumber(frame.run));
    out.uint(frame.pack);
    out.uint(frame.offset);
    out.uint(frame.bytes);
    out.uint(plainOffset);
    out.raw(hashes);
  }
}

/** Undoes `encodeEntry`. Hashes are views of the reader's buffer. */
export function decodeEntry(input: ByteReader, runs: readonly string[]): MapEntry {
  const kind = KINDS[input.uint()];
  if (kind === undefined) {
    throw new HoldfastError('object-damaged', 'a block map holds an entry of an unknown kind');
  }
  const path = input.text();
  switch (kind) {
    case 'file':
      return {
        kind,
        path,
        mode: input.uint(),
        sizeBytes: input.uint(),
        crc32c: input.uint32(),
        extents: decodeExtents(input, runs),
      };
    case 'span':
      return { kind, path, span: input.uint(), extents: decodeExtents(input, runs) };
    case 'directory':
      return { kind, path, mode: input.uint() };
    default:
      return assertNever(kind);
  }
}

function decodeExtents(input: ByteReader, runs: readonly string[]): Extent[] {
  const extents: Extent[] = [];
  let left = SPAN_BLOCKS;
  for (let count = input.uint(); count > 0; count -= 1) {
    const head = input.uint();
    const blocks = Math.floor(head / 2);
    left -= blocks;
    if (blocks === 0 || left < 0)
      throw new HoldfastError('object-damaged', 'a block map holds an impossible extent');
    if (head % 2 === 1) {
      extents.push({ zeroBlocks: blocks });
      continue;
    }
    const run = runs[input.uint()];
    if (run === undefined)
      throw new HoldfastError('object-damaged', 'a block map refers to a run that it does not name');
    const frame = { run, pack: input.uint(), offset: input.uint(), bytes: input.uint() };
    if (frame.bytes === 0 || frame.bytes > FRAME_STORED_MAX_BYTES) {
      throw new HoldfastError('object-damaged', 'a block map refers to a frame of an impossible size');
    }
    extents.push({ frame, plainOffset: input.uint(), hashes: input.raw(blocks * HASH_BYTES) });
  }
  return extents;
}

const CHUNK_MAGIC = Buffer.from('HFM1', 'latin1');

/** A chunk of a block map: a magic, the runs its entries refer to in order of first use, the entries. */
export function encodeChunk(entries: readonly MapEntry[]): Buffer {
  const runs: string[] = [];
  const numbers = new Map<string, number>();
  const body = new ByteWriter(64 * 1024);
  for (const entry of entries) {
    encodeEntry(body, entry, (run) => {
      const known = numbers.get(run);
      if (known !== undefined) return known;
      numbers.set(run, runs.length);
      return runs.push(run) - 1;
    });
  }
  const out = new ByteWriter(body.length + 4096);
  out.raw(CHUNK_MAGIC);
  out.uint(runs.length);
  for (const run of runs) out.text(run);
  out.uint(entries.length);
  out.raw(body.finish());
  return out.finish();
}

/** Undoes `encodeChunk`; anything else throws `object-damaged`. */
export function decodeChunk(bytes: Buffer): MapEntry[] {
  const { input, runs, count } = openChunk(bytes);
  const entries: MapEntry[] = [];
  for (let left = count; left > 0; left -= 1) entries.push(decodeEntry(input, runs));
  assertEnd(input);
  return entries;
}

/**
 * A chunk that is looked things up in. It keeps the encoded bytes and where each entry begins: decoded, the entries of many
 * small files take several times as much.
 */
export class ChunkView {
  readonly #input: ByteReader;
  readonly #runs: readonly string[];
  readonly #starts: Uint32Array;
  /** About what it takes in memory. */
  readonly sizeBytes: number;

  /** Throws `object-damaged` as `decodeChunk`. */
  constructor(bytes: Buffer) {
    const { input, runs, count } = openChunk(bytes);
    this.#input = input;
    this.#runs = runs;
    const starts: number[] = [];
    for (let left = count; left > 0; left -= 1) {
      starts.push(input.position);
      decodeEntry(input, runs);
    }
    assertEnd(input);
    this.#starts = Uint32Array.from(starts);
    this.sizeBytes = bytes.length + 4 * starts.length + 256;
  }

  /** The entry of this key; keys rise within a chunk. */
  find(key: string): MapEntry | undefined {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#keyAt(middle) < key) low = middle + 1;
      else high = middle;
    }
    if (low === this.#starts.length || this.#keyAt(low) !== key) return undefined;
    this.#input.position = this.#starts[low] ?? 0;
    return decodeEntry(this.#input, this.#runs);
  }

  #keyAt(entry: number): string {
    this.#input.position = this.#starts[entry] ?? 0;
    const kind = KINDS[this.#input.uint()];
    const path = this.#input.text();
    return kind === 'span' ? spanKey(path, this.#input.uint()) : fileKey(path);
  }
}

function openChunk(bytes: Buffer): { input: ByteReader; runs: string[]; count: number } {
  const input = new ByteReader(bytes);
  if (!input.raw(4).equals(CHUNK_MAGIC))
    throw new HoldfastError('object-damaged', 'this is no chunk of a block map');
  const runs: string[] = [];
  for (let left = input.uint(); left > 0; left -= 1) runs.push(input.text());
  return { input, runs, count: input.uint() };
}

function assertEnd(input: ByteReader): void {
  if (input.atEnd) return;
  throw new HoldfastError('object-damaged', 'a chunk of a block map has bytes behind its end');
}
