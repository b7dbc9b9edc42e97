import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { createMemoryStorage } from '../storage/memory.ts';
import type { GetOptions, Storage } from '../storage/storage.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import { readFrames } from './pack-reader.ts';
import type { Repository } from './repository.ts';

const KEY = 'clusters/app/1/data/x/b000001.pack';
const MIB = 2 ** 20;

/** A repository with one object, which counts what is asked of it and cuts what it gives into odd chunks. */
async function packOf(bytes: Buffer): Promise<{ repository: Repository; reads: GetOptions['range'][] }> {
  const inner = createMemoryStorage();
  await inner.put(KEY, bytes);
  const reads: GetOptions['range'][] = [];
  const storage: Storage = {
    ...inner,
    async *get(key, options = {}) {
      reads.push(options.range);
      for await (const chunk of inner.get(key, options)) {
        for (let at = 0, size = 1; at < chunk.length; at += size, size = (size * 7919) % 100_003) {
          yield Buffer.from(chunk.subarray(at, at + size));
        }
      }
    },
  };
  return { repository: { ...(await openTestRepository()), storage }, reads };
}

function pattern(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0; at + 4 <= sizeBytes; at += 4) bytes.writeUInt32LE((at * 2654435761) >>> 0, at);
  return bytes;
}

test('readFrames() gives each frame its own bytes, with no more requests than stretches without large gaps', async () => {
  const bytes = pattern(6 * MIB);
  const stored = { key: KEY, sizeBytes: bytes.length, hash: '' };
  const piece = fc.record({
    gap: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 5000 }), fc.constantFrom(MIB, MIB + 1, 2 * MIB)),
    bytes: fc.integer({ min: 1, max: 200_000 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 12 }), async (pieces) => {
      const { repository, reads } = await packOf(bytes);
      const frames: { offset: number; bytes: number }[] = [];
      let end = 0;
      let stretches = 0;
      for (const { gap, bytes: size } of pieces) {
        if (end + gap + size > bytes.length) break;
        if (frames.length === 0 || gap > MIB) stretches += 1;
        frames.push({ offset: end + gap, bytes: size });
        end += gap + size;
      }
      const seen: unknown[] = [];
      for await (const { frame, compressed } of readFrames(repository, stored, frames)) {
        assert.ok(compressed.equals(bytes.subarray(frame.offset, frame.offset + frame.bytes)));
        seen.push(frame);
      }
      assert.deepEqual(seen, frames);
      assert.equal(reads.length, stretches);
    }),
    { numRuns: 100 },
  );
});

test('readFrames() notices a pack that ends within a frame', async () => {
  const { repository } = await packOf(pattern(1000));
  const long = { key: KEY, sizeBytes: 2000, hash: '' };
  for (const frames of [
    [{ offset: 900, bytes: 200 }],
    [
      { offset: 0, bytes: 10 },
      { offset: 1500, bytes: 10 },
    ],
  ]) {
    await assert.rejects(Array.fromAsync(readFrames(repository, long, frames)), failsWith('object-damaged'));
  }
});

test('readFrames() that is left early leaves no read behind', async () => {
  const { repository, reads } = await packOf(pattern(100_000));
  const stored = { key: KEY, sizeBytes: 100_000, hash: '' };
  let ended = false;
  const { storage } = repository;
  const watched: Repository = {
    ...repository,
    storage: {
      ...storage,
      async *get(key, options) {
        try {
          yield* storage.get(key, options);
        } finally {
          ended = true;
        }
      },
    },
  };
  for await (const { frame } of readFrames(watched, stored, [
    { offset: 0, bytes: 10 },
    { offset: 50_000, bytes: 10 },
  ])) {
    assert.equal(frame.offset, 0);
    break;
  }
  assert.deepEqual([reads.length, ended], [1, true]);
});
