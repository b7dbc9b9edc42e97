import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { crc32c } from '../stream/crc32c.ts';
import { crc32cOfRange } from './wal-crc.ts';

test('crc32cOfRange() gives the published check value', () => {
  const bytes = Buffer.from('123456789');
  assert.equal(crc32cOfRange(new DataView(bytes.buffer, bytes.byteOffset, 9), 0, 9, 0), 0xe3069283);
});

test('crc32cOfRange() equals crc32c() for any range, in one piece and in two', () => {
  const ranges = fc.tuple(
    fc.uint8Array({ maxLength: 1500, size: 'max' }),
    fc.nat(1500),
    fc.nat(1500),
    fc.nat(1500),
  );
  fc.assert(
    fc.property(ranges, ([bytes, ...cuts]) => {
      const [from = 0, middle = 0, to = 0] = cuts.map((c) => Math.min(c, bytes.length)).sort((a, b) => a - b);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      const expected = crc32c(bytes.subarray(from, to));
      assert.equal(crc32cOfRange(view, from, to, 0), expected);
      assert.equal(crc32cOfRange(view, middle, to, crc32cOfRange(view, from, middle, 0)), expected);
    }),
  );
});
