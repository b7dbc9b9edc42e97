import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { basename } from 'node:path';

import { HoldfastError, errorText, systemErrorCode } from '../errors.ts';
import { parseTimelineHistory } from '../postgres/timeline.ts';
import { type WalLongHeader, checkWalSegment } from '../postgres/wal-page.ts';
import { type WalFile, classifyWalFile, isWalSegmentSize } from '../postgres/wal-segment.ts';
import { compressFrames, piecesOf, WAL_FRAME_BYTES, type WalFrame } from '../repository/wal-frames.ts';
import { blake3Hex, createBlake3 } from '../stream/hash.ts';
import { releaseBuffer } from '../stream/release.ts';

/** Files up to this size are held in memory and read once; larger ones are read twice and must not differ. */
const WHOLE_MAX_BYTES = 32 * 1024 * 1024;
/** History files have a line per timeline; the bound only keeps a mistaken file out. */
const TEXT_MAX_BYTES = 1024 * 1024;

/** A WAL file on this host, checked as far as it can be without knowing the cluster. */
export interface WalSource extends AsyncDisposable {
  readonly file: WalFile;
  readonly sizeBytes: number;
  readonly modifiedAt: Date;
  /** Of segments and partial segments. */
  readonly header: WalLongHeader | undefined;
  /** BLAKE3-256 of the content, hexadecimal. Computed once. */
  hash(): Promise<string>;
  /** The content in order. The buffers may be read until the source is disposed of. */
  pieces(): AsyncIterable<Buffer>;
  /** Begins to compress, where the content is in memory; `frames()` then finds it done or under way. */
  prepare(): void;
  /** Compressed and compared, from the first. Throws `wal-invalid` where the file has changed since it was hashed. */
  frames(): AsyncIterable<WalFrame>;
}

/**
 * Opens a file that PostgreSQL asks to archive. Throws `wal-invalid` for names PostgreSQL never archives, for anything
 * but a regular file, for a segment whose size, page header, timeline or address does not fit its name, and for a
 * history file that PostgreSQL could not read; `version-unsupported` for WAL of an unknown version; `usage-invalid` where
 * there is no such file.
 */
export async function openWalSource(path: string): Promise<WalSource> {
  const name = basename(path);
  const file = classifyWalFile(name);
  if (file === undefined) {
    throw new HoldfastError(
      'wal-invalid',
      `${JSON.stringify(name.slice(0, 100))} is not the name of a wal file`,
      {
        hint: 'archive_command hands over %p: a segment, a history file or a backup history file',
      },
    );
  }
  const handle = await openFile(path);
  try {
    return await checkSource(path, file, handle);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    // Neither a symbolic link nor a pipe that nobody writes to is what PostgreSQL hands over.
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === 'ELOOP') throw notRegular(path);
    throw new HoldfastError('usage-invalid', `cannot open ${path}: ${errorText(error)}`, {
      hint: 'PostgreSQL gives %p relative to its data directory and runs archive_command there: run it as that user, from there',
      cause: error,
    });
  }
}

async function checkSource(path: string, file: WalFile, handle: FileHandle): Promise<WalSource> {
  const stats = await handle.stat({ bigint: true });
  if (!stats.isFile()) throw notRegular(path);
  const sizeBytes = Number(stats.size);
  const isWal = file.kind === 'segment' || file.kind === 'partial';
  if (isWal ? !isWalSegmentSize(sizeBytes) : sizeBytes === 0 || sizeBytes > TEXT_MAX_BYTES) {
    throw new HoldfastError('wal-invalid', `${path} has ${sizeBytes} bytes, which no such file has`, {
      hint: 'it is not what PostgreSQL wrote: was it cut off, or the disk full?',
    });
  }
  const unchanged = async (): Promise<void> => {
    const now = await handle.stat({ bigint: true });
    if (now.size !== stats.size || now.mtimeNs !== stats.mtimeNs) throw changed(path);
  };
  const reading = { path, handle, sizeBytes, unchanged };
  const content = sizeBytes <= WHOLE_MAX_BYTES ? await wholeContent(reading) : streamedContent(reading);
  const first = await content.first();
  if (file.kind === 'history') parseTimelineHistory(file.timeline, first.toString('utf8'));
  return {
    file,
    sizeBytes,
    modifiedAt: new Date(Number(stats.mtimeMs)),
    header: isWal ? checkWalSegment(first, { name: file.segment, sizeBytes }) : undefined,
    hash: content.hash,
    pieces: content.pieces,
    prepare: content.prepare,
    frames: content.frames,
    async [Symbol.asyncDispose]() {
      content.release();
      await handle.close();
    },
  };
}

