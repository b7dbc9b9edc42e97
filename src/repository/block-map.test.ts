import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import {
  ChunkView,
  decodeChunk,
  encodeChunk,
  entryKey,
  type Extent,
  HASH_BYTES,
  type MapEntry,
} from './block-map.ts';

const PLAIN = { noNullPrototype: true };
const path = fc
  .array(fc.integer({ min: 1, max: 255 }), { maxLength: 40 })
  .map((codes) => String.fromCharCode(...codes));
const extent: fc.Arbitrary<Extent> = fc.oneof(
  fc.record({ zeroBlocks: fc.integer({ min: 1, max: 300 }) }, PLAIN),
  fc.record(
    {
      frame: fc.record(
        {
          run: fc.constantFrom('20260101T000000Z-aa', '20260102T000000Z-bb', '20260103T000000Z-cc'),
          pack: fc.integer({ min: 1, max: 1_000_000 }),
          offset: fc.integer({ min: 0, max: 2 ** 31 }),
          bytes: fc.integer({ min: 1, max: 2 ** 20 }),
        },
        PLAIN,
      ),
      plainOffset: fc.integer({ min: 0, max: 2 ** 20 }),
      hashes: fc.integer({ min: 1, max: 40 }).map((n) => Buffer.alloc(n * HASH_BYTES, n)),
    },
    PLAIN,
  ),
);
const extents = fc.array(extent, { maxLength: 6 });
const entry: fc.Arbitrary<MapEntry> = fc.oneof(
  fc.record(
    {
      kind: fc.constant('file' as const),
      path,
      mode: fc.integer({ min: 0, max: 0o7777 }),
      sizeBytes: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
      crc32c: fc.integer({ min: 0, max: 0xffffffff }),
      extents,
    },
    PLAIN,
  ),
  fc.record(
    {
      kind: fc.constant('span' as const),
      path,
      span: fc.integer({ min: 0, max: 1_000_000 }),
      extents,
    },
    PLAIN,
  ),
  fc.record(
    { kind: fc.constant('directory' as const), path, mode: fc.integer({ min: 0, max: 0o7777 }) },
    PLAIN,
  ),
);

test('decodeChunk() undoes encodeChunk() for thousands of random chunks', () => {
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 20 }), (entries) => {
      assert.deepEqual(decodeChunk(encodeChunk(entries)), entries);
    }),
    { numRuns: 2000 },
  );
});

test('ChunkView finds every entry of a chunk by its key, and nothing else', () => {
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 20 }), path, (entries, other) => {
      const byKey = new Map(entries.map((each) => [entryKey(each), each]));
      const ordered = [...byKey.values()].sort((a, b) => (entryKey(a) < entryKey(b) ? -1 : 1));
      const view = new ChunkView(encodeChunk(ordered));
      for (const each of ordered) assert.deepEqual(view.find(entryKey(each)), each);
      assert.deepEqual(view.find(`${other}\0`), byKey.get(`${other}\0`));
    }),
    { numRuns: 1000 },
  );
});

test('encodeChunk() is the same bytes for the same entries, so that untouched chunks can be shared', () => {
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 10 }), (entries) => {
      assert.ok(encodeChunk(entries).equals(encodeChunk(structuredCloneEntries(entries))));
    }),
  );
});

test('decodeChunk() refuses truncated bytes with object-damaged, never with anything else', () => {
  fc.assert(
    fc.property(fc.array(entry, { minLength: 1, maxLength: 5 }), fc.nat(), (entries, cut) => {
      const bytes = encodeChunk(entries);
      const short = bytes.subarray(0, cut % bytes.length);
      assert.throws(
        () => decodeChunk(short),
        (error) => error instanceof HoldfastError && error.code === 'object-damaged',
      );
    }),
  );
});

function structuredCloneEntries(entries: MapEntry[]): MapEntry[] {
  return decodeChunk(encodeChunk(entries));
}
