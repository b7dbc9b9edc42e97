import { HoldfastError } from '../errors.ts';
import { releaseBuffer } from '../stream/release.ts';
import { compressFrame, decompressFrame } from '../stream/zstd.ts';

/** Plain bytes of one frame of a stored WAL file; the last frame of a file may be shorter. */
export const WAL_FRAME_BYTES = 4 * 1024 * 1024;

/** Frames worked on at once: as many as libuv's pool has threads by default. */
const FRAMES_IN_FLIGHT = 4;

const compressWal = createWalCompressor();

/** Where one frame ends: its compressed length, as it lies in the opened object, and its plain length. */
export interface WalFrameSize {
  storedBytes: number;
  sizeBytes: number;
}

export interface WalFrame extends WalFrameSize {
  bytes: Buffer;
}

/**
 * Compresses pieces (each becomes a frame) on several cores, in order, as `compressProven` does.
 */
export async function* compressFrames(
  pieces: Iterable<Buffer> | AsyncIterable<Buffer>,
  compress: (plain: Buffer) => Promise<Buffer> = compressWal,
): AsyncGenerator<WalFrame> {
  yield* inOrder(pieces, async (plain) => compressProven(plain, compress));
}

/**
 * One frame, which is decompressed and compared with what went in before it is given out: a compressor bug or bad memory
 * throws `checksum-mismatch` and nothing wrong is stored. `plain` must not change until this has settled.
 */
export async function compressProven(
  plain: Buffer,
  compress: (plain: Buffer) => Promise<Buffer> = compressWal,
): Promise<WalFrame> {
  const bytes = await compress(plain);
  const back = await decompressFrame(bytes, plain.length);
  if (!back.equals(plain)) {
    throw new HoldfastError('checksum-mismatch', 'a compressed frame did not decompress to what went in', {
      hint: "nothing wrong was stored, but this machine's memory or libraries cannot be trusted: test the memory",
    });
  }
  releaseBuffer(back);
  return { bytes, storedBytes: bytes.length, sizeBytes: plain.length };
}

/**
 * Cuts a stream at the given frame boundaries and decompresses each frame by itself, on several cores, in order. Bytes
 * missing or left over at the end throw `object-damaged`.
 */
export async function* decompressFrames(
  source: AsyncIterable<Buffer>,
  frames: readonly WalFrameSize[],
): AsyncGenerator<Buffer> {
  yield* inOrder(cut(source, frames), async ({ bytes, sizeBytes }) => decompressFrame(bytes, sizeBytes));
}

/** WAL goes on as it was a moment ago, so the frame before tells how to compress the next one. */
function createWalCompressor(): (plain: Buffer) => Promise<Buffer> {
  let dense = false;
  return async (plain) => {
    const frame = await compressFrame(plain, { wal: true, dense });
    dense = frame.length * 4 > plain.length;
    return frame;
  };
}

/** Cuts a buffer into pieces of a frame each; views, not copies. */
export function* piecesOf(bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at < bytes.length; at += WAL_FRAME_BYTES) yield bytes.subarray(at, at + WAL_FRAME_BYTES);
}

async function* cut(
  source: AsyncIterable<Buffer>,
  frames: readonly WalFrameSize[],
): AsyncGenerator<{ bytes: Buffer; sizeBytes: number }> {
  let held: Buffer[] = [];
  let heldBytes = 0;
  let next = 0;
  for await (const chunk of source) {
    let rest = chunk;
    for (;;) {
      const frame = frames[next];
      if (frame === undefined) {
        if (rest.length > 0) throw new HoldfastError('object-damaged', 'bytes follow the last frame');
        break;
      }
      const missing = frame.storedBytes - heldBytes;
      if (rest.length < missing) {
        held.push(rest);
        heldBytes += rest.length;
        break;
      }
      held.push(rest.subarray(0, missing));
      rest = rest.subarray(missing);
      yield { bytes: Buffer.concat(held, frame.storedBytes), sizeBytes: frame.sizeBytes };
      held = [];
      heldBytes = 0;
      next += 1;
    }
  }
  if (next < frames.length) throw new HoldfastError('object-damaged', 'the last frame is cut off');
}

/** Works on a few items at once and yields the results in the order of the items. */
async function* inOrder<Item, Result>(
  items: Iterable<Item> | AsyncIterable<Item>,
  work: (item: Item) => Promise<Result>,
): AsyncGenerator<Result> {
  const running: Promise<Result>[] = [];
  for await (const item of items) {
    const result = work(item);
    // Awaited below in its turn; a failure before that must not count as unhandled.
    result.catch(() => undefined);
    running.push(result);
    if (running.length >= FRAMES_IN_FLIGHT) yield await takeFirst(running);
  }
  while (running.length > 0) yield await takeFirst(running);
}

function takeFirst<Result>(running: Promise<Result>[]): Promise<Result> {
  return running.shift() as Promise<Result>;
}