interface Reading {
  path: string;
  handle: FileHandle;
  sizeBytes: number;
  /** Throws where the file is not what it was when it was opened. */
  unchanged: () => Promise<void>;
}

interface Content extends Pick<WalSource, 'hash' | 'pieces' | 'prepare' | 'frames'> {
  /** The first page at least, or all of a small file. */
  first(): Promise<Buffer>;
  /** Nobody reads the content any more. */
  release(): void;
}

async function wholeContent(reading: Reading): Promise<Content> {
  const whole = await readAt(reading, 0, reading.sizeBytes);
  await reading.unchanged();
  const hash = blake3Hex(whole);
  let compressed: Promise<WalFrame[]> | undefined;
  const compress = async (): Promise<WalFrame[]> => {
    if (compressed === undefined && whole.length === 0) {
      throw new HoldfastError('assertion', `${reading.path} was given back before it was compressed`);
    }
    return (compressed ??= Array.fromAsync(compressFrames(piecesOf(whole))));
  };
  const free = (): void => releaseBuffer(whole);
  return {
    first: async () => whole,
    // Other threads may be compressing still.
    release: () => void (compressed ?? Promise.resolve()).then(free, () => undefined),
    hash: async () => hash,
    async *pieces() {
      yield* piecesOf(whole);
    },
    prepare() {
      // Whoever asks for the frames gets the error.
      compress().catch(() => undefined);
    },
    async *frames() {
      yield* await compress();
    },
  };
}

function streamedContent(reading: Reading): Content {
  async function* pieces(): AsyncGenerator<Buffer> {
    for (let at = 0; at < reading.sizeBytes; at += WAL_FRAME_BYTES) {
      yield await readAt(reading, at, Math.min(WAL_FRAME_BYTES, reading.sizeBytes - at));
    }
    await reading.unchanged();
  }
  async function hashAll(): Promise<string> {
    const hash = createBlake3();
    for await (const piece of pieces()) hash.update(piece);
    return hash.hex();
  }
  let hashed: Promise<string> | undefined;
  const hash = async (): Promise<string> => (hashed ??= hashAll());
  async function* samePieces(): AsyncGenerator<Buffer> {
    const again = createBlake3();
    for await (const piece of pieces()) {
      again.update(piece);
      yield piece;
    }
    if (again.hex() !== (await hash())) throw changed(reading.path);
  }
  return {
    first: async () => readAt(reading, 0, 64 * 1024),
    release: () => undefined,
    hash,
    pieces,
    prepare: () => undefined,
    frames: () => compressFrames(samePieces()),
  };
}

async function readAt({ path, handle }: Reading, position: number, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await handle.read(buffer, filled, length - filled, position + filled);
    if (bytesRead === 0) throw changed(path);
    filled += bytesRead;
  }
  return buffer;
}

function changed(path: string): HoldfastError {
  return new HoldfastError('wal-invalid', `${path} changed while it was read`, {
    hint: 'PostgreSQL never writes to a file it asks to archive: what else writes there?',
  });
}

function notRegular(path: string): HoldfastError {
  return new HoldfastError('wal-invalid', `${path} is not a regular file`);
}
