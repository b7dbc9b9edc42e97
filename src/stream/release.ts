/** Below this a buffer may be a part of memory that it shares with others. */
const RELEASED_FROM_BYTES = 128 * 1024;

/**
 * Gives a large buffer's memory back at once, instead of when the garbage collector comes round: the next one of its size
 * gets the very same pages, where new ones have to be cleared by the kernel first. Nobody else may use the buffer or a
 * view of its memory, nor may work on it be under way; its length is 0 afterwards. Leaves small buffers alone.
 */
export function releaseBuffer({ buffer }: Buffer): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength >= RELEASED_FROM_BYTES) buffer.transfer(0);
}
