import assert from 'node:assert/strict';
import { access } from 'node:fs/promises';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';

import { runWithCrashAtEveryOperation } from '../../../test/every-operation.ts';
import {
  createReceiveLab,
  hastyClock,
  heldOf,
  IDENTITY,
  type ReceiveLab,
  walOf,
} from '../../../test/receive-lab.ts';
import { failsWith } from '../../../test/sealed-object.ts';
import { seededRandom } from '../../../test/seeded-random.ts';
import { VolatileStorage } from '../../../test/volatile-storage.ts';
import { makeSegment, openTestRepository, SEGMENT_SIZE, withStorage } from '../../../test/wal-lab.ts';
import { HoldfastError } from '../../errors.ts';
import { lsnOf } from '../../postgres/lsn.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { segmentStart, walSegmentName } from '../../postgres/wal-segment.ts';
import type { Repository } from '../../repository/repository.ts';
import { storeWalFile } from '../../repository/wal-file.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { listTails, prepareTail, storeTail } from '../../repository/wal-tail.ts';
import { createMemoryStorage } from '../../storage/memory.ts';
import type { Storage } from '../../storage/storage.ts';
import { openWalSource } from '../wal-source.ts';
import { Publisher, type PublisherOptions } from './publisher.ts';

const FIRST = 3;
const name = (number: number) => walSegmentName(timelineOf(1), BigInt(number), SEGMENT_SIZE);
const start = (number: number) => segmentStart(BigInt(number), SEGMENT_SIZE);

function publisherOf(
  required: readonly Repository[],
  options: Partial<PublisherOptions> = {},
): { publisher: Publisher; problems: (string | undefined)[]; committed: string[] } {
  const problems: (string | undefined)[] = [];
  const committed: string[] = [];
  const publisher = new Publisher({
    required,
    identity: IDENTITY,
    segmentSize: SEGMENT_SIZE,
    host: 'test',
    clock: hastyClock,
    signal: new AbortController().signal,
    committed: (segment) => committed.push(segment.name),
    tailed: () => undefined,
    damaged: () => undefined,
    problem: (_repository, error) => problems.push(error?.code),
    ...options,
  });
  return { publisher, problems, committed };
}

/** Receives whole segments from `FIRST` on, with tails on the way, and the beginning of one more. */
async function receive(
  lab: ReceiveLab,
  publisher: Publisher,
  segments: number,
  random: () => number,
): Promise<void> {
  let tail: Promise<void> = Promise.resolve();
  publisher.begin(start(FIRST), () => undefined);
  for (let number = FIRST; number <= FIRST + segments; number += 1) {
    const isLast = number === FIRST + segments;
    const { segment, bytes } = await lab.begin(number);
    const end = isLast ? 40_000 : SEGMENT_SIZE;
    for (let at = 0; at < end;) {
      const to = Math.min(end, at + 1 + Math.floor(random() * 700_000));
      segment.append(bytes.subarray(at, to));
      at = to;
      if (random() < 0.5) tail = tail.then(async () => publisher.tail(segment));
      tail.catch(() => undefined);
      if (random() < 0.3) await new Promise(setImmediate);
    }
    if (isLast) {
      await tail;
      await publisher.tail(segment);
      await publisher.settle();
      await segment.discard();
      return;
    }
    publisher.complete(segment);
    await publisher.room();
  }
}

/** How far a repository reaches without a hole; fails where something lies behind one. */
async function reachOf(repository: Repository): Promise<bigint> {
  let number = FIRST;
  for await (const entry of listWal(repository, IDENTITY)) {
    assert.equal(entry.name, name(number), 'a hole');
    assert.equal(await heldOf(repository, name(number), walOf(number)), SEGMENT_SIZE);
    number += 1;
  }
  for await (const { segment } of listTails(repository, IDENTITY)) {
    assert.ok(segment <= name(number), `a tail of ${segment} behind a hole at ${name(number)}`);
  }
  return start(number) + BigInt(await heldOf(repository, name(number), walOf(number)));
}

