import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { timelineOf } from '../postgres/timeline.ts';
import { walSegmentName, type WalSegmentName } from '../postgres/wal-segment.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import type { Storage } from '../storage/storage.ts';
import { blake3Hex } from '../stream/hash.ts';
import { runWithCrashAtEveryOperation } from '../../test/every-operation.ts';
import { FaultyStorage } from '../../test/faulty-storage.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { VolatileStorage } from '../../test/volatile-storage.ts';
import { openTestRepository, SEGMENT_SIZE, SYSTEM_IDENTIFIER, withStorage } from '../../test/wal-lab.ts';
import { copyMissingWal, copyTails, copyWalFile, missingWal } from './copy-wal.ts';
import { walHeaderKey } from './layout.ts';
import type { Repository } from './repository.ts';
import { readWalHeader, readWholeWalFile, storeWalFile, type WalHeader } from './wal-file.ts';
import { compressFrames } from './wal-frames.ts';
import { listWal } from './wal-listing.ts';
import { findTailChain, prepareTail, readTailChain, storeTail } from './wal-tail.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

const segment = (timeline: number, number: number): WalSegmentName =>
  walSegmentName(timelineOf(timeline), BigInt(number), SEGMENT_SIZE);

async function store(repository: Repository, name: string, text = `content of ${name}`): Promise<WalHeader> {
  const bytes = Buffer.from(text);
  const file = {
    name,
    sizeBytes: bytes.length,
    hash: blake3Hex(bytes),
    modifiedAt: new Date(0),
    frames: () => compressFrames([bytes]),
  };
  const { header } = await storeWalFile(repository, identity, file, { host: 'h', now: () => new Date(0) });
  return header;
}

async function textOf(repository: Repository, name: string): Promise<string | undefined> {
  const header = await readWalHeader(repository, identity, name);
  return header && (await readWholeWalFile(repository, header, 1000)).toString();
}

async function namesIn(repository: Repository): Promise<string[]> {
  return (await Array.fromAsync(listWal(repository, identity))).map(({ name }) => name);
}

/** Every object of a store except its marker. */
async function objectsOf(storage: Storage): Promise<Map<string, string>> {
  const objects = new Map<string, string>();
  for await (const { key } of storage.list('clusters/')) {
    objects.set(key, Buffer.concat(await Array.fromAsync(storage.get(key))).toString('base64'));
  }
  return objects;
}

test('copyWalFile() copies header and data as they lie, and again is a success that syncs', async () => {
  const from = await openTestRepository();
  const storage = new VolatileStorage();
  const to = await openTestRepository(storage, 'second');
  const name = segment(1, 1);
  const header = await store(from, name);
  assert.equal(await copyWalFile(from, to, identity, name), 'copied');
  assert.deepEqual(await objectsOf(to.storage), await objectsOf(from.storage));
  storage.unsync(header.stored.key);
  storage.unsync(walHeaderKey(identity, name));
  assert.equal(await copyWalFile(from, to, identity, name), 'present');
  storage.crash();
  assert.equal(await textOf(to, name), `content of ${name}`);
});

test('copyWalFile() takes the same content stored under another key for present', async () => {
  const [from, to] = [await openTestRepository(), await openTestRepository()];
  const name = segment(1, 1);
  await store(from, name);
  const own = await store(to, name);
  assert.equal(await copyWalFile(from, to, identity, name), 'present');
  assert.deepEqual(await readWalHeader(to, identity, name), own);
});

test('copyWalFile() refuses other content and leaves it alone', async () => {
  const [from, to] = [await openTestRepository(), await openTestRepository()];
  const name = segment(1, 1);
  await store(from, name);
  await store(to, name, 'rival');
  const before = await objectsOf(to.storage);
  await assert.rejects(copyWalFile(from, to, identity, name), failsWith('wal-conflict'));
  assert.deepEqual(await objectsOf(to.storage), before);
});

test('copyWalFile() puts data back that is missing, half or committed below a header that lost it', async () => {
  for (const loss of ['missing', 'half', 'uncommitted half'] as const) {
    const [from, to] = [await openTestRepository(), await openTestRepository()];
    const name = segment(1, 1);
    const header = await store(from, name);
    await copyWalFile(from, to, identity, name);
    await to.storage.delete(header.stored.key);
    if (loss !== 'missing') await to.storage.put(header.stored.key, Buffer.from('half'));
    if (loss === 'uncommitted half') await to.storage.delete(walHeaderKey(identity, name));
    assert.equal(await copyWalFile(from, to, identity, name), 'copied', loss);
    assert.equal(await textOf(to, name), `content of ${name}`, loss);
  }
});

