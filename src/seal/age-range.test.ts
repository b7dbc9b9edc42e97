import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';
import {
  CHUNK,
  SEALED_CHUNK,
  failsWith,
  payloadStart,
  pieces,
  sourceOf,
  whole,
} from '../../test/sealed-object.ts';
import { HoldfastError } from '../errors.ts';
import { createAgeOpener, createAgeSealer } from './age.ts';
import { generateIdentity, parseIdentities } from './identity.ts';
import type { RangeSource, Sealer } from './sealer.ts';

const key = generateIdentity();
const sealer = createAgeSealer([key.recipient]);
const opener = createAgeOpener(parseIdentities(key.identity, 'test'));
/** Bytes that differ everywhere, so that a range from the wrong place shows. */
const plain = randomBytes(20 * CHUNK + 77);

async function sealed(bytes: Buffer, by: Sealer = sealer): Promise<Buffer> {
  return whole(by.seal(pieces(bytes)));
}

test('openRange() equals the slice', async () => {
  const object = await sealed(plain);
  const edge = fc.oneof(
    fc.integer({ min: 0, max: plain.length }),
    fc.integer({ min: 0, max: 20 }).map((count) => count * CHUNK),
    fc.constantFrom(CHUNK - 1, CHUNK + 1, plain.length, plain.length - 1),
  );
  await fc.assert(
    fc.asyncProperty(edge, edge, async (one, other) => {
      const [start, end] = one < other ? [one, other] : [other, one];
      const range = await whole(opener.openRange(sourceOf(object), start, end - start));
      assert.ok(range.equals(plain.subarray(start, end)), `${start}..${end}`);
    }),
    { numRuns: 150 },
  );
});

test('openRange() of an object whose size is a multiple of the chunk, and of an empty one', async () => {
  const bytes = plain.subarray(0, 2 * CHUNK);
  const source = sourceOf(await sealed(bytes));
  for (const [offset, length] of [
    [0, 2 * CHUNK],
    [CHUNK, CHUNK],
    [2 * CHUNK - 1, 1],
    [0, CHUNK],
    [CHUNK, 0],
  ] as const) {
    const range = await whole(opener.openRange(source, offset, length));
    assert.ok(range.equals(bytes.subarray(offset, offset + length)), `${offset}+${length}`);
  }
  const empty = sourceOf(await sealed(Buffer.alloc(0)));
  assert.equal((await whole(opener.openRange(empty, 0, 0))).length, 0);
  await assert.rejects(whole(opener.openRange(empty, 0, 1)), failsWith('object-damaged'));
});

test('openRange() reads the header of a source once', async () => {
  const source = sourceOf(await sealed(plain));
  for (const offset of [0, 5 * CHUNK, 9]) await whole(opener.openRange(source, offset, 10));
  assert.equal(source.reads, 4);
});

test('openRange() detects a damaged chunk, a truncated object and a range beyond the end', async () => {
  const object = await sealed(plain);
  const flipped = Buffer.from(object);
  flipped[payloadStart(object) + 3 * SEALED_CHUNK + 9]! ^= 4;
  await assert.rejects(whole(opener.openRange(sourceOf(flipped), 3 * CHUNK, 1)), failsWith('object-damaged'));
  assert.equal((await whole(opener.openRange(sourceOf(flipped), 2 * CHUNK, CHUNK))).length, CHUNK);
  for (const offset of [plain.length, plain.length + 1, plain.length + 9 * CHUNK]) {
    await assert.rejects(
      whole(opener.openRange(sourceOf(object), offset, 1)),
      failsWith('object-damaged'),
      `offset ${offset}`,
    );
  }
  // Cut between chunks: what is now the last one was not sealed as such.
  const cut = object.subarray(0, payloadStart(object) + 4 * SEALED_CHUNK);
  await assert.rejects(whole(opener.openRange(sourceOf(cut), 3 * CHUNK, 1)), failsWith('object-damaged'));
  const inHeader = sourceOf(object.subarray(0, 100));
  await assert.rejects(whole(opener.openRange(inHeader, 0, 1)), failsWith('object-damaged'));
});

test('openRange() detects a source that ends between chunks', async () => {
  const sound = sourceOf(await sealed(plain));
  const start = payloadStart(await whole(sound.read(0, sound.sizeBytes)));
  const short: RangeSource = {
    sizeBytes: sound.sizeBytes,
    read: (offset, length) =>
      sound.read(offset, offset < start ? length : Math.min(length, 2 * SEALED_CHUNK)),
  };
  assert.equal((await whole(opener.openRange(short, CHUNK, 2 * CHUNK))).length, 2 * CHUNK);
  await assert.rejects(whole(opener.openRange(short, CHUNK, 3 * CHUNK)), failsWith('object-damaged'));
});

test('openRange() asks the source again after a storage failure', async () => {
  const sound = sourceOf(await sealed(plain));
  let away = true;
  const source: RangeSource = {
    sizeBytes: sound.sizeBytes,
    async *read(offset, length) {
      if (away) throw new HoldfastError('storage-unavailable', 'storage is away');
      yield* sound.read(offset, length);
    },
  };
  await assert.rejects(whole(opener.openRange(source, 0, 3)), failsWith('storage-unavailable'));
  away = false;
  assert.ok((await whole(opener.openRange(source, 0, 3))).equals(plain.subarray(0, 3)));
});

test('openRange() finds the payload after a header longer than its first read', async () => {
  const many = Array.from({ length: 99 }, () => generateIdentity().recipient);
  const object = await sealed(plain, createAgeSealer([...many, key.recipient]));
  assert.ok(payloadStart(object) > 8192);
  const range = await whole(opener.openRange(sourceOf(object), CHUNK - 2, 4));
  assert.ok(range.equals(plain.subarray(CHUNK - 2, CHUNK + 2)));
});