/** Each operation waits for some turns, and now and then one fails. */
function moody(inner: Storage, random: () => number, failures: number): Storage {
  const mood = async (): Promise<void> => {
    for (let turns = Math.floor(random() * 4); turns > 0; turns -= 1) await new Promise(setImmediate);
    if (random() >= failures) return;
    const codes = ['storage-unavailable', 'storage-full', 'storage-denied', 'repository-missing'] as const;
    throw new HoldfastError(
      codes[Math.floor(random() * codes.length)] ?? 'storage-full',
      'a mood of the store',
    );
  };
  return {
    description: inner.description,
    features: inner.features,
    async put(key, source, options) {
      await mood();
      const result = await inner.put(key, source, options);
      await mood();
      return result;
    },
    async *get(key, options) {
      await mood();
      yield* inner.get(key, options);
    },
    async head(key, options) {
      await mood();
      return inner.head(key, options);
    },
    async *list(prefix, options) {
      await mood();
      yield* inner.list(prefix, options);
      await mood();
    },
    async delete(key, options) {
      await mood();
      await inner.delete(key, options);
    },
    async confirm(key) {
      await mood();
      await inner.confirm(key);
    },
  };
}

void describe('Publisher', () => {
  void it('Publisher makes everything visible in its order, however slow and unreliable the stores are', async () => {
    await using lab = await createReceiveLab();
    await fc.assert(
      fc.asyncProperty(
        fc.nat(),
        fc.integer({ min: 1, max: 3 }),
        fc.constantFrom(0, 0.05, 0.3),
        async (seed, stores, failures) => {
          const random = seededRandom(seed);
          const inner = await Promise.all(
            Array.from({ length: stores }, async (_, index) =>
              openTestRepository(createMemoryStorage(), `store-${index}`),
            ),
          );
          const required = inner.map((one) => withStorage(one, moody(one.storage, random, failures)));
          const { publisher, problems, committed } = publisherOf(required);
          const state = { checking: true };
          const watch = (async () => {
            while (state.checking) {
              const flushed = publisher.flushed;
              for (const one of inner)
                assert.ok((await reachOf(one)) >= flushed, 'flushed what is not there');
              await new Promise(setImmediate);
            }
          })();
          watch.catch(() => undefined);
          await receive(lab, publisher, 4, random);
          state.checking = false;
          await watch;
          const end = start(FIRST + 4) + 40_000n;
          assert.equal(publisher.flushed, end);
          for (const one of inner) assert.equal(await reachOf(one), end);
          assert.deepEqual(
            committed,
            [0, 1, 2, 3].map((index) => name(FIRST + index)),
          );
          if (failures === 0) assert.deepEqual(problems, []);
          assert.deepEqual(await lab.spool.leftOver(), []);
        },
      ),
      { numRuns: 12 * Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1) },
    );
  });

  void it('Publisher that dies at any operation leaves no hole and has reported only what is durable', async () => {
    await using lab = await createReceiveLab();
    let repository: Repository | undefined;
    let flushed = lsnOf(0n);
    const { runs } = await runWithCrashAtEveryOperation({
      kinds: ['crash-before', 'crash-after', 'crash-unsynced', 'error-before', 'error-after'],
      async prepare() {
        flushed = lsnOf(0n);
        const storage = new VolatileStorage();
        repository = await openTestRepository(storage);
        return storage;
      },
      async scenario(storage) {
        assert.ok(repository !== undefined);
        const { publisher } = publisherOf([withStorage(repository, storage)]);
        try {
          await receive(lab, publisher, 2, seededRandom(5));
        } finally {
          flushed = publisher.flushed;
          await lab.spool.close();
        }
      },
      async invariant(inner, { kind, acknowledged }) {
        if (!kind.startsWith('error')) inner.crash();
        assert.ok(repository !== undefined);
        const plain = withStorage(repository, inner);
        assert.ok((await reachOf(plain)) >= flushed, `${await reachOf(plain)} < ${flushed}`);
        if (kind.startsWith('error')) assert.ok(acknowledged, 'a store that works again was given up');
        const { publisher } = publisherOf([plain]);
        await receive(lab, publisher, 2, seededRandom(6));
        assert.equal(await reachOf(plain), start(FIRST + 2) + 40_000n);
      },
    });
    assert.ok(runs > 40, String(runs));
  });

  void it('Publisher ends with wal-conflict where another file of that name is stored, and commits nothing behind it', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    await storeOther(lab, repository, FIRST + 1);
    const { publisher } = publisherOf([repository]);
    await assert.rejects(receive(lab, publisher, 4, seededRandom(1)), failsWith('wal-conflict'));
    assert.throws(() => publisher.assertWorking(), failsWith('wal-conflict'));
    await assert.rejects(async () => publisher.room(), failsWith('wal-conflict'));
    assert.ok(publisher.flushed <= start(FIRST + 1));
    const names = await Array.fromAsync(listWal(repository, IDENTITY), (entry) => entry.name);
    assert.deepEqual(names, [name(FIRST), name(FIRST + 1)]);
  });

  void it('Publisher refuses to store a segment whole whose tails in the repository are of other bytes', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    const other = makeSegment({ segment: FIRST, seed: 77 }).bytes.subarray(0, 50_000);
    await storeTail(repository, IDENTITY, await prepareTail(name(FIRST), 0, Buffer.from(other), undefined));
    const { publisher } = publisherOf([repository]);
    publisher.begin(start(FIRST), () => undefined);
    publisher.complete(await lab.receive(FIRST));
    await assert.rejects(publisher.settle(), failsWith('wal-conflict'));
    assert.equal(publisher.flushed, start(FIRST));
    assert.deepEqual(await Array.fromAsync(listWal(repository, IDENTITY)), []);
    assert.equal((await Array.fromAsync(listTails(repository, IDENTITY))).length, 1);
  });

  void it('Publisher does not take an empty directory for its repository, nor another repository', async () => {
    await using lab = await createReceiveLab();
    const inner = await openTestRepository();
    let mounted = inner.storage;
    // As an unmounted disk looks, and then one that was mounted in its place.
    const others = [createMemoryStorage(), (await openTestRepository()).storage];
    const storage = switching(() => mounted);
    const { publisher, problems } = publisherOf([withStorage(inner, storage)]);
    publisher.begin(start(FIRST), () => undefined);
    let reached = 0;
    const { segment, bytes } = await lab.begin(FIRST);
    for (const [index, other] of others.entries()) {
      mounted = other;
      segment.append(bytes.subarray(reached, reached + 5000));
      const tail = publisher.tail(segment);
      const expected = index === 0 ? 'repository-missing' : 'repository-mismatch';
      const isOver = tail.then(() => assert.fail('it was taken for the repository'));
      isOver.catch(() => undefined);
      const noticed = (async () => {
        while (problems.at(-1) !== expected) await new Promise(setImmediate);
      })();
      await Promise.race([noticed, isOver]);
      assert.equal(publisher.flushed, start(FIRST) + BigInt(reached));
      mounted = inner.storage;
      await tail;
      reached += 5000;
      assert.equal(await heldOf(inner, name(FIRST), bytes), reached);
      assert.equal(publisher.flushed, start(FIRST) + BigInt(reached));
    }
    await segment.discard();
  });

  void it('Publisher keeps few segments in flight while a store is away, and ends when it is told to', async () => {
    await using lab = await createReceiveLab();
    const away = new AbortController();
    const inner = await openTestRepository();
    const never = withStorage(
      inner,
      moody(inner.storage, () => 0, 1),
    );
    const { publisher, problems } = publisherOf([never], {
      signal: away.signal,
      clock: { ...hastyClock, sleep: async (_ms, signal) => hastyClock.sleep(0, signal) },
    });
    publisher.begin(start(FIRST), () => undefined);
    let taken = 0;
    const flood = (async () => {
      for (let number = FIRST; ; number += 1) {
        publisher.complete(await lab.receive(number));
        taken += 1;
        await publisher.room();
      }
    })();
    for (let turns = 0; turns < 300; turns += 1) await new Promise(setImmediate);
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.ok(taken >= 2 && taken <= 8, String(taken));
    assert.equal(publisher.flushed, start(FIRST));
    assert.ok(problems.length > 0);
    away.abort(new HoldfastError('cancelled', 'enough'));
    await assert.rejects(flood, failsWith('cancelled'));
    await assert.rejects(publisher.settle(), failsWith('cancelled'));
    for (const { path } of await lab.spool.leftOver()) await access(path);
  });
});

function switching(now: () => Storage): Storage {
  return {
    description: 'switching:',
    features: now().features,
    put: async (key, source, options) => now().put(key, source, options),
    get: (key, options) => now().get(key, options),
    head: async (key, options) => now().head(key, options),
    list: (prefix, options) => now().list(prefix, options),
    delete: async (key, options) => now().delete(key, options),
    confirm: async (key) => now().confirm(key),
  };
}

async function storeOther(lab: ReceiveLab, repository: Repository, number: number): Promise<void> {
  const { writeFile } = await import('node:fs/promises');
  const path = `${lab.directory}/${name(number)}`;
  await writeFile(path, makeSegment({ segment: number, seed: 99 }).bytes);
  await using source = await openWalSource(path);
  await storeWalFile(
    repository,
    IDENTITY,
    {
      name: name(number),
      sizeBytes: source.sizeBytes,
      modifiedAt: source.modifiedAt,
      hash: await source.hash(),
      frames: () => source.frames(),
    },
    { host: 'other', now: () => new Date() },
  );
}
