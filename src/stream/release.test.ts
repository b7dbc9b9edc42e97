import assert from 'node:assert/strict';
import { test } from 'node:test';

import { releaseBuffer } from './release.ts';

test('releaseBuffer() takes the memory of a large buffer and of all its views', () => {
  const buffer = Buffer.alloc(1024 * 1024, 1);
  const view = buffer.subarray(4096);
  releaseBuffer(buffer);
  assert.equal(buffer.length, 0);
  assert.equal(view.length, 0);
});

test('releaseBuffer() leaves small buffers alone, as they may lie beside others', () => {
  const [one, other] = [Buffer.from('a small one'), Buffer.from('another')];
  releaseBuffer(one);
  assert.equal(one.toString(), 'a small one');
  assert.equal(other.toString(), 'another');
});

test('releaseBuffer() keeps memory bounded where nothing is collected in between', () => {
  const before = process.memoryUsage.rss();
  for (let count = 0; count < 64; count += 1) {
    const buffer = Buffer.allocUnsafeSlow(16 * 1024 * 1024).fill(count);
    releaseBuffer(buffer);
  }
  assert.ok(process.memoryUsage.rss() - before < 64 * 1024 * 1024);
});
