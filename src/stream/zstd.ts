import { constants, zstdCompress, zstdDecompress } from 'node:zlib';

import { HoldfastError } from '../errors.ts';
import { releaseBuffer } from './release.ts';

/** The default level: pgBackRest's and the `zstd` tool's. */
const ZSTD_LEVEL = 3;

export interface FrameTuning {
  /** The content is pages of relations, which resemble their neighbours more than what is far. */
  pages?: boolean;
  /** The content is WAL: records and page images that resemble what came shortly before. */
  wal?: boolean;
  /** What came just before compressed to more than a quarter: WAL of records rather than of page images. */
  dense?: boolean;
}

/**
 * What zstd itself takes at this level for inputs of up to 256 KiB. Tables and window then fit in a core's cache: measured
 * on pgbench data 15 % less processor time than with those for 1 MiB, for 0 to 2 % more bytes.
 */
const PAGE_PARAMETERS = {
  [constants.ZSTD_c_windowLog]: 18,
  [constants.ZSTD_c_hashLog]: 16,
  [constants.ZSTD_c_chainLog]: 16,
};

/**
 * Smaller tables than the level takes for large inputs: 192 KiB, which fit in a core's cache. Measured on WAL of pgbench
 * (records, page images) and of bulk loads with text and JSON: 25 to 30 % less processor time for -1.4 to +0.4 % bytes.
 */
const WAL_PARAMETERS = {
  [constants.ZSTD_c_windowLog]: 21,
  [constants.ZSTD_c_hashLog]: 14,
  [constants.ZSTD_c_chainLog]: 15,
};

/**
 * For WAL that compresses to more than a quarter: the simplest search finds as much there as the level's own. Measured on
 * pgbench's records 30 % less time than with WAL_PARAMETERS and not a byte more, which is 1.2 % less than the level's own;
 * images of pages would grow by 6 %.
 */
const DENSE_WAL_PARAMETERS = {
  [constants.ZSTD_c_strategy]: constants.ZSTD_fast,
  [constants.ZSTD_c_windowLog]: 20,
  [constants.ZSTD_c_hashLog]: 14,
  [constants.ZSTD_c_minMatch]: 5,
  [constants.ZSTD_c_targetLength]: 0,
};

/**
 * Compresses one buffer to one zstd frame (RFC 8878) with the content size and a checksum in it. Runs on libuv's pool
 * in a single call; several may be in flight.
 */
export function compressFrame(plain: Buffer, tuning: FrameTuning = {}): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    zstdCompress(
      plain,
      {
        chunkSize: tuning.wal === true ? compressBound(plain.length) : outputChunk(plain.length),
        pledgedSrcSize: plain.length,
        params: {
          [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL,
          ...(tuning.pages === true && PAGE_PARAMETERS),
          ...(tuning.wal === true && (tuning.dense === true ? DENSE_WAL_PARAMETERS : WAL_PARAMETERS)),
          [constants.ZSTD_c_contentSizeFlag]: 1,
          [constants.ZSTD_c_checksumFlag]: 1,
        },
      },
      (error, out) => (error === null ? resolve(ownBytes(out)) : reject(error)),
    );
  });
}

/**
 * Decompresses a frame whose plain size the caller knows. More bytes, fewer bytes, a flipped bit or a bomb throws
 * `object-damaged`; never more than `sizeBytes` + 1 are allocated for output. Bytes behind the frame may go unnoticed:
 * callers compare hashes.
 */
export async function decompressFrame(frame: Buffer, sizeBytes: number): Promise<Buffer> {
  const plain = await decompressBounded(frame, sizeBytes);
  if (plain.length !== sizeBytes) {
    throw new HoldfastError(
      'object-damaged',
      `a zstd frame holds ${plain.length} bytes instead of ${sizeBytes}`,
    );
  }
  return plain;
}

/** Decompresses one frame of at most `maxBytes` plain bytes; more throws `object-damaged`. */
export function decompressBounded(frame: Buffer, maxBytes: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    zstdDecompress(
      frame,
      // One byte more than can come: a chunk that is filled to its end costs another trip through the pool.
      { chunkSize: Math.max(64, maxBytes + 1), maxOutputLength: Math.max(64, maxBytes) },
      (error, out) =>
        error === null
          ? resolve(ownBytes(out))
          : reject(
              new HoldfastError('object-damaged', `a zstd frame does not decompress: ${error.message}`, {
                cause: error,
              }),
            ),
    );
  });
}

/**
 * Large enough that most outputs come in one piece (each costs a trip through the pool), and not larger: every buffer
 * that is allocated brings the next garbage collection nearer.
 */
function outputChunk(sizeBytes: number): number {
  return Math.max(1024, sizeBytes >> 2);
}

/**
 * The most a frame can take (`ZSTD_COMPRESSBOUND` of zstd.h, and room for the frame's checksum). With that much room zstd
 * compresses straight from the input, without a copy of it; what is not written to is never cleared by the kernel.
 */
function compressBound(sizeBytes: number): number {
  const small = 128 * 1024;
  return 64 + sizeBytes + (sizeBytes >> 8) + (sizeBytes < small ? (small - sizeBytes) >> 11 : 0);
}

/** A small result must not keep the large output buffer it is a view of alive. */
function ownBytes(out: Buffer): Buffer {
  if (out.length * 2 > out.buffer.byteLength) return out;
  const own = Buffer.from(out);
  // Nobody else has seen it.
  releaseBuffer(out);
  return own;
}
