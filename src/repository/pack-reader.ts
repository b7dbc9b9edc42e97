import { HoldfastError } from '../errors.ts';
import type { Repository } from './repository.ts';
import { openSealedRange, type StoredObject } from './sealed-object.ts';

export interface WantedFrame {
  offset: number;
  bytes: number;
}

/** Unwanted bytes between two wanted frames that are read and dropped rather than asking the store again. */
const GAP_BYTES = 1024 * 1024;

/**
 * Reads frames of a pack, given in rising order of offset, with as few requests as makes sense: one for each stretch
 * without large gaps. Yields the compressed bytes of each; holds one frame and one chunk.
 */
export async function* readFrames<T extends WantedFrame>(
  repository: Repository,
  pack: StoredObject,
  frames: readonly T[],
  signal?: AbortSignal,
): AsyncGenerator<{ frame: T; compressed: Buffer }> {
  for (const stretch of stretches(frames)) {
    const first = stretch[0];
    const last = stretch.at(-1);
    if (first === undefined || last === undefined) continue;
    const length = last.offset + last.bytes - first.offset;
    const chunks = openSealedRange(repository, pack, first.offset, length, signal)[Symbol.asyncIterator]();
    try {
      let position = first.offset;
      let buffered: Buffer = Buffer.alloc(0);
      const advance = async (bytes: number): Promise<Buffer> => {
        const parts = [buffered];
        let size = buffered.length;
        while (size < bytes) {
          const next = await chunks.next();
          if (next.done === true)
            throw new HoldfastError('object-damaged', `${pack.key} ends within a frame`);
          parts.push(next.value);
          size += next.value.length;
        }
        const whole = parts.length === 1 ? buffered : Buffer.concat(parts, size);
        buffered = whole.subarray(bytes);
        position += bytes;
        return whole.subarray(0, bytes);
      };
      for (const frame of stretch) {
        if (frame.offset > position) await advance(frame.offset - position);
        yield { frame, compressed: await advance(frame.bytes) };
      }
    } finally {
      await chunks.return(undefined);
    }
  }
}

function stretches<T extends WantedFrame>(frames: readonly T[]): T[][] {
  const result: T[][] = [];
  let end = -Infinity;
  for (const frame of frames) {
    const current = result.at(-1);
    if (current !== undefined && frame.offset >= end && frame.offset - end <= GAP_BYTES) current.push(frame);
    else result.push([frame]);
    end = frame.offset + frame.bytes;
  }
  return result;
}
