import { decompressFrame } from '../../stream/zstd.ts';
import { releaseBuffer } from '../../stream/release.ts';
import type { SegmentFrames } from './segment-frames.ts';
import type { SpoolFile } from './segment-spool.ts';

/**
 * A spool file that is only made when something is to be read from it or synced: out of the frames that hold the same
 * bytes. While a receiver catches up, segments are complete before anybody wants their file, and writing each would cost
 * a tenth of its time.
 */
export function deferSpoolFile(
  place: Pick<SpoolFile, 'name' | 'path'>,
  create: () => Promise<SpoolFile>,
  frames: SegmentFrames,
): SpoolFile {
  let file: SpoolFile | undefined;
  let making: Promise<SpoolFile> | undefined;
  let sizeBytes = 0;
  const make = async (): Promise<SpoolFile> => {
    const made = await create();
    for (let index = 0; index < frames.count; index += 1) {
      const frame = await frames.frame(index);
      const plain = await decompressFrame(frame.bytes, frame.sizeBytes);
      made.append(plain);
      releaseBuffer(plain);
    }
    // Nothing can come in between: from here on every byte goes to the file as well.
    made.append(frames.rest());
    file = made;
    return made;
  };
  const made = async (): Promise<SpoolFile> => (making ??= make());
  return {
    ...place,
    get sizeBytes() {
      return sizeBytes;
    },
    append(bytes) {
      file?.append(bytes);
      sizeBytes += bytes.length;
    },
    sync: async () => (await made()).sync(),
    read: async (from, to) => (await made()).read(from, to),
    async close() {
      await (await making?.catch(() => undefined))?.close();
    },
    async discard() {
      await (await making?.catch(() => undefined))?.discard();
    },
  };
}
