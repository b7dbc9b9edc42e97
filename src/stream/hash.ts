import { Blake3Hasher } from '@napi-rs/blake-hash';

/** BLAKE3-256 of a whole buffer: 32 bytes. Source: the BLAKE3 specification, default hash mode. */
export function blake3(bytes: Uint8Array): Buffer {
  oneShot.reset();
  oneShot.update(asBuffer(bytes));
  return oneShot.digestBuffer();
}

export function blake3Hex(bytes: Uint8Array): string {
  return blake3(bytes).toString('hex');
}

export interface RunningHash {
  update(bytes: Uint8Array): void;
  /** Lower-case hexadecimal of the 32 bytes. May be asked once. */
  hex(): string;
}

/** BLAKE3-256 of bytes that arrive in pieces. */
export function createBlake3(): RunningHash {
  const hasher = new Blake3Hasher();
  return {
    update: (bytes) => void hasher.update(asBuffer(bytes)),
    hex: () => hasher.digestBuffer().toString('hex'),
  };
}

/** Passes a stream through unchanged and tells its length and hash when it has ended. */
export class HashingPass {
  sizeBytes = 0;
  readonly #hasher = createBlake3();

  async *through(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of source) {
      this.#hasher.update(chunk);
      this.sizeBytes += chunk.length;
      yield chunk;
    }
  }

  hex(): string {
    return this.#hasher.hex();
  }
}

// One hasher reused for all one-shot hashes: creating a native object a block costs more than hashing it.
const oneShot = new Blake3Hasher();

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