test('copyWalFile() copies nothing that is not what the header describes', async () => {
  for (const kind of ['flipped-read', 'truncated-read'] as const) {
    const [good, to] = [await openTestRepository(), await openTestRepository()];
    const name = segment(1, 1);
    await store(good, name);
    const from = withStorage(good, new FaultyStorage(good.storage, { kind, at: 1, keys: /wal-data/ }));
    await assert.rejects(copyWalFile(from, to, identity, name), failsWith('object-damaged'), kind);
    assert.deepEqual(await objectsOf(to.storage), new Map(), kind);
  }
  const [from, to] = [await openTestRepository(), await openTestRepository()];
  await assert.rejects(copyWalFile(from, to, identity, segment(1, 1)), failsWith('object-missing'));
});

/** Names of three timelines; those above 1 may have a history file. */
const anyNames = fc.uniqueArray(
  fc.oneof(
    fc
      .tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 12 }))
      .map(([t, n]) => segment(t, n) as string),
    fc.integer({ min: 2, max: 3 }).map((t) => `0000000${t}.history`),
    fc.integer({ min: 1, max: 12 }).map((n) => `${segment(1, n)}.00000028.backup`),
    fc.integer({ min: 1, max: 12 }).map((n) => `${segment(2, n)}.partial`),
  ),
  { maxLength: 30 },
);

async function repositoryWith(names: readonly string[]): Promise<Repository> {
  const headers = new Map(names.map((name) => [walHeaderKey(identity, name), Buffer.from('x')]));
  return openTestRepository(createMemoryStorage(headers));
}

test('missingWal() is what one has and the other lacks, in order, with the history of a timeline before its segments', async () => {
  await fc.assert(
    fc.asyncProperty(
      anyNames,
      anyNames,
      fc.option(fc.integer({ min: 0, max: 29 })),
      async (ours, theirs, at) => {
        const [from, to] = [await repositoryWith(ours), await repositoryWith(theirs)];
        const after = at === null ? undefined : ours[at];
        const missing = await Array.fromAsync(
          missingWal(from, to, identity, { ...(after !== undefined && { after }) }),
        );
        const listed = await namesIn(from);
        const late = listed.slice(after === undefined ? 0 : listed.indexOf(after) + 1);
        const wanted = new Set(late.filter((name) => !theirs.includes(name)));
        const timelines = missing.map(({ timeline }) => timeline);
        assert.deepEqual(
          timelines,
          timelines.toSorted((a, b) => a - b),
        );
        for (const [index, { name, timeline }] of missing.entries()) {
          assert.ok(ours.includes(name) && !theirs.includes(name));
          const history = `0000000${timeline}.history`;
          if (ours.includes(history) && !theirs.includes(history)) {
            assert.ok(missing.slice(0, index + 1).some((entry) => entry.name === history));
          }
          wanted.delete(name);
        }
        assert.deepEqual([...wanted], []);
        const segments = missing.filter(({ kind }) => kind !== 'history').map(({ name }) => name);
        assert.deepEqual(
          segments,
          late.filter((name) => segments.includes(name)),
        );
        assert.equal(new Set(missing.map(({ name }) => name)).size, missing.length);
      },
    ),
    { numRuns: 150 },
  );
});

test('copyMissingWal() makes up for everything, tells it in order, and changes nothing that is there', async () => {
  await fc.assert(
    fc.asyncProperty(anyNames, anyNames, async (ours, theirs) => {
      const [from, to] = [await openTestRepository(), await openTestRepository()];
      for (const name of ours) await store(from, name);
      for (const name of theirs) await store(to, name);
      const before = await objectsOf(to.storage);
      const missing = (await Array.fromAsync(missingWal(from, to, identity))).map(({ name }) => name);
      const told: string[] = [];
      const result = await copyMissingWal(from, to, identity, { onCopied: ({ name }) => told.push(name) });
      assert.deepEqual(told, missing);
      assert.deepEqual([result.copied, result.failed], [missing.length, []]);
      assert.deepEqual((await namesIn(to)).sort(), [...new Set([...ours, ...theirs])].sort());
      const now = await objectsOf(to.storage);
      for (const [key, content] of before) assert.equal(now.get(key), content);
      for (const name of ours) assert.equal(await textOf(to, name), `content of ${name}`);
    }),
    { numRuns: 40 },
  );
});

const MANY = [segment(1, 1), segment(1, 2), segment(2, 2), segment(2, 3), '00000002.history'];

