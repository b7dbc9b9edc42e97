import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { Storage } from '../src/storage/storage.ts';
import { CrashError } from './faulty-storage.ts';
import { collect, testStorage } from './storage-suite.ts';
import { VolatileStorage } from './volatile-storage.ts';

testStorage('VolatileStorage', async () => {
  const storage = new VolatileStorage();
  return { storage, another: () => storage };
});

async function contents(storage: Storage): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for await (const { key } of storage.list('')) found[key] = String(await collect(storage.get(key)));
  return found;
}

test('VolatileStorage keeps through a crash what put(), delete() and confirm() promised', async () => {
  const storage = new VolatileStorage();
  for (const key of ['a', 'b', 'c']) await storage.put(key, Buffer.from(key));
  await storage.delete('b');
  storage.unsync('c');
  await storage.confirm('c');
  assert.deepEqual(storage.volatileKeys, []);
  storage.crash();
  assert.deepEqual(await contents(storage), { a: 'a', c: 'c' });
});

test('VolatileStorage loses what was visible and not synced: new, replaced and deleted objects', async () => {
  const storage = new VolatileStorage();
  for (const key of ['deleted', 'replaced', 'seen']) await storage.put(key, Buffer.from('old'));
  await storage.delete('deleted');
  for (const key of ['new', 'replaced', 'lucky']) await storage.put(key, Buffer.from('new'));
  for (const key of ['deleted', 'replaced', 'new', 'lucky']) storage.unsync(key);
  assert.deepEqual(await contents(storage), { seen: 'old', replaced: 'new', new: 'new', lucky: 'new' });

  // Finding an object in the way makes nothing durable.
  assert.equal((await storage.put('new', Buffer.from('x'), { ifAbsent: true })).created, false);
  storage.crash((key) => key === 'lucky');
  assert.deepEqual(await contents(storage), { deleted: 'old', replaced: 'old', seen: 'old', lucky: 'new' });
});

test('VolatileStorage fails puts that were under way when the power went', async () => {
  const storage = new VolatileStorage();
  const source = (async function* () {
    yield Buffer.from('x');
    storage.crash();
  })();
  await assert.rejects(storage.put('a', source), CrashError);
  assert.deepEqual(await contents(storage), {});
});
