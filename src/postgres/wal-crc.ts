import { crc32c } from '../stream/crc32c.ts';

// One table per byte of an eight-byte step ("slicing by eight"), laid end to end.
const TABLES = buildTables();
/** A WAL record's header up to its checksum, which covers the body first and then this. */
const HEADER_BYTES = 20;
const BODY_OFFSET = 24;
const MOVED = buildMoved();

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

/**
 * CRC-32C of the WAL record of `length` bytes (24 at least) at `from`, as its header has it. Header and body are computed
 * side by side, which a processor does at once, and put together: the checksum of the body, moved on by as many zeros as
 * the header has bytes, xor that of the header.
 */
export function crc32cOfRecord(view: DataView, from: number, length: number): number {
  const tables = TABLES;
  const moved = MOVED;
  const to = from + length;
  let head = view.getInt32(from, true);
  let high = view.getInt32(from + 4, true);
  head =
    (tables[1792 + (head & 0xff)] as number) ^
    (tables[1536 + ((head >>> 8) & 0xff)] as number) ^
    (tables[1280 + ((head >>> 16) & 0xff)] as number) ^
    (tables[1024 + (head >>> 24)] as number) ^
    (tables[768 + (high & 0xff)] as number) ^
    (tables[512 + ((high >>> 8) & 0xff)] as number) ^
    (tables[256 + ((high >>> 16) & 0xff)] as number) ^
    (tables[high >>> 24] as number);
  head ^= view.getInt32(from + 8, true);
  high = view.getInt32(from + 12, true);
  head =
    (tables[1792 + (head & 0xff)] as number) ^
    (tables[1536 + ((head >>> 8) & 0xff)] as number) ^
    (tables[1280 + ((head >>> 16) & 0xff)] as number) ^
    (tables[1024 + (head >>> 24)] as number) ^
    (tables[768 + (high & 0xff)] as number) ^
    (tables[512 + ((high >>> 8) & 0xff)] as number) ^
    (tables[256 + ((high >>> 16) & 0xff)] as number) ^
    (tables[high >>> 24] as number);
  head ^= view.getInt32(from + 16, true);
  head =
    (tables[768 + (head & 0xff)] as number) ^
    (tables[512 + ((head >>> 8) & 0xff)] as number) ^
    (tables[256 + ((head >>> 16) & 0xff)] as number) ^
    (tables[head >>> 24] as number);

  let at = from + BODY_OFFSET;
  let crc = -1;
  if (to - at >= NATIVE_FROM_BYTES) {
    crc = ~crc32c(new Uint8Array(view.buffer, view.byteOffset + at, to - at));
    at = to;
  }
  for (const stop = to - 7; at < stop; at += 8) {
    crc ^= view.getInt32(at, true);
    high = view.getInt32(at + 4, true);
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
  if (to - at >= 4) {
    crc ^= view.getInt32(at, true);
    crc =
      (tables[768 + (crc & 0xff)] as number) ^
      (tables[512 + ((crc >>> 8) & 0xff)] as number) ^
      (tables[256 + ((crc >>> 16) & 0xff)] as number) ^
      (tables[crc >>> 24] as number);
    at += 4;
  }
  for (; at < to; at++) crc = (crc >>> 8) ^ (tables[(crc ^ view.getUint8(at)) & 0xff] as number);
  crc =
    head ^
    (moved[crc & 0xff] as number) ^
    (moved[256 + ((crc >>> 8) & 0xff)] as number) ^
    (moved[512 + ((crc >>> 16) & 0xff)] as number) ^
    (moved[768 + (crc >>> 24)] as number);
  return ~crc >>> 0;
}

/** What each byte of a checksum's state becomes when as many zeros follow as a record's header has bytes. */
function buildMoved(): Int32Array {
  const moved = new Int32Array(4 * 256);
  for (let place = 0; place < 4; place++) {
    for (let byte = 0; byte < 256; byte++) {
      let crc = byte << (8 * place);
      for (let count = 0; count < HEADER_BYTES; count++) crc = (crc >>> 8) ^ (TABLES[crc & 0xff] as number);
      moved[256 * place + byte] = crc;
    }
  }
  return moved;
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
