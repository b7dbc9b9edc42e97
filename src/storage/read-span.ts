import { assert, HoldfastError } from '../errors.ts';

/** The largest chunk a `get` yields. */
export const READ_CHUNK_BYTES = 1024 * 1024;

/** The bytes a `get` has to deliver, `end` exclusive. */
export interface ReadSpan {
  start: number;
  end: number;
}

/** Throws `assertion` for a range no object could fill. For a `get` to call before it touches anything. */
export function checkRange(range: { offset: number; length: number } | undefined): void {
  if (range === undefined) return;
  const { offset, length } = range;
  assert(
    Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0,
    `${offset}+${length} is not a range of bytes`,
  );
}

/** What a `get` reads of an object of `sizeBytes`. A range past its end throws `object-damaged`: something is missing. */
export function readSpan(
  key: string,
  sizeBytes: number,
  range: { offset: number; length: number } | undefined,
): ReadSpan {
  if (range === undefined) return { start: 0, end: sizeBytes };
  const end = range.offset + range.length;
  if (end > sizeBytes) throw objectTooShort(key, end, sizeBytes);
  return { start: range.offset, end };
}

export function objectTooShort(key: string, expectedBytes: number, sizeBytes: number): HoldfastError {
  return new HoldfastError(
    'object-damaged',
    `${key} ends after ${sizeBytes} bytes; at least ${expectedBytes} were expected`,
    {
      hint: 'this copy is truncated: take another repository or another backup',
      context: { key, expectedBytes, sizeBytes },
    },
  );
}

export function objectMissing(key: string, description: string): HoldfastError {
  return new HoldfastError('object-missing', `there is no ${key} in ${description}`, { context: { key } });
}
