import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { testRepository } from '../../test/harness/backup.ts';
import { readFiles, storeFiles, type SyntheticEntry } from '../../test/harness/synthetic-backup.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import type { BackupRecord } from './backup-record.ts';
import { type Extent, HASH_BYTES } from './block-map.ts';
import type { ChunkReference } from './map-index.ts';
import { type ChunkCache, PreviousBackup, PriorBlocks } from './previous-backup.ts';
import type { Repository } from './repository.ts';

const BLOCK = 8192;
const [FIRST, SECOND, THIRD] = ['20260101T000000Z-0000', '20260102T000000Z-0000', '20260103T000000Z-0000'];

type Files = Record<string, Buffer>;

function* entries(files: Files): Generator<SyntheticEntry> {
  yield { path: 'base', directory: true };
  yield { path: 'base/1', directory: true };
  for (const [path, content] of Object.entries(files)) yield { path, pieces: [content] };
}

function noise(sizeBytes: number, seed: number): Buffer {
  const random = seededRandom(seed);
  return Buffer.from(Array.from({ length: sizeBytes }, () => Math.floor(random() * 256)));
}

function someFiles(count: number, from = 0): Files {
  return Object.fromEntries(
    Array.from({ length: count }, (_, at) => [`base/1/${from + at}`, noise(200 + at, from + at)]),
  );
}

async function open(
  repository: Repository,
  record: BackupRecord,
  cache?: ChunkCache,
): Promise<PreviousBackup> {
  const said: string[] = [];
  const say = (text: string): void => void said.push(text);
  const previous = await PreviousBackup.open(repository, record, { say, ...(cache && { cache }) });
  assert.ok(previous !== undefined, said.join());
  return previous;
}

test('PriorBlocks.find() tells where a block lies that the earlier version had in the same place', () => {
  const extent: fc.Arbitrary<(seed: number) => Extent> = fc.oneof(
    fc.integer({ min: 1, max: 5 }).map((zeroBlocks) => () => ({ zeroBlocks })),
    fc.integer({ min: 1, max: 5 }).map((blocks) => (seed: number): Extent => {
      const hashes = Buffer.from(Array.from({ length: blocks * HASH_BYTES }, (_, at) => seed * 31 + at));
      return { frame: { run: 'r', pack: 1, offset: seed * 1000, bytes: 10 }, plainOffset: seed * 7, hashes };
    }),
  );
  fc.assert(
    fc.property(
      fc.array(extent, { maxLength: 8 }),
      fc.infiniteStream(fc.integer({ min: 0, max: 3 })),
      (make, luck) => {
        const extents = make.map((one, seed) => one(seed));
        const model: ({ extent: Extent; index: number } | undefined)[] = extents.flatMap((each) =>
          'zeroBlocks' in each
            ? Array.from({ length: each.zeroBlocks }, () => undefined)
            : Array.from({ length: each.hashes.length / HASH_BYTES }, (_, index) => ({
                extent: each,
                index,
              })),
        );
        const prior = new PriorBlocks(extents, BLOCK);
        // Rising, with blocks left out, and past the end.
        for (let block = 0; block < model.length + 3; block += luck.next().value ?? 1) {
          const there = model[block];
          const wrong = luck.next().value === 0;
          const hash = Buffer.alloc(HASH_BYTES, 0xab);
          let expected: object | undefined;
          if (there !== undefined && !('zeroBlocks' in there.extent) && !wrong) {
            there.extent.hashes.copy(hash, 0, there.index * HASH_BYTES, (there.index + 1) * HASH_BYTES);
            const { frame, plainOffset } = there.extent;
            expected = { frame, plainOffset: plainOffset + there.index * BLOCK };
          }
          assert.deepEqual(prior.find(block, hash), expected);
          if (luck.next().value === 1) assert.deepEqual(prior.find(block, hash), expected);
        }
      },
    ),
    { numRuns: 500 },
  );
});

test('PreviousBackup finds every file and directory it has, in any order, and no other', async () => {
  const repository = await openTestRepository();
  const files: Files = { ...someFiles(3000), 'base/1/odd \xff\n': noise(10, 1) };
  const { record, chunks } = await storeFiles(repository, FIRST, entries(files));
  assert.ok(chunks.length > 2);
  const previous = await open(repository, record);
  const random = seededRandom(1);
  const paths = Object.keys(files).sort(() => random() - 0.5);
  for (const path of paths) {
    const found = await previous.file(path);
    assert.deepEqual([found?.path, found?.sizeBytes], [path, files[path]?.length]);
  }
  for (const path of [
    '',
    'base',
    'base/1',
    'base/1/',
    'base/1/3000',
    'base/1/-',
    'zzz',
    'base/1/0\0',
    'base/1/1x',
  ]) {
    assert.equal(await previous.file(path), undefined, path);
    assert.deepEqual(await previous.span(path, 0), []);
  }
});

