/** For tests of sealed objects: streams cut as told, ranged sources, and where things lie in an age file. */
import assert from 'node:assert/strict';
import { HoldfastError } from '../src/errors.ts';
import type { RangeSource } from '../src/seal/sealer.ts';

/** Plain and sealed size of a full chunk of an age file. */
export const CHUNK = 65536;
export const SEALED_CHUNK = CHUNK + 16;

/** `bytes` in pieces of these sizes, again and again; without sizes in one. */
export async function* pieces(bytes: Buffer, ...sizes: number[]): AsyncGenerator<Buffer> {
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const size = sizes[turn % sizes.length] ?? bytes.length;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

export async function whole(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(stream));
}

/** A source over `bytes` that counts reads and fails the test where one is empty or leaves the object. */
export function sourceOf(bytes: Buffer): RangeSource & { reads: number } {
  return {
    reads: 0,
    sizeBytes: bytes.length,
    read(offset, length) {
      this.reads += 1;
      assert.ok(length > 0 && offset >= 0 && offset + length <= bytes.length, `read ${offset}+${length}`);
      return pieces(bytes.subarray(offset, offset + length), 50_000, 1, 70_000);
    },
  };
}

/** Where the chunks of an age file start: after the line of the MAC and the nonce. */
export function payloadStart(bytes: Buffer): number {
  return bytes.indexOf('\n', bytes.indexOf('\n---') + 1) + 1 + 16;
}

/** For `assert.rejects`: the error carries one of these codes. */
export function failsWith(...codes: string[]): (error: unknown) => boolean {
  return (error) => error instanceof HoldfastError && codes.includes(error.code);
}
