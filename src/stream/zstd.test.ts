import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { compressFrame, decompressBounded, decompressFrame } from './zstd.ts';

const damaged = (error: unknown): boolean =>
  error instanceof HoldfastError && error.code === 'object-damaged';
const SIZES = [0, 1, 63, 64, 65, 8191, 32_768, 32_769, 131_071, 1_048_576, 1_048_577, 3_000_001];

test('decompressFrame() undoes compressFrame() for odd sizes of random and of plain bytes', async () => {
  for (const size of SIZES) {
    for (const plain of [randomBytes(size), Buffer.alloc(size, 'pgbench ')]) {
      const frame = await compressFrame(plain);
      assert.ok(plain.equals(await decompressFrame(frame, size)), `size ${size}`);
    }
  }
});

test('frames laid one after another are one stream to the zstd tool', async () => {
  const parts = SIZES.map((size) => randomBytes(size));
  const stream = Buffer.concat(await Promise.all(parts.map((part) => compressFrame(part))));
  const run = spawnSync('zstd', ['-dc'], { input: stream, maxBuffer: 1 << 28 });
  assert.equal(run.status, 0, String(run.stderr));
  assert.ok(Buffer.concat(parts).equals(run.stdout));
});

test('decompressFrame() refuses every flipped byte and every truncation', async () => {
  const plain = Buffer.from('where the bytes of a relation lie '.repeat(9));
  const frame = await compressFrame(plain);
  for (let at = 0; at < frame.length; at += 1) {
    const flipped = Buffer.from(frame);
    flipped[at] = (flipped[at] ?? 0) ^ 0x10;
    const opened = await decompressFrame(flipped, plain.length).catch((error: unknown) => error);
    // A flip in a header bit without meaning may leave the content as it was; content that differs never passes.
    assert.ok(damaged(opened) || (Buffer.isBuffer(opened) && plain.equals(opened)), `byte ${at}`);
    await assert.rejects(decompressFrame(frame.subarray(0, at), plain.length), damaged);
  }
});

test('decompressBounded() stops at its bound, however much a frame would inflate', async () => {
  const bomb = await compressFrame(Buffer.alloc(64 * 1024 * 1024));
  assert.ok(bomb.length < 10_000);
  await assert.rejects(decompressBounded(bomb, 1024 * 1024), damaged);
  await assert.rejects(decompressFrame(bomb, 1024 * 1024), damaged);
});
