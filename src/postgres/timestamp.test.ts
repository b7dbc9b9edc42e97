import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { formatMicroseconds } from './timestamp.ts';

test('formatMicroseconds() keeps every microsecond, before 1970 too', () => {
  assert.equal(formatMicroseconds(0n), '1970-01-01T00:00:00.000000Z');
  assert.equal(formatMicroseconds(-1n), '1969-12-31T23:59:59.999999Z');
  assert.equal(formatMicroseconds(1_767_261_600_000_001n), '2026-01-01T10:00:00.000001Z');
});

test('formatMicroseconds() never throws and sorts as the times do', () => {
  const times = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
  fc.assert(
    fc.property(times, times, (a, b) => {
      const [low, high] = a < b ? [a, b] : [b, a];
      assert.match(formatMicroseconds(a), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
      assert.ok(formatMicroseconds(low) <= formatMicroseconds(high));
    }),
  );
});
