import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { chmod, lstat, mkdir, mkdtemp, readdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { promisify } from 'node:util';

import { createFaultyFiles } from '../../test/faulty-files.ts';
import { collect, testStorage, withCode } from '../../test/storage-suite.ts';
import { createLocalStorage } from './local.ts';
import { nodeFiles, type LocalFiles } from './local-files.ts';

async function scratch(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-local-test-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

testStorage('createLocalStorage()', async (t) => {
  const root = join(await scratch(t), 'root');
  await mkdir(root);
  return { storage: createLocalStorage(root), another: () => createLocalStorage(root) };
});

test('put() creates a missing root and directories, readable by owner and group alone', async (t) => {
  const top = await scratch(t);
  const previous = process.umask(0);
  t.after(() => process.umask(previous));
  await createLocalStorage(join(top, 'new/root')).put('a/b/object', Buffer.from('x'));
  const modes: Record<string, string> = {};
  for (const path of ['new', 'new/root', 'new/root/a', 'new/root/a/b', 'new/root/a/b/object']) {
    modes[path] = ((await lstat(join(top, path))).mode & 0o7777).toString(8);
  }
  assert.deepEqual(Object.values(modes), ['750', '750', '750', '750', '640']);
});

test('every operation but a first put() on a missing root throws repository-missing', async (t) => {
  const root = join(await scratch(t), 'root');
  const missing = withCode('repository-missing');
  const operations = (storage = createLocalStorage(root)): Promise<void> =>
    (async () => {
      for (const key of ['a', 'deep/a']) {
        await assert.rejects(storage.head(key), missing);
        await assert.rejects(collect(storage.get(key)), missing);
        await assert.rejects(storage.delete(key), missing);
        await assert.rejects(storage.confirm(key), missing);
        await assert.rejects(Array.fromAsync(storage.list(key)), missing);
      }
      await assert.rejects(Array.fromAsync(storage.list('')), missing);
    })();
  await operations();

  const storage = createLocalStorage(root);
  await storage.put('deep/a', Buffer.from('x'));
  await rename(root, `${root}-unmounted`);
  await operations();
  await operations(storage);
  await assert.rejects(storage.put('a', Buffer.from('x')), missing);
  await assert.rejects(storage.put('deep/b', Buffer.from('x')), missing);
  await assert.rejects(lstat(root), { code: 'ENOENT' });

  await writeFile(root, 'a file where the root should be');
  await operations();
});

test('head() and get() conclude no absence from a root that vanishes under them', async (t) => {
  const root = join(await scratch(t), 'root');
  await createLocalStorage(root).put('a/object', Buffer.from('x'));
  const vanish = async (): Promise<void> => rename(root, `${root}-unmounted`);
  const vanishing: LocalFiles = {
    ...nodeFiles,
    lstat: (async (path: string) => {
      await vanish();
      return nodeFiles.lstat(path);
    }) as LocalFiles['lstat'],
    open: async (path, flags, mode) => {
      await vanish();
      return nodeFiles.open(path, flags, mode);
    },
  };
  const missing = withCode('repository-missing');
  await assert.rejects(createLocalStorage(root, vanishing).head('a/object'), missing);
  await rename(`${root}-unmounted`, root);
  await assert.rejects(collect(createLocalStorage(root, vanishing).get('a/object')), missing);
});

test('the root may be reached through a link, but a directory below it may not', async (t) => {
  const top = await scratch(t);
  await mkdir(join(top, 'root/real'), { recursive: true });
  await mkdir(join(top, 'outside'));
  await writeFile(join(top, 'outside/object'), 'outside');
  await symlink('root', join(top, 'link'));
  await symlink('../outside', join(top, 'root/leads-out'));
  await symlink('real', join(top, 'root/leads-in'));
  await symlink('../unmounted', join(top, 'root/dangling'));
  const storage = createLocalStorage(join(top, 'link'));
  await storage.put('real/object', Buffer.from('inside'));

  for (const link of ['leads-out', 'leads-in', 'dangling']) {
    for (const directory of [link, `${link}/deeper`]) {
      const key = `${directory}/object`;
      const denied = withCode('storage-denied');
      await assert.rejects(storage.put(key, Buffer.from('x')), denied, key);
      await assert.rejects(storage.head(key), denied, key);
      await assert.rejects(collect(storage.get(key)), denied, key);
      await assert.rejects(storage.delete(key), denied, key);
      await assert.rejects(storage.confirm(key), denied, key);
      await assert.rejects(Array.fromAsync(storage.list(`${directory}/`)), denied, key);
    }
  }
  await assert.rejects(Array.fromAsync(storage.list('')), withCode('storage-denied'));
  assert.deepEqual(await readdir(join(top, 'outside')), ['object']);
  assert.deepEqual(await readdir(join(top, 'root/real')), ['object']);
  assert.deepEqual(await Array.fromAsync(storage.list('real/')), [{ key: 'real/object', sizeBytes: 6 }]);
});

test('an object is never a link, a FIFO or a directory, and none of them is written to', async (t) => {
  const root = await scratch(t);
  await writeFile(join(root, 'elsewhere'), 'untouched');
  await symlink('elsewhere', join(root, 'link'));
  await promisify(execFile)('mkfifo', [join(root, 'fifo')]);
  const storage = createLocalStorage(root);
  const denied = withCode('storage-denied');
  for (const key of ['link', 'fifo']) {
    await assert.rejects(storage.head(key), denied, key);
    await assert.rejects(collect(storage.get(key)), denied, key);
    await assert.rejects(storage.put(key, Buffer.from('x'), { ifAbsent: true }), denied, key);
  }
  await assert.rejects(Array.fromAsync(storage.list('')), denied);
  await storage.put('link', Buffer.from('replaced'));
  assert.equal(String(await collect(storage.get('link'))), 'replaced');
  assert.equal(String(await collect(storage.get('elsewhere'))), 'untouched');

  await mkdir(join(root, 'directory'));
  await assert.rejects(storage.put('directory', Buffer.from('x')), denied);
  await assert.rejects(storage.put('directory', Buffer.from('x'), { ifAbsent: true }), denied);
  await assert.rejects(storage.put('elsewhere/below', Buffer.from('x')), denied);
  assert.deepEqual((await readdir(root)).sort(), ['directory', 'elsewhere', 'fifo', 'link']);
});

test('list() passes over names no key can have, and temporary files', async (t) => {
  const root = await scratch(t);
  await mkdir(join(root, 'lost+found'));
  await chmod(join(root, 'lost+found'), 0);
  await writeFile(join(root, '.tmp-17-abc'), 'unfinished');
  await writeFile(join(root, 'with space'), 'foreign');
  await writeFile(join(root, 'object'), 'x');
  assert.deepEqual(await Array.fromAsync(createLocalStorage(root).list('')), [
    { key: 'object', sizeBytes: 1 },
  ]);
});

test('list() throws where a directory vanishes midway, and leaves out a single object deleted meanwhile', async (t) => {
  const root = await scratch(t);
  const storage = createLocalStorage(root);
  for (const key of ['a/1', 'a/2', 'b/1', 'c/1']) await storage.put(key, Buffer.from('x'));
  const seen: string[] = [];
  await assert.rejects(async () => {
    for await (const { key } of storage.list('')) {
      seen.push(key);
      if (key === 'a/1') await rm(join(root, 'b'), { recursive: true });
    }
  }, withCode('storage-unavailable'));
  assert.deepEqual(seen, ['a/1', 'a/2']);

  /** Runs `act` once, right before the first file's size is asked. */
  const interrupted = (act: () => Promise<void>): LocalFiles => {
    let done = false;
    const lstatThen = async (...values: Parameters<LocalFiles['lstat']>): Promise<unknown> => {
      if (!done && String(values[0]).endsWith('/a/1')) {
        done = true;
        await act();
      }
      return nodeFiles.lstat(...values);
    };
    return { ...nodeFiles, lstat: lstatThen as LocalFiles['lstat'] };
  };
  const deleting = createLocalStorage(
    root,
    interrupted(() => rm(join(root, 'a/1'))),
  );
  assert.deepEqual(
    (await Array.fromAsync(deleting.list('a/'))).map(({ key }) => key),
    ['a/2'],
  );
  await storage.put('a/1', Buffer.from('x'));
  const replacing = interrupted(async () => {
    await rename(join(root, 'a'), join(root, 'moved'));
    await mkdir(join(root, 'a'));
  });
  await assert.rejects(
    Array.fromAsync(createLocalStorage(root, replacing).list('a/')),
    withCode('storage-unavailable'),
  );
});

test('get() of a file that shrinks while it is read throws object-damaged', async (t) => {
  const root = await scratch(t);
  const storage = createLocalStorage(root);
  await storage.put('shrinks', Buffer.alloc(3 * 1024 * 1024));
  await assert.rejects(async () => {
    for await (const _ of storage.get('shrinks')) await writeFile(join(root, 'shrinks'), 'short');
  }, withCode('object-damaged'));
});

test('put() syncs the file before it publishes, and after that the directory and all above it', async (t) => {
  const root = await scratch(t);
  await createLocalStorage(root).put('a/b/first', Buffer.from('x'));
  for (const [ifAbsent, publication] of [
    [true, 'link'],
    [false, 'rename'],
  ] as const) {
    const { files, steps } = createFaultyFiles();
    await createLocalStorage(root, files).put('a/b/object', Buffer.from('x'), { ifAbsent });
    const published = steps.findIndex(({ call }) => call === publication);
    const synced = (path: RegExp): number[] =>
      steps.flatMap(({ call, path: at }, index) => (call === 'sync' && path.test(at) ? [index] : []));
    assert.equal(synced(/\.tmp-/).length, 1);
    assert.ok((synced(/\.tmp-/)[0] ?? Infinity) < published);
    assert.ok(synced(/\/a\/b$/).some((index) => index > published));
    // Another process may have made these and died: that they exist does not mean that they are durable.
    assert.equal(synced(/\/a$/).length, 1);
    assert.equal(synced(new RegExp(`^${root}$`)).length, 1);
    await rm(join(root, 'a/b/object'));
  }
});

test('put() of a buffer into a known directory takes few steps', async (t) => {
  const { files, steps } = createFaultyFiles();
  const storage = createLocalStorage(await scratch(t), files);
  await storage.put('a/b/first', Buffer.from('x'));
  steps.length = 0;
  await storage.put('a/b/object', Buffer.alloc(5 * 1024 * 1024), { ifAbsent: true });
  assert.deepEqual(
    steps.map(({ call }) => call),
    ['realpath', 'open', 'write', 'sync', 'stat', 'close', 'link', 'unlink', 'open', 'sync', 'close'],
  );
});

test('confirm() syncs the object, its directory and all above it', async (t) => {
  const root = await scratch(t);
  await createLocalStorage(root).put('a/b/object', Buffer.from('x'));
  const { files, steps } = createFaultyFiles();
  await createLocalStorage(root, files).confirm('a/b/object');
  const synced = steps.filter(({ call }) => call === 'sync').map(({ path }) => path);
  assert.deepEqual(synced.sort(), [root, join(root, 'a'), join(root, 'a/b'), join(root, 'a/b/object')]);
});

test('delete() syncs the directory, also where another deleted the object before', async (t) => {
  const root = await scratch(t);
  await createLocalStorage(root).put('a/object', Buffer.from('x'));
  for (const state of ['present', 'absent']) {
    const { files, steps } = createFaultyFiles();
    await createLocalStorage(root, files).delete('a/object');
    const order = steps.filter(({ call }) => call === 'unlink' || call === 'sync');
    assert.deepEqual(
      order,
      [
        { call: 'unlink', path: join(root, 'a/object') },
        { call: 'sync', path: join(root, 'a') },
      ],
      state,
    );
  }
});

test('put() with ifAbsent knows its own link where the file system reports it as existing', async (t) => {
  const root = await scratch(t);
  const files: LocalFiles = {
    ...nodeFiles,
    link: async (from, to) => {
      await nodeFiles.link(from, to);
      await nodeFiles.link(from, to);
    },
  };
  const storage = createLocalStorage(root, files);
  assert.equal((await storage.put('a', Buffer.from('x'), { ifAbsent: true })).created, true);
  assert.equal((await storage.put('a', Buffer.from('y'), { ifAbsent: true })).created, false);
  assert.deepEqual(await readdir(root), ['a']);
});

test('put() with ifAbsent says so where hard links are refused', async (t) => {
  const root = await scratch(t);
  const refuse = (): Promise<void> =>
    Promise.reject(Object.assign(new Error('EPERM: link'), { code: 'EPERM' }));
  const storage = createLocalStorage(root, { ...nodeFiles, link: refuse });
  await assert.rejects(storage.put('a', Buffer.from('x'), { ifAbsent: true }), {
    code: 'storage-denied',
    hint: /hard links/,
  });
  assert.deepEqual(await readdir(root), []);
});
