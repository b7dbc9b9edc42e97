import assert from 'node:assert/strict';
import { chmod, mkdtemp, readdir, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import type { CoreConfiguration } from './configuration.ts';
import { readCoreCache, writeCoreCache, type CoreCache } from './core-cache.ts';

interface Fixture {
  file: string;
  cache: CoreCache;
  core: CoreConfiguration;
  /** A moment at which the configuration file counts as settled. */
  later: number;
}

async function fixture(t: TestContext): Promise<Fixture> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-cache-'));
  t.after(async () => rm(directory, { recursive: true }));
  const file = join(directory, 'holdfast.yaml');
  await writeFile(file, 'first');
  const core: CoreConfiguration = {
    file,
    clusterNames: ['app'],
    repositories: [{ name: 'local', url: 'file:///r', required: true }],
    recipients: ['age1x'],
    stateDirectory: '/state',
  };
  const cache = { directory: join(directory, 'cache'), version: '1', environment: { XDG_STATE_HOME: '/s' } };
  return { file, cache, core, later: Date.now() + 60_000 };
}

async function entryOf(cache: CoreCache): Promise<string> {
  const [name] = await readdir(cache.directory);
  assert.ok(name !== undefined);
  return join(cache.directory, name);
}

test('readCoreCache() gives back what was written, from a file only its owner can read', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  assert.equal(readCoreCache(file, cache), undefined);
  writeCoreCache(core, cache, later);
  assert.deepEqual(readCoreCache(file, cache), core);
  assert.equal((await stat(await entryOf(cache))).mode & 0o777, 0o600);
  assert.equal((await stat(cache.directory)).mode & 0o777, 0o700);
});

test('readCoreCache() ignores an entry once the configuration changed, even with the old time and size', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  const before = await stat(file);
  writeCoreCache(core, cache, later);
  await writeFile(file, 'other');
  await utimes(file, before.atime, before.mtime);
  assert.equal(readCoreCache(file, cache), undefined);
});

test('readCoreCache() ignores an entry once another file took the name', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  writeCoreCache(core, cache, later);
  await writeFile(`${file}.new`, 'first');
  await rename(`${file}.new`, file);
  assert.equal(readCoreCache(file, cache), undefined);
});

test('readCoreCache() ignores an entry of another version, another default or open to others', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  writeCoreCache(core, cache, later);
  assert.equal(readCoreCache(file, { ...cache, version: '2' }), undefined);
  assert.equal(readCoreCache(file, { ...cache, environment: { XDG_STATE_HOME: '/other' } }), undefined);
  await chmod(await entryOf(cache), 0o644);
  assert.equal(readCoreCache(file, cache), undefined);
});

test('readCoreCache() ignores a damaged entry', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  writeCoreCache(core, cache, later);
  const entry = await entryOf(cache);
  for (const text of ['', '{', 'null', '{"version":"1"}']) {
    await writeFile(entry, text);
    assert.equal(readCoreCache(file, cache), undefined, text);
  }
});

test('writeCoreCache() leaves out files that have just changed and URLs with a password', async (t) => {
  const { file, cache, core, later } = await fixture(t);
  writeCoreCache(core, cache, Date.now());
  assert.equal(readCoreCache(file, cache), undefined);
  const secret = { name: 'far', url: 'sftp://u:secret@h/p', required: true };
  writeCoreCache({ ...core, repositories: [secret] }, cache, later);
  assert.equal(readCoreCache(file, cache), undefined);
});

test('writeCoreCache() does nothing where it cannot write', async (t) => {
  const { file, core, later } = await fixture(t);
  const cache = { directory: '/proc/holdfast', version: '1', environment: {} };
  writeCoreCache(core, cache, later);
  assert.equal(readCoreCache(file, cache), undefined);
});
