/** The launcher's own part: what it hands over without Node, and everything it leaves to Node. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import {
  comingName,
  formatOwner,
  identifyProcess,
  type PrefetchOwner,
  readyName,
  warningName,
  windowDirectory,
} from './prefetch-owner.ts';

const LAUNCHER = fileURLToPath(new URL('../../bin/holdfast', import.meta.url));
const NAME = '000000010000000000000007';
const IDENTIFIER = '7000000000000000001';
const OPTIONS = [
  '--config',
  '/etc/hold fast.yaml',
  '--until=0/9',
  '--repository',
  "a'b",
  '--repository',
  'c',
];
const WORDS = OPTIONS.map((word) => `${word}\n`).join('');
const HASH = 'ab'.repeat(32);

interface Stage {
  launcher: string;
  /** Like a data directory in recovery. */
  data: string;
  spool: string;
  owner: PrefetchOwner;
  window: string;
  ready: string;
  /** Runs the launcher as restore_command would; `node` tells whether it was started. */
  fetch: (words?: string[]) => {
    status: number | null;
    node: string;
    stderr: string;
    content: string | undefined;
  };
  write: (owner?: PrefetchOwner, text?: (whole: string) => string) => Promise<void>;
}

async function stage(t: TestContext): Promise<Stage> {
  const root = await mkdtemp(join(tmpdir(), 'holdfast prefetch-'));
  t.after(async () => rm(root, { recursive: true }));
  const [data, launcher] = [join(root, 'data'), join(root, 'bin', 'holdfast')];
  const spool = join(data, 'pg_wal', 'holdfast-prefetch');
  await mkdir(spool, { recursive: true });
  await mkdir(join(root, 'bin'));
  await mkdir(join(root, 'dist', 'cli'), { recursive: true });
  await copyFile(LAUNCHER, launcher);
  await chmod(launcher, 0o755);
  await writeFile(join(root, 'package.json'), '{"type":"module"}');
  await writeFile(
    join(root, 'dist', 'cli', 'main.js'),
    "console.log(JSON.stringify(process.env['HOLDFAST_PREFETCH_WORDS'] ?? null));\nprocess.exit(7);\n",
  );
  await writeFile(join(data, 'postmaster.pid'), `4321\n${data}\n1700000000\n5432\n`);
  const process = await identifyProcess(globalThis.process.pid);
  assert.ok(process);
  const purpose = {
    postmaster: { pid: 4321, startedAt: 1_700_000_000 },
    systemIdentifier: IDENTIFIER,
    timeline: '00000001',
    words: WORDS,
  };
  const owner = { process, purpose };
  const window = windowDirectory(spool, process);
  await mkdir(window);
  const ready = join(window, readyName(IDENTIFIER, NAME, HASH));
  const destination = join(data, 'pg_wal', 'RECOVERYXLOG');
  return {
    launcher,
    data,
    spool,
    owner,
    window,
    ready,
    fetch(words = ['wal', 'fetch', NAME, 'pg_wal/RECOVERYXLOG', ...OPTIONS]) {
      const env = {
        PATH: `${dirname(globalThis.process.execPath)}:/usr/bin:/bin`,
        HOME: root,
        HOLDFAST_PREFETCH_WORDS: 'of somebody else',
      };
      const done = spawnSync(launcher, words, { cwd: data, env, encoding: 'utf8', timeout: 30_000 });
      const found = spawnSync('cat', [destination], { encoding: 'utf8' });
      spawnSync('rm', ['-f', destination]);
      const content = found.status === 0 ? found.stdout : undefined;
      return { status: done.status, node: done.stdout.trim(), stderr: done.stderr, content };
    },
    async write(other = owner, text = (whole) => whole) {
      await writeFile(ready, 'the segment');
      await writeFile(join(spool, 'owner'), text(formatOwner(other)));
    },
  };
}

const NODE = { status: 126, node: JSON.stringify(WORDS), stderr: '', content: undefined };

