/**
 * The payload of an age v1 file (https://c2sp.org/age, section "Payload"): the STREAM construction over chunks of
 * 64 KiB, each encrypted with ChaCha20-Poly1305 under the payload key and a nonce of 11 bytes of counter and one byte
 * that marks the final chunk. Every chunk but the final one is full, so a chunk's place follows from its number.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { TAG_BYTES, damaged } from './age-format.ts';

const CHUNK_BYTES = 64 * 1024;
const SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES;
/** Chunks yielded together: as many as fit in 1 MiB when opened, and nearly so when sealed. */
const OPENED_BATCH = 16;
const SEALED_BATCH = 15;

/**
 * Encrypts a stream. `payloadKey` must be fresh for each call: nonces count from zero. Holds about 2 MiB and yields
 * pieces of up to 1 MiB, owned by the reader.
 */
export async function* sealStream(payloadKey: Buffer, plain: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const seal = chunkSealer(payloadKey);
  const cutter = createCutter(CHUNK_BYTES);
  let batch: Buffer[] = [];
  for await (const piece of plain) {
    for (const chunk of cutter.push(piece)) {
      batch.push(...seal(chunk, false));
      if (batch.length === 2 * SEALED_BATCH) {
        yield Buffer.concat(batch);
        batch = [];
      }
    }
  }
  batch.push(...seal(cutter.rest(), true));
  yield Buffer.concat(batch);
}

/**
 * Decrypts a payload from its first chunk to its last. Yields only what is authenticated; throws `object-damaged` where
 * chunks are altered, reordered or missing, also when only the end is.
 */
export async function* openStream(payloadKey: Buffer, sealed: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const cutter = createCutter(SEALED_CHUNK_BYTES);
  let batch: Buffer[] = [];
  let index = 0;
  for await (const piece of sealed) {
    for (const chunk of cutter.push(piece)) {
      batch.push(openChunk(payloadKey, index, false, chunk));
      index += 1;
      if (batch.length === OPENED_BATCH) {
        yield Buffer.concat(batch);
        batch = [];
      }
    }
  }
  const last = openChunk(payloadKey, index, true, cutter.rest());
  if (last.length === 0 && index > 0) throw damaged('its last chunk is empty');
  batch.push(last);
  const rest = Buffer.concat(batch);
  if (rest.length > 0) yield rest;
}

/** Size of the plaintext of a payload of `sealedBytes`. Throws `object-damaged` where no payload has that size. */
export function plainSize(sealedBytes: number): number {
  const full = Math.floor(sealedBytes / SEALED_CHUNK_BYTES);
  const rest = sealedBytes % SEALED_CHUNK_BYTES;
  if (rest === 0 && full > 0) return full * CHUNK_BYTES;
  if (rest < TAG_BYTES || (rest === TAG_BYTES && full > 0)) throw damaged('it ends within a chunk');
  return full * CHUNK_BYTES + rest - TAG_BYTES;
}

/** What `openChunks` reads for a range of plaintext: whole chunks, given by their place in the payload. */
export interface ChunkSpan {
  firstChunk: number;
  offset: number;
  length: number;
  /** Whether the payload's final chunk is among them. */
  final: boolean;
}

/** The chunks that hold [offset, offset+length) of a payload of `sealedBytes`; `length` ≥ 1, all within the payload. */
export function chunkSpan(sealedBytes: number, offset: number, length: number): ChunkSpan {
  const firstChunk = Math.floor(offset / CHUNK_BYTES);
  const afterLast = Math.floor((offset + length - 1) / CHUNK_BYTES) + 1;
  const start = firstChunk * SEALED_CHUNK_BYTES;
  const end = Math.min(afterLast * SEALED_CHUNK_BYTES, sealedBytes);
  return { firstChunk, offset: start, length: end - start, final: end === sealedBytes };
}

