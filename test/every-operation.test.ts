import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createMemoryStorage } from '../src/storage/memory.ts';
import type { Storage } from '../src/storage/storage.ts';
import { runWithCrashAtEveryOperation, type FaultedRun } from './every-operation.ts';
import { VolatileStorage } from './volatile-storage.ts';

const DATA = Buffer.from('data');

/** Data first, then the record that commits it. */
async function sound(storage: Storage): Promise<void> {
  await storage.put('data', DATA);
  await storage.put('record', Buffer.from('{}'), { ifAbsent: true });
}

async function recordMeansData(inner: Storage, run: FaultedRun): Promise<void> {
  const record = await inner.head('record');
  if (run.acknowledged) assert.ok(record, 'acknowledged without a record');
  if (record !== undefined) assert.ok(await inner.head('data'), 'a record without its data');
}

test('runWithCrashAtEveryOperation() hits every operation once for each kind and passes a sound scenario', async () => {
  const seen: string[] = [];
  const { runs } = await runWithCrashAtEveryOperation({
    prepare: () => createMemoryStorage(),
    scenario: sound,
    invariant: async (inner, run) => {
      seen.push(`${run.kind} ${run.at} ${run.operation} ${run.key} ${run.acknowledged}`);
      await recordMeansData(inner, run);
    },
  });
  assert.equal(runs, 8);
  assert.deepEqual(
    seen,
    ['crash-before', 'crash-after'].flatMap((kind) => [
      `${kind} 1 put-start data false`,
      `${kind} 2 put-publish data false`,
      `${kind} 3 put-start record false`,
      `${kind} 4 put-publish record false`,
    ]),
  );
});

test('runWithCrashAtEveryOperation() finds a record written before its data', async () => {
  const found = runWithCrashAtEveryOperation({
    prepare: () => createMemoryStorage(),
    scenario: async (storage) => {
      await storage.put('record', Buffer.from('{}'));
      await storage.put('data', DATA);
    },
    invariant: recordMeansData,
  });
  await assert.rejects(found, /does not hold after crash-before at operation 3 \(put-start data\)/);
});

test('runWithCrashAtEveryOperation() finds an error that is swallowed', async () => {
  const found = runWithCrashAtEveryOperation({
    kinds: ['error-before'],
    prepare: () => createMemoryStorage(),
    scenario: async (storage) => {
      await storage.put('data', DATA);
      await storage.put('record', Buffer.from('{}')).catch(() => undefined);
    },
    invariant: recordMeansData,
  });
  await assert.rejects(found, /does not hold after error-before at operation 3/);
});

test('runWithCrashAtEveryOperation() fails where the scenario fails by itself or shows a defect', async () => {
  const run = (scenario: (storage: Storage) => Promise<unknown>): Promise<unknown> =>
    runWithCrashAtEveryOperation({
      kinds: ['error-before'],
      prepare: () => createMemoryStorage(),
      scenario,
      invariant: async () => undefined,
    });
  await assert.rejects(
    run((storage) => storage.confirm('absent')),
    /fails without error-before/,
  );
  const defect = async (storage: Storage): Promise<unknown> => {
    const info = await storage.head('absent').catch(() => null);
    if (info === null) throw new TypeError('cannot read properties of null');
    return info;
  };
  await assert.rejects(run(defect), /brought out a defect/);
});

test('runWithCrashAtEveryOperation() finds a retry that acknowledges what it saw without confirming it', async () => {
  const attempt = (confirms: boolean): Promise<unknown> => {
    const push = async (storage: Storage): Promise<void> => {
      if ((await storage.head('data')) === undefined) await storage.put('data', DATA, { ifAbsent: true });
      else if (confirms) await storage.confirm('data');
    };
    return runWithCrashAtEveryOperation({
      kinds: ['crash-unsynced'],
      prepare: () => new VolatileStorage(),
      scenario: push,
      invariant: async (inner) => {
        await push(inner);
        inner.crash();
        assert.ok(await inner.head('data'), 'acknowledged and lost');
      },
    });
  };
  assert.deepEqual(await attempt(true), { runs: 1 });
  await assert.rejects(
    attempt(false),
    /does not hold after crash-unsynced at operation 1 \(put-publish data\)/,
  );
});
