import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { formatSize, parseSize } from './sizes.ts';

test('parseSize() reads whole and broken numbers with every unit as powers of 1024', () => {
  const cases: [string, number][] = [
    ['0', 0],
    ['8192', 8192],
    ['512kB', 524_288],
    ['1MiB', 1_048_576],
    ['1 MB', 1_048_576],
    ['1.5GiB', 1_610_612_736],
    [' 2TB ', 2_199_023_255_552],
  ];
  for (const [text, bytes] of cases) assert.equal(parseSize(text), bytes, text);
});

test('parseSize() refuses what is not a size', () => {
  for (const text of ['', 'MiB', '-1MiB', '1MiBs', '1 m', '0.3B', '1e3', '9007199254740993', '99999999TiB']) {
    assert.throws(() => parseSize(text), { code: 'config-invalid' }, text);
  }
});

test('parseSize() reads back every whole number of bytes', () => {
  fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(`${bytes}B`) === bytes));
});

test('formatSize() keeps to three digits', () => {
  assert.equal(formatSize(0), '0 B');
  assert.equal(formatSize(1023), '1023 B');
  assert.equal(formatSize(1536), '1.50 KiB');
  assert.equal(formatSize(16 * 1024 ** 2), '16.0 MiB');
  assert.equal(formatSize(345 * 1024 ** 3), '345 GiB');
});
