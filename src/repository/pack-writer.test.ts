import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import type { Storage } from '../storage/storage.ts';
import { decompressFrame } from '../stream/zstd.ts';
import { FaultyStorage } from '../../test/faulty-storage.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import type { FrameLocation } from './block-map.ts';
import { packKey } from './layout.ts';
import { readFrames } from './pack-reader.ts';
import { PackWriter } from './pack-writer.ts';
import type { Repository } from './repository.ts';

const identity = { cluster: 'app', systemIdentifier: '7000000000000000001' };
const RUN = '20260101T000000Z-0000';
const MIB = 2 ** 20;

function noise(sizeBytes: number, seed: number): Buffer {
  const random = seededRandom(seed);
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0; at + 4 <= sizeBytes; at += 4) bytes.writeUInt32LE(random() * 2 ** 32, at);
  return bytes;
}

function writerOn(repository: Repository, signal?: AbortSignal): PackWriter {
  return new PackWriter(repository, identity, RUN, 'b', signal);
}

/** A store whose puts read nothing until they are let. */
function heldStorage(inner: Storage): { storage: Storage; release: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  const storage: Storage = {
    ...inner,
    put: async (key, source, options) => {
      if (key.endsWith('.pack')) await promise;
      return inner.put(key, source, options);
    },
  };
  return { storage, release: resolve };
}

async function repositoryOn(storage: Storage): Promise<Repository> {
  return { ...(await openTestRepository()), storage };
}

test('PackWriter places frames one behind the other in the order given, whatever takes longest to compress', async () => {
  const repository = await openTestRepository();
  const writer = writerOn(repository);
  const plains = [MIB, 1, 300_000, 2, 500_000, 17, MIB - 1, 4096].map((size, index) => noise(size, index));
  const placed: Promise<FrameLocation>[] = [];
  for (const plain of plains) {
    await writer.room();
    placed.push(writer.add(plain).placed);
  }
  await writer.finish();
  const frames = await Promise.all(placed);
  let offset = 0;
  for (const frame of frames) {
    assert.deepEqual([frame.run, frame.pack, frame.offset], [RUN, 1, offset]);
    offset += frame.bytes;
  }
  const [pack] = writer.packs;
  assert.ok(pack && writer.packs.length === 1);
  assert.deepEqual([pack.key, pack.sizeBytes], [packKey(identity, RUN, 'b', 1), offset]);
  const read: Buffer[] = [];
  for await (const { frame, compressed } of readFrames(repository, pack, frames)) {
    read.push(await decompressFrame(compressed, plains[frames.indexOf(frame)]?.length ?? 0));
  }
  assert.deepEqual(read, plains);
});

test('PackWriter begins a new pack after 32 MiB and numbers them from 1', async () => {
  const repository = await openTestRepository();
  const writer = writerOn(repository);
  const frames: Promise<FrameLocation>[] = [];
  const plain = noise(MIB, 1);
  for (let frame = 0; frame < 70; frame += 1) {
    await writer.room();
    plain.writeUInt32LE(frame, 0);
    frames.push(writer.add(Buffer.from(plain)).placed);
  }
  await writer.finish();
  assert.deepEqual(
    writer.packs.map(({ key }) => key),
    [1, 2, 3].map((number) => packKey(identity, RUN, 'b', number)),
  );
  const places = await Promise.all(frames);
  for (const [index, { key, sizeBytes }] of writer.packs.entries()) {
    assert.ok(sizeBytes < 34 * MIB, `${key} has ${sizeBytes} bytes`);
    const own = places.filter(({ pack }) => pack === index + 1);
    assert.equal(own[0]?.offset, 0);
    assert.equal((own.at(-1)?.offset ?? 0) + (own.at(-1)?.bytes ?? 0), sizeBytes);
  }
});

test('PackWriter.finish() of nothing stores nothing', async () => {
  const objects = new Map<string, Buffer>();
  const writer = writerOn(await openTestRepository(createMemoryStorage(objects)));
  await writer.finish();
  assert.deepEqual([writer.packs, writer.storedBytes, objects.size], [[], 0, 1]);
});

test('PackWriter.room() waits while the store is slow, and lets few frames wait in memory', async () => {
  const { storage, release } = heldStorage(createMemoryStorage());
  const writer = writerOn(await repositoryOn(storage));
  let added = 0;
  const adding = (async () => {
    for (; added < 30; added += 1) {
      await writer.room();
      writer.add(noise(1000, added));
    }
  })();
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.ok(added > 0 && added < 10, `${added} frames were taken`);
  assert.equal(writer.hasRoom, false);
  release();
  await adding;
  await writer.finish();
  assert.equal(added, 30);
});

test('PackWriter tells a failure of the store to every caller, whatever it waits for', async () => {
  for (const kind of ['error-before', 'error-after'] as const) {
    for (const only of ['put-start', 'put-publish'] as const) {
      const storage = new FaultyStorage(createMemoryStorage(), { kind, at: 1, only: [only] });
      const writer = writerOn(await repositoryOn(storage));
      const placed: Promise<FrameLocation>[] = [];
      const adding = (async () => {
        for (;;) {
          await writer.room();
          placed.push(writer.add(noise(MIB, placed.length)).placed);
        }
      })();
      await assert.rejects(adding, failsWith('storage-unavailable'), `${kind} ${only}`);
      await assert.rejects(writer.room(), failsWith('storage-unavailable'));
      await assert.rejects(writer.finish(), failsWith('storage-unavailable'));
      assert.throws(() => writer.add(Buffer.alloc(1)), failsWith('storage-unavailable'));
      for (const result of await Promise.allSettled(placed)) {
        if (result.status === 'rejected') assert.ok(failsWith('storage-unavailable')(result.reason));
      }
      await writer.abort(new Error('too late'));
      assert.deepEqual(writer.packs, []);
    }
  }
});

test('PackWriter.abort() ends writing; nothing becomes visible and waiting callers get the reason', async () => {
  const objects = new Map<string, Buffer>();
  const writer = writerOn(await openTestRepository(createMemoryStorage(objects)));
  const before = objects.size;
  const reason = new HoldfastError('connection-lost', 'gone');
  const { placed } = writer.add(noise(MIB, 1));
  await placed;
  await writer.abort(reason);
  assert.equal(objects.size, before);
  await assert.rejects(writer.finish(), reason);
  await assert.rejects(writer.room(), reason);
});

test('PackWriter.abort() reaches callers that wait for room, and returns only when nothing is written any more', async () => {
  const { storage, release } = heldStorage(createMemoryStorage());
  const writer = writerOn(await repositoryOn(storage));
  while (writer.hasRoom) writer.add(noise(1000, 1));
  const waiting = writer.room();
  const reason = new HoldfastError('cancelled', 'enough');
  const aborting = writer.abort(reason);
  release();
  await assert.rejects(waiting, reason);
  await aborting;
});

test('PackWriter of a run that uses a number again is a defect, not an overwritten pack', async () => {
  const repository = await openTestRepository();
  const first = writerOn(repository);
  first.add(noise(100, 1));
  await first.finish();
  const second = writerOn(repository);
  second.add(noise(100, 2));
  await assert.rejects(second.finish(), failsWith('assertion'));
});

test('PackWriter stops for an aborted signal', async () => {
  const stop = new AbortController();
  const writer = writerOn(await openTestRepository(), stop.signal);
  stop.abort();
  writer.add(noise(100, 1));
  await assert.rejects(writer.finish(), failsWith('cancelled'));
});
