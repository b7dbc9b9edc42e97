import assert from 'node:assert/strict';
import { test } from 'node:test';

import { collect, testStorage } from '../../test/storage-suite.ts';
import { createMemoryStorage } from './memory.ts';

testStorage('createMemoryStorage()', async () => {
  const objects = new Map<string, Buffer>();
  return { storage: createMemoryStorage(objects), another: () => createMemoryStorage(objects) };
});

test('createMemoryStorage() reads what the holder of its map put there', async () => {
  const objects = new Map([['a/b', Buffer.from('planted')]]);
  const storage = createMemoryStorage(objects);
  assert.equal(String(await collect(storage.get('a/b'))), 'planted');
  await storage.put('c', Buffer.from('written'));
  assert.equal(String(objects.get('c')), 'written');
});
