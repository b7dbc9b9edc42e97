import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { formatLsn, lsnOf, parseLsn } from './lsn.ts';

test('parseLsn() reads what PostgreSQL prints', () => {
  assert.equal(parseLsn('0/3000060'), 0x3000060n);
  assert.equal(parseLsn('1A/0'), 0x1a_0000_0000n);
  assert.equal(parseLsn('ffffffff/FFFFFFFF'), 0xffff_ffff_ffff_ffffn);
  assert.equal(parseLsn('00000001/0000000A'), 0x1_0000_000an);
});

test('parseLsn() refuses what is not an lsn', () => {
  for (const text of [
    '',
    '0',
    '0/',
    '/0',
    '0/3000060 ',
    '0/123456789',
    '0x0/1',
    '-1/0',
    '0/1/2',
    '0/g',
    '0/1\n',
  ]) {
    assert.throws(() => parseLsn(text), { code: 'usage-invalid' }, text);
  }
});

test('formatLsn() and parseLsn() are inverse', () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }), (value) => {
      assert.equal(parseLsn(formatLsn(lsnOf(value))), value);
    }),
  );
});

test('lsnOf() holds the 64-bit range', () => {
  assert.throws(() => lsnOf(-1n), { code: 'assertion' });
  assert.throws(() => lsnOf(1n << 64n), { code: 'assertion' });
});
