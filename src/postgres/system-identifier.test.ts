import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { formatSystemIdentifier, parseSystemIdentifier } from './system-identifier.ts';

test('parseSystemIdentifier() refuses what no cluster can have', () => {
  for (const text of ['', '0', '-1', '01', '18446744073709551616', '1e3', ' 7', '7/..', '../7', '7\n']) {
    assert.throws(() => parseSystemIdentifier(text), { code: 'usage-invalid' }, text);
  }
});

test('formatSystemIdentifier() and parseSystemIdentifier() agree', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 1n, max: 0xffff_ffff_ffff_ffffn }), (value) => {
      assert.equal(parseSystemIdentifier(value.toString()), formatSystemIdentifier(value));
    }),
  );
});

test('formatSystemIdentifier() refuses zero', () => {
  assert.throws(() => formatSystemIdentifier(0n), { code: 'assertion' });
});