/** Decrypts the chunks of `span` and yields bytes [offset, offset+length) of the plaintext, authenticated. */
export async function* openChunks(
  payloadKey: Buffer,
  sealed: AsyncIterable<Buffer>,
  span: ChunkSpan,
  offset: number,
  length: number,
): AsyncGenerator<Buffer> {
  const cutter = createCutter(SEALED_CHUNK_BYTES);
  const start = offset - span.firstChunk * CHUNK_BYTES;
  const end = start + length;
  let batch: Buffer[] = [];
  let index = span.firstChunk;
  let passed = 0;
  const take = (chunk: Buffer, final: boolean) => {
    const plain = openChunk(payloadKey, index, final, chunk);
    batch.push(plain.subarray(Math.max(0, start - passed), Math.max(0, end - passed)));
    passed += plain.length;
    index += 1;
  };
  for await (const piece of sealed) {
    for (const chunk of cutter.push(piece)) {
      take(chunk, false);
      if (batch.length === OPENED_BATCH) {
        yield Buffer.concat(batch);
        batch = [];
      }
    }
  }
  take(cutter.rest(), span.final);
  if (passed < end) throw damaged('it ended early');
  yield Buffer.concat(batch);
}

/** Encrypts chunk after chunk to [ciphertext, tag]. One per payload: it is what keeps nonces from repeating. */
function chunkSealer(payloadKey: Buffer): (chunk: Buffer, final: boolean) => [Buffer, Buffer] {
  const nonce = Buffer.alloc(12);
  let index = 0;
  return (chunk, final) => {
    writeNonce(nonce, index, final);
    index += 1;
    const cipher = createCipheriv('chacha20-poly1305', payloadKey, nonce, { authTagLength: TAG_BYTES });
    const body = cipher.update(chunk);
    cipher.final();
    return [body, cipher.getAuthTag()];
  };
}

function openChunk(payloadKey: Buffer, index: number, final: boolean, sealed: Buffer): Buffer {
  if (sealed.length < TAG_BYTES)
    throw damaged(sealed.length === 0 ? 'its end is missing' : 'it ends within a chunk');
  const nonce = Buffer.alloc(12);
  writeNonce(nonce, index, final);
  const decipher = createDecipheriv('chacha20-poly1305', payloadKey, nonce, { authTagLength: TAG_BYTES });
  const split = sealed.length - TAG_BYTES;
  decipher.setAuthTag(sealed.subarray(split));
  const plain = decipher.update(sealed.subarray(0, split));
  try {
    decipher.final();
  } catch (cause) {
    throw damaged(`chunk ${index} is not what was sealed${final ? ', or the end is missing' : ''}`, cause);
  }
  return plain;
}

function writeNonce(nonce: Buffer, index: number, final: boolean): void {
  // 48 bits of counter are 2^64 bytes; the bytes before stay zero.
  nonce.writeUIntBE(index, 5, 6);
  nonce[11] = final ? 1 : 0;
}

interface Cutter {
  /** The pieces of `size` bytes that are complete and certainly not the last. Valid until the next call. */
  push(input: Buffer): Generator<Buffer>;
  /** What is left at the end: the last piece, empty only where there was no input at all. */
  rest(): Buffer;
}

/** Cuts a stream in pieces of `size`. A full piece is held until another byte comes: it may be the last. */
function createCutter(size: number): Cutter {
  let held: Buffer | undefined;
  let used = 0;
  return {
    *push(input) {
      let at = 0;
      while (at < input.length) {
        if (used === size && held !== undefined) {
          yield held;
          used = 0;
        }
        if (used === 0) {
          // Straight from the input where it holds more than a piece: no copy.
          for (; input.length - at > size; at += size) yield input.subarray(at, at + size);
        }
        held ??= Buffer.allocUnsafeSlow(size);
        const count = input.copy(held, used, at);
        used += count;
        at += count;
      }
    },
    rest: () => held?.subarray(0, used) ?? Buffer.alloc(0),
  };
}
