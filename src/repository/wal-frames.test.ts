import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import { compressFrame } from '../stream/zstd.ts';
import { pieces, whole } from '../../test/sealed-object.ts';
import { compressFrames, decompressFrames } from './wal-frames.ts';

test('decompressFrames() gives back what compressFrames() took, however the stream is cut', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.uint8Array({ minLength: 1, maxLength: 3000 }), { minLength: 1, maxLength: 9 }),
      fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1, maxLength: 4 }),
      async (parts, cuts) => {
        const plain = parts.map((part) => Buffer.from(part));
        const frames = await Array.fromAsync(compressFrames(plain));
        const stored = Buffer.concat(frames.map((frame) => frame.bytes));
        const back = await whole(decompressFrames(pieces(stored, ...cuts), frames));
        assert.deepEqual(back, Buffer.concat(plain));
      },
    ),
    { numRuns: 50 },
  );
});

test('compressFrames() refuses a frame that does not decompress to what went in', async () => {
  const lying = async (plain: Buffer): Promise<Buffer> => {
    const other = Buffer.from(plain);
    other.writeUInt8(other.readUInt8(5) ^ 1, 5);
    return compressFrame(other);
  };
  let calls = 0;
  const lyingOnce = async (plain: Buffer): Promise<Buffer> => {
    calls += 1;
    return calls === 3 ? lying(plain) : compressFrame(plain);
  };
  const plain = Array.from({ length: 6 }, (_, index) => Buffer.alloc(1000, index));
  let sealed = 0;
  await assert.rejects(
    async () => {
      for await (const frame of compressFrames(plain, lyingOnce)) sealed += frame.sizeBytes > 0 ? 1 : 0;
    },
    (error) => error instanceof HoldfastError && error.code === 'checksum-mismatch',
  );
  assert.equal(sealed, 2);
});

test('decompressFrames() refuses missing and surplus bytes', async () => {
  const frames = await Array.fromAsync(compressFrames([Buffer.alloc(500, 1), Buffer.alloc(300, 2)]));
  const stored = Buffer.concat(frames.map((frame) => frame.bytes));
  for (const altered of [
    stored.subarray(0, -1),
    stored.subarray(0, 3),
    Buffer.alloc(0),
    Buffer.concat([stored, Buffer.alloc(1)]),
  ]) {
    await assert.rejects(
      whole(decompressFrames(pieces(altered, 7), frames)),
      (error) => error instanceof HoldfastError && error.code === 'object-damaged',
    );
  }
});

test('compressFrames() gives frames that decompress, however content changes between what compresses well and badly', async () => {
  const random = (size: number): Buffer => randomBytes(size);
  const plain = [random(300_000), Buffer.alloc(300_000, 7), random(10), Buffer.alloc(1, 1), random(70_000)];
  const twice = [...plain, ...plain.toReversed()];
  const frames = await Array.fromAsync(compressFrames(twice));
  async function* stored(): AsyncGenerator<Buffer> {
    for (const { bytes } of frames) yield bytes;
  }
  const back = await Array.fromAsync(decompressFrames(stored(), frames));
  assert.ok(Buffer.concat(back).equals(Buffer.concat(twice)));
});
