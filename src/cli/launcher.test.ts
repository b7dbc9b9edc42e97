import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmod, copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';

import { archiveCommand, launcherPath, shellWord } from './launcher-path.ts';

/** A checkout whose program does what `body` says: only the launcher is the real one. */
async function checkout(t: TestContext, body: string): Promise<{ root: string; launcher: string }> {
  const root = await mkdtemp(join(tmpdir(), 'holdfast launcher-'));
  t.after(async () => rm(root, { recursive: true }));
  await chmod(root, 0o755);
  await mkdir(join(root, 'bin'));
  await mkdir(join(root, 'dist', 'cli'), { recursive: true });
  await copyFile(launcherPath(), join(root, 'bin', 'holdfast'));
  await writeFile(join(root, 'package.json'), '{"type":"module"}');
  await writeFile(join(root, 'dist', 'cli', 'main.js'), body);
  return { root, launcher: join(root, 'bin', 'holdfast') };
}

/** The environment of a user whose Node is the one that runs this test. */
function environment(path = `${dirname(process.execPath)}:/usr/bin:/bin`): NodeJS.ProcessEnv {
  return { PATH: path, HOME: tmpdir() };
}

function statusOf(launcher: string, words: string[]): number | null {
  return spawnSync(launcher, words, { env: environment(), timeout: 60_000 }).status;
}

const EXIT = 'process.exit(Number(process.argv.at(-1)));\n';

test('bin/holdfast passes the status of an ordinary command on', async (t) => {
  const { launcher } = await checkout(t, EXIT);
  for (const status of [0, 1, 3, 60, 130]) assert.equal(statusOf(launcher, ['list', String(status)]), status);
});

test('bin/holdfast wal push never ends above 125, whatever happened to Node', async (t) => {
  const { launcher } = await checkout(t, EXIT);
  const cases = [
    [0, 0],
    [1, 1],
    [40, 40],
    [125, 125],
    [126, 125],
    [134, 125],
    [255, 125],
  ] as const;
  for (const [status, wanted] of cases)
    assert.equal(statusOf(launcher, ['wal', 'push', String(status)]), wanted);
  const killed = await checkout(t, "process.kill(process.pid, 'SIGKILL');\nsetInterval(() => {}, 1000);\n");
  assert.equal(statusOf(killed.launcher, ['--config', 'wal', 'wal', '--json', 'push', 'x']), 125);
});

test('bin/holdfast wal fetch ends with 1 only where absence was proven', async (t) => {
  const { launcher } = await checkout(t, EXIT);
  const cases = [
    [0, 0],
    [66, 1],
    [1, 126],
    [2, 126],
    [126, 126],
    [255, 126],
  ] as const;
  for (const [status, wanted] of cases) {
    assert.equal(statusOf(launcher, ['wal', 'fetch', 'x', String(status)]), wanted, String(status));
  }
  const killed = await checkout(t, "process.kill(process.pid, 'SIGKILL');\nsetInterval(() => {}, 1000);\n");
  assert.equal(statusOf(killed.launcher, ['wal', 'fetch', 'x', 'y']), 126);
  const broken = await checkout(t, "import './not-there.js';\n");
  assert.equal(statusOf(broken.launcher, ['wal', 'fetch', 'x', 'y']), 126);
});

test('bin/holdfast hands signals on to a push and waits for its end', async (t) => {
  const body = `process.on('SIGTERM', () => { console.log('told'); setTimeout(() => process.exit(7), 50); });
setInterval(() => {}, 1000);
console.log('ready');
`;
  const { launcher } = await checkout(t, body);
  const child = spawn(launcher, ['wal', 'push', 'x'], { env: environment() });
  const { status, output } = await signalled(child, 'SIGTERM');
  assert.equal(status, 7);
  assert.match(output, /ready\s+told/);
});

