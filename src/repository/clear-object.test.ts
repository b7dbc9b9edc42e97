import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { createMemoryStorage } from '../storage/memory.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { decodeClearObject, encodeClearObject, readClearObject } from './clear-object.ts';
import { FORMAT_VERSION } from './layout.ts';

const value = {
  format: FORMAT_VERSION,
  name: 'größe "x"\n',
  at: 1.5,
  list: [1, { a: null }],
  checksum: 'mine',
};

test('decodeClearObject() undoes encodeClearObject()', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (members) => {
      const object = { ...members, format: FORMAT_VERSION };
      const { checksum: _, ...wanted } = { checksum: 0, ...object };
      const plain: unknown = JSON.parse(JSON.stringify(wanted));
      assert.deepEqual(decodeClearObject(encodeClearObject(object), 'k'), plain);
    }),
  );
});

test('decodeClearObject() refuses every flipped bit, every shorter text and every appended byte', () => {
  const bytes = encodeClearObject(value);
  assert.equal(decodeClearObject(bytes, 'k')['name'], value.name);
  const refused = (altered: Buffer, what: string): void =>
    assert.throws(() => decodeClearObject(altered, 'k'), failsWith('object-damaged'), what);
  for (let at = 0; at < bytes.length; at += 1) {
    refused(bytes.subarray(0, at), `${at} bytes`);
    for (let bit = 0; bit < 8; bit += 1) {
      const flipped = Buffer.from(bytes);
      flipped.writeUInt8(flipped.readUInt8(at) ^ (1 << bit), at);
      refused(flipped, `bit ${bit} of byte ${at}`);
    }
  }
  for (const more of [' ', '\n', '\0', '}']) refused(Buffer.concat([bytes, Buffer.from(more)]), more);
  for (const text of ['null', '[]', '1', '{}', '{"format":1}\n']) refused(Buffer.from(text), text);
});

test('decodeClearObject() tells a newer format from damage, and refuses one that is none', () => {
  const newer = encodeClearObject({ ...value, format: FORMAT_VERSION + 1 });
  assert.throws(() => decodeClearObject(newer, 'k'), failsWith('format-too-new'));
  assert.throws(
    () => decodeClearObject(encodeClearObject({ format: '1' }), 'k'),
    failsWith('object-damaged'),
  );
  assert.throws(() => decodeClearObject(encodeClearObject({ name: 'x' }), 'k'), failsWith('object-damaged'));
});

test('readClearObject() is undefined for nothing only, and bounded', async () => {
  const storage = createMemoryStorage();
  assert.equal(await readClearObject(storage, 'a', 1000), undefined);
  await storage.put('a', encodeClearObject(value));
  assert.equal((await readClearObject(storage, 'a', 1000))?.['at'], 1.5);
  await assert.rejects(readClearObject(storage, 'a', 20), failsWith('object-damaged'));
  await storage.put('a', Buffer.alloc(0));
  await assert.rejects(readClearObject(storage, 'a', 1000), failsWith('object-damaged'));
});
