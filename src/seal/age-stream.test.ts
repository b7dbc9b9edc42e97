import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chunkSpan, plainSize } from './age-stream.ts';

const CHUNK = 65536;
const SEALED_CHUNK = CHUNK + 16;

test('plainSize() is exact at the edges of chunks', () => {
  const sizes: [sealed: number, plain: number][] = [
    [16, 0],
    [17, 1],
    [SEALED_CHUNK - 1, CHUNK - 1],
    [SEALED_CHUNK, CHUNK],
    [SEALED_CHUNK + 17, CHUNK + 1],
    [2 * SEALED_CHUNK, 2 * CHUNK],
  ];
  for (const [sealed, plain] of sizes) assert.equal(plainSize(sealed), plain, `${sealed} bytes`);
});

test('plainSize() refuses sizes that no payload has', () => {
  for (const sealed of [0, 1, 15, SEALED_CHUNK + 1, SEALED_CHUNK + 15, SEALED_CHUNK + 16, -16]) {
    assert.throws(() => plainSize(sealed), { code: 'object-damaged' }, `${sealed} bytes`);
  }
});

test('chunkSpan() reads no chunk more than it needs', () => {
  const sealed = 2 * SEALED_CHUNK + 17;
  assert.deepEqual(chunkSpan(sealed, 0, 1), { firstChunk: 0, offset: 0, length: SEALED_CHUNK, final: false });
  assert.deepEqual(chunkSpan(sealed, CHUNK - 1, 2), {
    firstChunk: 0,
    offset: 0,
    length: 2 * SEALED_CHUNK,
    final: false,
  });
  assert.deepEqual(chunkSpan(sealed, CHUNK, CHUNK), {
    firstChunk: 1,
    offset: SEALED_CHUNK,
    length: SEALED_CHUNK,
    final: false,
  });
  assert.deepEqual(chunkSpan(sealed, 2 * CHUNK, 1), {
    firstChunk: 2,
    offset: 2 * SEALED_CHUNK,
    length: 17,
    final: true,
  });
});
