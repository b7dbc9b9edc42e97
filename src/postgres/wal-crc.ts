import { crc32c } from '../stream/crc32c.ts';

// One table per byte of an eight-byte step ("slicing by eight"), laid end to end.
const TABLES = buildTables();

/** Below this many bytes, crossing into native code costs more than computing here. */
const NATIVE_FROM_BYTES = 384;

/**
 * CRC-32C of `view[from, to)`, continuing from the finished value `seed` (0 at the start). The same function as
 * `crc32c()`, made for millions of short ranges: WAL records are mostly below 200 bytes.
 */
export function crc32cOfRange(view: DataView, from: number, to: number, seed: number): number {
  if (to - from >= NATIVE_FROM_BYTES) {
    return crc32c(new Uint8Array(view.buffer, view.byteOffset + from, to - from), seed >>> 0);
  }
  const tables = TABLES;
  let crc = ~seed;
  let at = from;
  for (const stop = to - 7; at < stop; at += 8) {
    crc ^= view.getInt32(at, true);
    const high = view.getInt32(at + 4, true);
    crc =
      (tables[1792 + (crc & 0xff)] as number) ^
      (tables[1536 + ((crc >>> 8) & 0xff)] as number) ^
      (tables[1280 + ((crc >>> 16) & 0xff)] as number) ^
      (tables[1024 + (crc >>> 24)] as number) ^
      (tables[768 + (high & 0xff)] as number) ^
      (tables[512 + ((high >>> 8) & 0xff)] as number) ^
      (tables[256 + ((high >>> 16) & 0xff)] as number) ^
      (tables[high >>> 24] as number);
  }
  for (; at < to; at++) crc = (crc >>> 8) ^ (tables[(crc ^ view.getUint8(at)) & 0xff] as number);
  return ~crc >>> 0;
}

function buildTables(): Int32Array {
  const tables = new Int32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    tables[byte] = crc;
  }
  for (let at = 256; at < tables.length; at++) {
    const previous = tables[at - 256] as number;
    tables[at] = (previous >>> 8) ^ (tables[previous & 0xff] as number);
  }
  return tables;
}