test('bin/holdfast wal fetch ends a server shutdown with 143, which PostgreSQL knows, and never takes it for absence', async (t) => {
  for (const ending of ['process.exit(66)', 'process.exit(126)', "process.kill(process.pid, 'SIGKILL')"]) {
    const { launcher } = await checkout(
      t,
      `process.on('SIGTERM', () => ${ending});\nsetInterval(() => {}, 1000);\nconsole.log('ready');\n`,
    );
    const child = spawn(launcher, ['wal', 'fetch', 'x', 'y'], { env: environment() });
    assert.equal((await signalled(child, 'SIGTERM')).status, 143, ending);
  }
});

async function signalled(
  child: ChildProcess,
  signal: NodeJS.Signals,
): Promise<{ status: number | null; output: string }> {
  let output = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    output += chunk.toString();
    if (output.trim() === 'ready') child.kill(signal);
  });
  return new Promise((resolve) => {
    child.on('close', (status) => resolve({ status, output }));
  });
}

test('bin/holdfast finds its checkout through symbolic links, from any directory', async (t) => {
  const { root, launcher } = await checkout(t, "console.log(process.argv.slice(2).join('|'));\n");
  await mkdir(join(root, 'links'));
  await symlink(launcher, join(root, 'links', 'absolute'));
  await symlink('absolute', join(root, 'links', 'relative'));
  for (const [command, cwd] of [
    [join(root, 'links', 'relative'), '/'],
    ['./relative', join(root, 'links')],
    ['../bin/holdfast', join(root, 'links')],
  ] as const) {
    const { stdout, status } = spawnSync(command, ['a b', "c'd"], {
      cwd,
      env: environment(),
      encoding: 'utf8',
    });
    assert.deepEqual([status, stdout], [0, "a b|c'd\n"], command);
  }
  const path = `${join(root, 'links')}:${environment()['PATH']}`;
  const { stdout } = spawnSync('relative', ['x'], { cwd: '/', env: environment(path), encoding: 'utf8' });
  assert.equal(stdout, 'x\n');
});

test('bin/holdfast says what to do where there is no Node, or one that is too old', async (t) => {
  const { root, launcher } = await checkout(t, EXIT);
  const tools = join(root, 'tools');
  await mkdir(tools);
  for (const tool of ['sh', 'readlink']) await symlink(`/bin/${tool}`, join(tools, tool));
  const run = (words: string[]): ReturnType<typeof spawnSync> =>
    spawnSync('/bin/sh', [launcher, ...words], { env: { PATH: tools }, encoding: 'utf8' });
  const none = run(['list']);
  assert.equal(none.status, 2);
  assert.match(String(none.stderr), /there is no Node.*\nhint: run "npm ci"/);
  assert.equal(run(['wal', 'push', 'x']).status, 2);
  assert.equal(run(['wal', 'fetch', 'x', 'y']).status, 126);

  for (const version of ['v20.20.2', 'v24.11.9', 'nonsense']) {
    await writeFile(join(tools, 'node'), `#!/bin/sh\necho ${version}\n`, { mode: 0o755 });
    const old = run(['list']);
    assert.equal(old.status, 2, version);
    assert.match(String(old.stderr), /needs 24\.12 or newer/);
  }
});

test('bin/holdfast does not take a compile cache from a home that belongs to somebody else', async (t) => {
  const { root, launcher } = await checkout(t, "console.log(process.env['NODE_COMPILE_CACHE'] ?? 'none');\n");
  const cacheFor = (home: string): string =>
    spawnSync(launcher, ['x'], { env: { ...environment(), HOME: home }, encoding: 'utf8' }).stdout.trim();
  assert.equal(cacheFor(root), join(root, '.cache', 'holdfast', 'compile'));
  const foreign = process.getuid?.() === 0 ? '/nonexistent' : '/';
  assert.equal(cacheFor(foreign), 'none');
});

test('archiveCommand() survives the shell and the expansion PostgreSQL does', () => {
  assert.equal(
    archiveCommand('/etc/holdfast.yaml'),
    `${shellWord(launcherPath())} wal push %p --config /etc/holdfast.yaml`,
  );
  assert.match(archiveCommand('/etc/h.yaml', 'app'), / --cluster app$/);
  assert.equal(shellWord("/a b/100%/it's"), `'/a b/100%%/it'\\''s'`);
});
