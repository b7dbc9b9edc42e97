import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { crc32c } from '../stream/crc32c.ts';
import { crc32cOfRange, crc32cOfRecord } from './wal-crc.ts';

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

test('crc32cOfRecord() equals crc32c() of the body followed by the header up to the checksum, wherever the record lies', () => {
  const records = fc.tuple(fc.uint8Array({ minLength: 24, maxLength: 900, size: 'max' }), fc.nat(9));
  fc.assert(
    fc.property(records, ([record, before]) => {
      const bytes = Buffer.concat([Buffer.alloc(before, 0xa5), record]);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      const expected = crc32c(record.subarray(0, 20), crc32c(record.subarray(24)));
      assert.equal(crc32cOfRecord(view, before, record.length), expected);
    }),
    { numRuns: 500 },
  );
});