test('PreviousBackup finds the spans of a large file', async () => {
  const repository = await openTestRepository();
  const content = noise(3 * 2048 * 16 + 100, 5);
  const { record } = await storeFiles(
    repository,
    FIRST,
    entries({ 'base/1/big': content, 'base/1/bih': noise(5, 1) }),
    {
      blockSizeBytes: 16,
    },
  );
  const previous = await open(repository, record);
  assert.deepEqual((await previous.file('base/1/big'))?.extents, []);
  const blocks = async (span: number): Promise<number> => {
    const extents = await previous.span('base/1/big', span);
    return extents.reduce(
      (sum, each) => sum + ('zeroBlocks' in each ? 0 : each.hashes.length / HASH_BYTES),
      0,
    );
  };
  assert.deepEqual(
    [await blocks(0), await blocks(1), await blocks(2), await blocks(3), await blocks(4)],
    [2048, 2048, 2048, 7, 0],
  );
});

test('PreviousBackup reads each chunk once while they fit into memory', async () => {
  const objects = createMemoryStorage();
  const { record, chunks } = await storeFiles(
    await openTestRepository(objects),
    FIRST,
    entries(someFiles(2000)),
  );
  let reads = 0;
  const counting = {
    ...objects,
    get: (...args: Parameters<typeof objects.get>) => ((reads += 1), objects.get(...args)),
  };
  const previous = await open({ ...(await openTestRepository()), storage: counting }, record);
  reads = 0;
  for (let round = 0; round < 3; round += 1) {
    for (let file = 0; file < 2000; file += 7) assert.ok(await previous.file(`base/1/${file}`));
  }
  assert.ok(reads > 0 && reads <= chunks.length, `${reads} reads of ${chunks.length} chunks`);
});

test('PreviousBackup does not rely on packs that are gone or have another length, and says which', async () => {
  for (const change of ['delete', 'shorten'] as const) {
    const objects = new Map<string, Buffer>();
    const repository = await openTestRepository(createMemoryStorage(objects));
    const files = someFiles(50);
    const { record: first } = await storeFiles(repository, FIRST, entries(files));
    const more = { ...files, ...someFiles(10, 100) };
    const { record: second } = await storeFiles(repository, SECOND, entries(more), { previous: first });
    assert.equal(second.stored.newBlocks, 10);
    const key = [...objects.keys()].find((one) => one.includes(`${FIRST}/b000001`)) ?? '';
    if (change === 'delete') objects.delete(key);
    else objects.set(key, objects.get(key)?.subarray(1) ?? Buffer.alloc(0));

    const said: string[] = [];
    const { record: third } = await storeFiles(repository, THIRD, entries(more), {
      previous: second,
      say: (text) => said.push(text),
    });
    assert.equal(third.stored.newBlocks, 50);
    assert.match(said.join(), /b000001\.pack.* missing or damaged: its blocks are stored again/);
    assert.deepEqual(Object.fromEntries(await readFiles(repository, third)), more);
  }
});

test('PreviousBackup.open() does without a backup it cannot read, but not without a store', async () => {
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  const { record } = await storeFiles(repository, FIRST, entries(someFiles(5)));
  const said: string[] = [];
  const say = (text: string): void => void said.push(text);
  for (const key of [record.index.key, record.references.key]) {
    const bytes = objects.get(key) ?? Buffer.alloc(0);
    objects.delete(key);
    assert.equal(await PreviousBackup.open(repository, record, { say }), undefined);
    objects.set(key, bytes);
  }
  assert.match(said.join(), /cannot be compared with .*everything is stored anew.*cannot be compared/);
  const { storage } = repository;
  const down = {
    ...storage,
    list: () => {
      throw new HoldfastError('storage-unavailable', 'down');
    },
  };
  await assert.rejects(
    PreviousBackup.open({ ...repository, storage: down }, record, { say }),
    failsWith('storage-unavailable'),
  );
});

test('PreviousBackup uses a cache where it has no key, and stores again what the cache lost', async () => {
  const repository = await testRepository({ seal: 'age-write-only' });
  const kept = new Map<string, Buffer>();
  let index: ChunkReference[] | undefined;
  const cache = {
    index: async () => index,
    chunk: async (hash: string) => kept.get(hash),
    keep: async (hash: string, plain: Buffer) => void kept.set(hash, Buffer.from(plain)),
  };
  const files = someFiles(1500);
  const { record: first, chunks } = await storeFiles(repository, FIRST, entries(files), { cache });
  index = chunks;
  const options = { previous: first, cache };
  assert.equal((await storeFiles(repository, SECOND, entries(files), options)).record.stored.newBlocks, 0);

  const lost = chunks.find(({ first: key }) => key.startsWith('base/1/'));
  assert.ok(lost && kept.delete(lost.hash));
  const { record: third } = await storeFiles(repository, THIRD, entries(files), options);
  assert.ok(third.stored.newBlocks > 0 && third.stored.newBlocks < 1500, `${third.stored.newBlocks} blocks`);
  const withKey = await testRepository({ storage: repository.storage, seal: 'age' });
  assert.deepEqual(Object.fromEntries(await readFiles(withKey, third)), files);
});
