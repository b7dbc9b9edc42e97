import { HoldfastError } from '../errors.ts';
import type { Opener, RangeSource, Sealer } from './sealer.ts';

/** Stores objects as they are. */
export const noneSealer: Sealer = {
  kind: 'none',
  suffix: '',
  recipients: [],
  seal: (plain) => plain,
};

/** Reads objects stored as they are. Nothing is authenticated here: the hashes in records and block maps do that. */
export const noneOpener: Opener = {
  kind: 'none',
  open: (sealed) => sealed,
  openRange,
};

async function* openRange(source: RangeSource, offset: number, length: number): AsyncGenerator<Buffer> {
  if (offset + length > source.sizeBytes) {
    throw new HoldfastError(
      'object-damaged',
      `object is shorter than expected: bytes up to ${offset + length} wanted, ${source.sizeBytes} stored`,
    );
  }
  if (length > 0) yield* source.read(offset, length);
}
