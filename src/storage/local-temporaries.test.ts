import assert from 'node:assert/strict';
import { link, mkdir, mkdtemp, readdir, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { withCode } from '../../test/storage-suite.ts';
import { createLocalStorage } from './local.ts';
import { removeStaleTemporaries } from './local-temporaries.ts';

const HOUR_MS = 3_600_000;

test('removeStaleTemporaries() removes old temporary files at any depth and nothing else', async (t) => {
  const top = await mkdtemp(join(tmpdir(), 'holdfast-temporaries-test-'));
  t.after(() => rm(top, { recursive: true, force: true }));
  const root = join(top, 'root');
  await mkdir(join(root, 'a/b'), { recursive: true });
  await mkdir(join(root, '.tmp-directory'));
  await mkdir(join(top, 'outside'));
  await symlink('../outside', join(root, 'link'));
  const old = new Date(Date.now() - 2 * HOUR_MS);
  for (const path of ['root/a/b/.tmp-old', 'root/.tmp-old', 'root/a/object', 'outside/.tmp-old']) {
    await writeFile(join(top, path), 'sixteen bytes ..');
    await utimes(join(top, path), old, old);
  }
  await link(join(root, 'a/object'), join(root, 'a/.tmp-published'));
  await writeFile(join(root, 'a/b/.tmp-young'), 'being written');

  assert.deepEqual(await removeStaleTemporaries(root, HOUR_MS), { files: 3, sizeBytes: 32 });
  assert.deepEqual(await removeStaleTemporaries(root, HOUR_MS), { files: 0, sizeBytes: 0 });
  assert.deepEqual((await readdir(root, { recursive: true })).sort(), [
    '.tmp-directory',
    'a',
    'a/b',
    'a/b/.tmp-young',
    'a/object',
    'link',
    'link/.tmp-old',
  ]);
});

test('removeStaleTemporaries() under a slow writer makes its put fail and nothing visible', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'holdfast-temporaries-test-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const storage = createLocalStorage(root);
  for (const ifAbsent of [true, false]) {
    const source = (async function* () {
      yield Buffer.from('slow');
      assert.equal((await removeStaleTemporaries(root, -HOUR_MS)).files, 1);
      yield Buffer.from('er');
    })();
    await assert.rejects(storage.put('a', source, { ifAbsent }), withCode('storage-unavailable'));
    assert.deepEqual(await readdir(root), []);
  }
});

test('removeStaleTemporaries() on a missing root does nothing', async () => {
  assert.deepEqual(await removeStaleTemporaries('/no/such/root', 0), { files: 0, sizeBytes: 0 });
});
