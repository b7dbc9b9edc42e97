import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createMemoryStorage } from '../src/storage/memory.ts';
import type { Storage } from '../src/storage/storage.ts';
import { CrashError, FaultyStorage, type FaultKind, type FaultPlan } from './faulty-storage.ts';
import { collect, patternedBytes, testStorage, withCode } from './storage-suite.ts';
import { VolatileStorage } from './volatile-storage.ts';

testStorage('FaultyStorage without a plan', async () => {
  const objects = new Map<string, Buffer>();
  return {
    storage: new FaultyStorage(createMemoryStorage(objects)),
    another: () => new FaultyStorage(createMemoryStorage(objects)),
  };
});

async function* one(text: string): AsyncGenerator<Buffer> {
  yield Buffer.from(text);
}

async function keysOf(storage: Storage): Promise<string[]> {
  return (await Array.fromAsync(storage.list(''))).map(({ key }) => key);
}

test('FaultyStorage counts every operation, a put as two', async () => {
  const storage = new FaultyStorage(createMemoryStorage());
  await storage.put('a', one('x'));
  await storage.head('a');
  await collect(storage.get('a'));
  await keysOf(storage);
  await storage.confirm('a');
  await storage.delete('a');
  assert.deepEqual(
    storage.operations.map(({ operation, key }) => `${operation} ${key}`),
    ['put-start a', 'put-publish a', 'head a', 'get a', 'list ', 'confirm a', 'delete a'],
  );
  assert.equal(storage.fired, undefined);
});

test('FaultyStorage crashes before or after a put is published, and stays dead', async () => {
  const cases: [FaultKind, number, string[]][] = [
    ['crash-before', 1, []],
    ['crash-after', 1, []],
    ['crash-before', 2, []],
    ['crash-after', 2, ['a']],
  ];
  for (const [kind, at, left] of cases) {
    for (const source of [() => Buffer.from('x'), () => one('x')]) {
      const inner = createMemoryStorage();
      const storage = new FaultyStorage(inner, { kind, at });
      await assert.rejects(storage.put('a', source()), CrashError);
      assert.deepEqual(await keysOf(inner), left, `${kind} ${at}`);
      await assert.rejects(storage.head('a'), CrashError);
      await assert.rejects(storage.put('b', Buffer.from('x')), CrashError);
      await assert.rejects(keysOf(storage), CrashError);
      await assert.rejects(collect(storage.get('a')), CrashError);
      await assert.rejects(storage.delete('a'), CrashError);
      assert.deepEqual(await keysOf(inner), left);
    }
  }
});

test('FaultyStorage lets no put under way be published after a crash', async () => {
  const inner = createMemoryStorage();
  const storage = new FaultyStorage(inner, { kind: 'crash-before', at: 1, only: ['head'] });
  const source = (async function* () {
    yield Buffer.from('x');
    await assert.rejects(storage.head('a'), CrashError);
  })();
  await assert.rejects(storage.put('a', source), CrashError);
  assert.deepEqual(await keysOf(inner), []);
});

test('FaultyStorage fails once, before or after the operation took effect', async () => {
  for (const [kind, left] of [
    ['error-before', ['a']],
    ['error-after', []],
  ] as const) {
    const inner = createMemoryStorage(new Map([['a', Buffer.from('x')]]));
    const storage = new FaultyStorage(inner, { kind, at: 1, only: ['delete'] });
    await storage.head('a');
    await assert.rejects(storage.delete('a'), withCode('storage-unavailable'));
    assert.deepEqual(await keysOf(inner), left);
    await storage.delete('a');
    assert.deepEqual(await keysOf(storage), []);
  }
});

test('FaultyStorage damages the chosen read alone, in the same place for the same seed', async () => {
  const bytes = patternedBytes(2_500_000);
  const inner = createMemoryStorage(
    new Map([
      ['damaged', bytes],
      ['sound', bytes],
      ['empty', Buffer.alloc(0)],
    ]),
  );
  const read = async (plan: FaultPlan, range?: { offset: number; length: number }): Promise<Buffer> => {
    const storage = new FaultyStorage(inner, { ...plan, keys: /^(damaged|empty)$/ });
    assert.ok((await collect(storage.get('sound'))).equals(bytes));
    assert.equal((await collect(storage.get('empty'))).length, 0);
    const found = await collect(storage.get('damaged', range === undefined ? {} : { range }));
    assert.deepEqual(storage.fired, { operation: 'get', key: 'damaged' });
    assert.ok((await collect(storage.get('damaged'))).equals(bytes));
    return found;
  };
  const range = { offset: 1_000_000, length: 1000 };
  const slice = bytes.subarray(1_000_000, 1_001_000);
  for (let seed = 1; seed <= 10; seed += 1) {
    for (const [part, whole] of [
      [undefined, bytes],
      [range, slice],
    ] as const) {
      const short = await read({ kind: 'truncated-read', at: 1, seed }, part);
      assert.ok(short.length < whole.length && whole.subarray(0, short.length).equals(short));
      assert.ok(short.equals(await read({ kind: 'truncated-read', at: 1, seed }, part)));

      const flipped = await read({ kind: 'flipped-read', at: 1, seed }, part);
      const wrong = [...flipped.keys()].filter((index) => flipped[index] !== whole[index]);
      assert.equal(flipped.length, whole.length);
      assert.equal(wrong.length, 1);
      const difference = (flipped[wrong[0] ?? 0] ?? 0) ^ (whole[wrong[0] ?? 0] ?? 0);
      assert.equal(difference & (difference - 1), 0, 'one bit');
      assert.ok(flipped.equals(await read({ kind: 'flipped-read', at: 1, seed }, part)));
    }
  }
});

test('FaultyStorage cuts the chosen list short as if it were complete', async () => {
  const inner = createMemoryStorage(new Map(['a', 'b', 'c'].map((key) => [key, Buffer.from(key)])));
  const lengths = new Set<number>();
  for (let seed = 1; seed <= 30; seed += 1) {
    const storage = new FaultyStorage(inner, { kind: 'short-list', at: 2, seed });
    assert.equal((await keysOf(storage)).length, 3);
    assert.deepEqual(await Array.fromAsync(storage.list('none')), []);
    lengths.add((await keysOf(storage)).length);
    assert.equal((await keysOf(storage)).length, 3);
  }
  assert.deepEqual(lengths, new Set([0, 1, 2]));
});

test('FaultyStorage leaves a write of a volatile store visible and not durable', async () => {
  const inner = new VolatileStorage();
  const storage = new FaultyStorage(inner, { kind: 'crash-unsynced', at: 1 });
  await assert.rejects(storage.put('a', one('x')), CrashError);
  assert.deepEqual(await keysOf(inner), ['a']);
  inner.crash();
  assert.deepEqual(await keysOf(inner), []);
});
