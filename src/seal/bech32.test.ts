import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { decodeBech32, encodeBech32 } from './bech32.ts';

test('decodeBech32() reads the specification’s example keys', () => {
  const identity = decodeBech32('AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX');
  assert.equal(identity?.prefix, 'age-secret-key-');
  assert.deepEqual(identity.bytes, Buffer.alloc(32, 0x42));
  const recipient = 'age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj';
  const decoded = decodeBech32(recipient);
  assert.equal(decoded?.bytes.length, 32);
  assert.equal(encodeBech32('age', decoded.bytes), recipient);
});

test('decodeBech32() gives back what encodeBech32() was given', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      assert.deepEqual(decodeBech32(encodeBech32('age', bytes)), {
        prefix: 'age',
        bytes: Buffer.from(bytes),
      });
    }),
  );
});

test('decodeBech32() refuses any single changed character', () => {
  const text = encodeBech32('age', Buffer.alloc(32, 7));
  for (let at = 0; at < text.length; at += 1) {
    const changed = `${text.slice(0, at)}${text[at] === 'q' ? 'p' : 'q'}${text.slice(at + 1)}`;
    assert.equal(decodeBech32(changed), undefined, `position ${at}`);
  }
});

test('decodeBech32() refuses mixed case, no separator, a short checksum and foreign characters', () => {
  const text = encodeBech32('age', Buffer.alloc(32, 7));
  for (const wrong of ['', '1', 'age', 'age1', 'age1qqqqq', `A${text.slice(1)}`, `${text}b`, `é${text}`]) {
    assert.equal(decodeBech32(wrong), undefined, wrong);
  }
});
