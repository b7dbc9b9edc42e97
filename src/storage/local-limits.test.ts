import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmod, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { collect, patternedBytes, withCode } from '../../test/storage-suite.ts';
import { createLocalStorage } from './local.ts';

const run = promisify(execFile);
const CHILD = fileURLToPath(new URL('../../test/storage-child.ts', import.meta.url));
const MIB = 1024 * 1024;

async function scratch(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-limits-test-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function childLines(program: string, argumentList: readonly string[]): Promise<string[]> {
  return (await run(program, argumentList)).stdout.trimEnd().split('\n');
}

/** What is left after a put that met a limit: the small objects, and no trace of the large one. */
async function assertOnlySmall(root: string): Promise<void> {
  assert.deepEqual((await readdir(root)).sort(), ['small', 'small-again']);
  const storage = createLocalStorage(root);
  for (const key of ['small', 'small-again']) {
    assert.ok((await collect(storage.get(key))).equals(patternedBytes(1000)));
  }
}

test('put() beyond a file size limit throws storage-full and leaves nothing', async (t) => {
  const root = await scratch(t);
  const lines = await childLines('prlimit', [
    `--fsize=${MIB}`,
    process.execPath,
    CHILD,
    'fill',
    root,
    String(2 * MIB),
  ]);
  assert.deepEqual(lines, ['small done', 'large storage-full', 'small-again done']);
  await assertOnlySmall(root);
});

/** Root may mount in most places; where it may not, a file size limit is all that can be had. */
async function mountTmpfs(directory: string): Promise<boolean> {
  try {
    await run('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'holdfast-test', directory]);
    return true;
  } catch {
    return false;
  }
}

async function assertFullDiskIsHandled(root: string): Promise<void> {
  const storage = createLocalStorage(root);
  const full = withCode('storage-full');
  await storage.put('kept', patternedBytes(MIB));
  for (let attempt = 0; attempt < 3; attempt += 1) {
    for (const ifAbsent of [true, false]) {
      await assert.rejects(storage.put('large', patternedBytes(4 * MIB), { ifAbsent }), full);
      await assert.rejects(storage.put('kept', patternedBytes(4 * MIB), { ifAbsent }), full);
    }
    assert.deepEqual(await readdir(root), ['kept']);
  }
  assert.ok((await collect(storage.get('kept'))).equals(patternedBytes(MIB)));
  // Were anything of the failed puts still held, this would not fit.
  await storage.put('fits', patternedBytes(0.9 * MIB));
}

test('put() on a full file system throws storage-full, leaves nothing, and works again with space', async (t) => {
  const root = join(await scratch(t), 'small-disk');
  await mkdir(root);
  if (await mountTmpfs(root)) {
    try {
      await assertFullDiskIsHandled(root);
    } finally {
      await run('umount', [root]);
    }
  } else {
    const limited = ['--fsize=4096', process.execPath, CHILD, 'fill', root, String(MIB)];
    const lines = await childLines('prlimit', limited);
    assert.deepEqual(lines, ['small done', 'large storage-full', 'small-again done']);
    await assertOnlySmall(root);
  }
});

const OPERATIONS = [
  'head',
  'get',
  'list',
  'list-below',
  'list-absent',
  'put',
  'put-new-directory',
  'delete',
  'confirm',
];

/** A store of one object whose directories get `mode`, as a user without special rights finds it. */
async function outcomes(t: TestContext, mode: number): Promise<string[]> {
  const top = await scratch(t);
  const root = join(top, 'root');
  await createLocalStorage(root).put('seen/object', Buffer.from('x'));
  await chmod(join(root, 'seen/object'), 0o444);
  for (const directory of [join(root, 'seen'), root]) await chmod(directory, mode);
  await chmod(top, 0o755);
  try {
    return await childLines(process.execPath, [CHILD, 'denied', root]);
  } finally {
    for (const directory of [root, join(root, 'seen')]) await chmod(directory, 0o750);
    assert.deepEqual(await readdir(join(root, 'seen')), ['object']);
  }
}

test('a root that may not be read throws storage-denied, and is never taken for empty', async (t) => {
  assert.deepEqual(
    await outcomes(t, 0),
    OPERATIONS.map((name) => `${name} storage-denied`),
  );
});

test('a root that may only be read gives what it holds and throws storage-denied for the rest', async (t) => {
  const writes = new Set(['put', 'put-new-directory', 'delete']);
  assert.deepEqual(
    await outcomes(t, 0o555),
    OPERATIONS.map((name) => `${name} ${writes.has(name) ? 'storage-denied' : 'done'}`),
  );
});