test('bin/holdfast wal fetch hands a ready segment over without Node, once', async (t) => {
  const { fetch, write, ready } = await stage(t);
  await write();
  assert.deepEqual(fetch(), { status: 0, node: '', stderr: '', content: 'the segment' });
  assert.equal(existsSync(ready), false);
  assert.deepEqual(fetch(), NODE);
});

test('bin/holdfast wal fetch finds name and path wherever the options stand', async (t) => {
  const { fetch, write } = await stage(t);
  await write();
  const [config, file, ...rest] = OPTIONS;
  const words = [
    config ?? '',
    file ?? '',
    'wal',
    'fetch',
    NAME,
    rest[0] ?? '',
    'pg_wal/RECOVERYXLOG',
    ...rest.slice(1),
  ];
  assert.equal(fetch(words).content, 'the segment');
});

test('bin/holdfast wal fetch says what the prefetch process had to say', async (t) => {
  const { fetch, write, window } = await stage(t);
  await write();
  await writeFile(join(window, warningName(NAME)), 'a is damaged\nb lacks it: \\n %s\n');
  const { status, stderr } = fetch();
  assert.deepEqual([status, stderr], [0, 'warning: a is damaged\nwarning: b lacks it: \\n %s\n']);
});

test('bin/holdfast wal fetch leaves everything that does not fit to Node', async (t) => {
  const { fetch, write, owner, spool, data, window, ready } = await stage(t);
  const { process, purpose } = owner;
  const withPurpose = (change: Partial<typeof purpose>): PrefetchOwner => ({
    process,
    purpose: { ...purpose, ...change },
  });
  const gone = spawnSync('true').pid;
  const owners: [string, PrefetchOwner][] = [
    ['a dead owner', { purpose, process: { ...process, pid: gone } }],
    ['a number used again', { purpose, process: { ...process, startTime: '1' } }],
    ['another boot', { purpose, process: { ...process, bootId: '00000000-0000-0000-0000-000000000000' } }],
    ['another server', withPurpose({ postmaster: { pid: 4322, startedAt: 1_700_000_000 } })],
    ['another start of it', withPurpose({ postmaster: { pid: 4321, startedAt: 1_700_000_001 } })],
    ['another cluster', withPurpose({ systemIdentifier: '7000000000000000002' })],
    ['another timeline', withPurpose({ timeline: '00000002' })],
    ['another --until', withPurpose({ words: WORDS.replace('0/9', '0/8') })],
    ['fewer words', withPurpose({ words: WORDS.replace('--repository\nc\n', '') })],
    ['more words', withPurpose({ words: `${WORDS}--quiet\n` })],
    ['words joined', withPurpose({ words: WORDS.replace("a'b\n--repository", "a'b --repository") })],
  ];
  for (const [what, other] of owners) {
    await mkdir(windowDirectory(spool, other.process), { recursive: true });
    await write(other);
    if (other.process !== process) {
      await copyFile(ready, join(windowDirectory(spool, other.process), readyName(IDENTIFIER, NAME, HASH)));
    }
    assert.deepEqual(fetch(), NODE, what);
  }
  for (const [what, text] of [
    ['another format', (whole: string) => whole.replace('prefetch 1', 'prefetch 2')],
    ['half an owner', (whole: string) => whole.slice(0, whole.length / 2)],
    ['a last line without its end', (whole: string) => whole.slice(0, -1)],
    ['nothing', () => ''],
  ] as const) {
    await write(owner, text);
    assert.deepEqual(fetch(), NODE, what);
  }
  await write();
  const twin = join(window, readyName(IDENTIFIER, NAME, 'cd'.repeat(32)));
  await copyFile(ready, twin);
  assert.deepEqual(fetch(), NODE, 'two of one name');
  await rm(twin);
  const postmaster = await readFile(join(data, 'postmaster.pid'));
  await rm(join(data, 'postmaster.pid'));
  assert.deepEqual(fetch(), NODE, 'no server');
  await writeFile(join(data, 'postmaster.pid'), postmaster);
  await rm(ready);
  await mkdir(ready);
  assert.deepEqual(fetch(), NODE, 'a directory');
  await rm(ready, { recursive: true });
  await write();
  const [moved, path] = [`${spool}.moved`, 'pg_wal/RECOVERYXLOG'];
  await chmod(spool, 0o700);
  spawnSync('mv', [spool, moved]);
  await symlink(moved, spool);
  assert.deepEqual(fetch(), NODE, 'a link');
  await rm(spool);
  spawnSync('mv', [moved, spool]);
  assert.deepEqual(
    fetch(['wal', 'fetch', NAME.replace('7', '8'), path, ...OPTIONS]),
    NODE,
    'another segment',
  );
  for (const words of [
    ['wal', 'fetch', '00000002.history', path, ...OPTIONS],
    ['wal', 'fetch', `${NAME}.00000028.backup`, path, ...OPTIONS],
    ['wal', 'fetch', '*', path, ...OPTIONS],
    ['wal', 'fetch', NAME, path, ...OPTIONS, '--json'],
    ['wal', 'fetch', NAME, path, ...OPTIONS, '--verbose'],
    ['wal', 'fetch', NAME, path, ...OPTIONS, '--unknown'],
    ['wal', 'fetch', NAME, path, ...OPTIONS, '--timeout'],
    ['wal', 'fetch', NAME, path, ...OPTIONS, 'more'],
    ['wal', 'fetch', NAME, path, '--', ...OPTIONS],
    ['wal', 'fetch', NAME, 'RECOVERYXLOG', ...OPTIONS],
    ['wal', 'fetch', NAME, path, ...OPTIONS, '--config=a\nb'],
  ]) {
    assert.deepEqual(fetch(words), { ...NODE, node: 'null' }, words.join(' '));
  }
  assert.equal(fetch().content, 'the segment', 'what fits is still handed over');
});