test('copyMissingWal() with a fault at every operation of the destination leaves no header without data and no hole', async () => {
  const from = await openTestRepository();
  for (const name of MANY) await store(from, name);
  const order = (await Array.fromAsync(missingWal(from, await openTestRepository(), identity))).map(
    (e) => e.name,
  );
  const { runs } = await runWithCrashAtEveryOperation<VolatileStorage>({
    kinds: ['crash-before', 'crash-after', 'crash-unsynced', 'error-before', 'error-after'],
    prepare: async () => {
      const storage = new VolatileStorage();
      await openTestRepository(storage);
      return storage;
    },
    scenario: async (storage) => copyMissingWal(from, await openTestRepository(storage), identity),
    invariant: async (inner, { kind }) => {
      inner.crash();
      const to = await openTestRepository(inner);
      const names = await namesIn(to);
      for (const name of names) assert.equal(await textOf(to, name), `content of ${name}`);
      // A header that was visible and then lost to the power cut may leave the later ones behind it.
      if (kind !== 'crash-unsynced') assert.deepEqual(new Set(order.slice(0, names.length)), new Set(names));
      await copyMissingWal(from, to, identity);
      assert.deepEqual(await objectsOf(inner), await objectsOf(from.storage));
    },
  });
  assert.ok(runs > 100, `only ${runs} faults were tried`);
});

test('copyMissingWal() with a fault at every operation of the source copies whole files only, and the rest next time', async () => {
  let destination = await openTestRepository();
  const { runs } = await runWithCrashAtEveryOperation<VolatileStorage>({
    kinds: [
      'crash-before',
      'crash-after',
      'error-before',
      'error-after',
      'truncated-read',
      'flipped-read',
      'short-list',
    ],
    prepare: async () => {
      const storage = new VolatileStorage();
      const source = await openTestRepository(storage);
      for (const name of MANY) await store(source, name);
      return storage;
    },
    scenario: async (storage) => {
      destination = await openTestRepository();
      await copyMissingWal(await openTestRepository(storage), destination, identity);
    },
    invariant: async (inner) => {
      const from = await openTestRepository(inner);
      for (const name of await namesIn(destination))
        assert.equal(await textOf(destination, name), `content of ${name}`);
      const { failed } = await copyMissingWal(from, destination, identity);
      assert.deepEqual(failed, []);
      assert.deepEqual(await objectsOf(destination.storage), await objectsOf(inner));
    },
  });
  assert.ok(runs > 60, `only ${runs} faults were tried`);
});

test('copyMissingWal() tells what is damaged in the source, and copies everything else', async () => {
  const [from, to] = [await openTestRepository(), await openTestRepository()];
  for (const name of MANY) await store(from, name);
  const damaged = segment(1, 2);
  const header = await readWalHeader(from, identity, damaged);
  await from.storage.put(header?.stored.key ?? '', Buffer.from('damaged'));
  const { copied, failed } = await copyMissingWal(from, to, identity);
  assert.equal(copied, MANY.length - 1);
  assert.deepEqual(
    failed.map(({ name, error }) => [name, error.code]),
    [[damaged, 'object-damaged']],
  );
  assert.deepEqual(
    await namesIn(to),
    (await namesIn(from)).filter((name) => name !== damaged),
  );
});

test('copyTails() copies tails of segments that are complete nowhere, once', async () => {
  const [from, to] = [await openTestRepository(), await openTestRepository()];
  const [complete, elsewhere, open] = [segment(1, 1), segment(1, 2), segment(1, 3)];
  for (const name of [complete, elsewhere, open]) {
    await storeTail(from, identity, await prepareTail(name, 0, Buffer.from('abc'), undefined));
    await storeTail(from, identity, await prepareTail(name, 3, Buffer.from('defg'), 7n));
  }
  await store(from, complete);
  await store(to, elsewhere);
  assert.equal((await copyTails(from, to, identity)).copied, 2);
  for (const name of [complete, elsewhere]) assert.equal(await findTailChain(to, identity, name), undefined);
  const chain = await findTailChain(to, identity, open);
  assert.deepEqual(chain, await findTailChain(from, identity, open));
  assert.ok(chain);
  assert.equal(Buffer.concat(await Array.fromAsync(readTailChain(to, chain))).toString(), 'abcdefg');
  assert.deepEqual(await copyTails(from, to, identity), { copied: 0, bytes: 0 });
  await to.storage.delete(chain.tails[0]?.key ?? '');
  await from.storage.put(chain.tails[0]?.key ?? '', Buffer.from('cut'));
  const cut = withStorage(
    from,
    new FaultyStorage(from.storage, { kind: 'truncated-read', at: 1, keys: /wal-tail/ }),
  );
  await assert.rejects(copyTails(cut, to, identity), failsWith('object-damaged'));
});