test('bin/holdfast wal fetch falls back to Node where the segment cannot be put at its place', async (t) => {
  const { fetch, write, data } = await stage(t);
  await write();
  await mkdir(join(data, 'pg_wal', 'RECOVERYXLOG', 'x'), { recursive: true });
  const { status, node } = fetch();
  assert.deepEqual([status, node], [NODE.status, NODE.node]);
});

test('bin/holdfast wal fetch waits for a segment on its way, but not for one that is given up', async (t) => {
  const { launcher, data, write, window, ready, fetch } = await stage(t);
  await write();
  await rm(ready);
  const coming = join(window, comingName(NAME));
  await writeFile(coming, '');
  const start = (): ChildProcess =>
    spawn(launcher, ['wal', 'fetch', NAME, 'pg_wal/RECOVERYXLOG', ...OPTIONS], {
      cwd: data,
      env: { PATH: '/usr/bin:/bin' },
    });
  const ended = async (child: ChildProcess): Promise<number | null> =>
    new Promise((resolve) => {
      child.once('close', resolve);
    });
  const waiting = start();
  const end = ended(waiting);
  await new Promise((resolve) => {
    setTimeout(resolve, 100);
  });
  assert.equal(waiting.exitCode, null);
  await writeFile(`${ready}.new`, 'late');
  spawnSync('mv', [`${ready}.new`, ready]);
  await rm(coming);
  assert.equal(await end, 0);
  assert.equal(await readFile(join(data, 'pg_wal', 'RECOVERYXLOG'), 'utf8'), 'late');
  await rm(join(data, 'pg_wal', 'RECOVERYXLOG'));

  await writeFile(coming, '');
  const given = start();
  const givenUp = ended(given);
  await rm(coming);
  assert.equal(await givenUp, 126, 'there is no Node on this path');

  await writeFile(coming, '');
  const stopped = start();
  const stop = ended(stopped);
  await new Promise((resolve) => {
    setTimeout(resolve, 100);
  });
  stopped.kill('SIGTERM');
  assert.equal(await stop, 143, 'a shutdown while it waits');
  await rm(coming);
  assert.deepEqual(fetch(), NODE);
});
