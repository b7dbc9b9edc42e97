import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import { launcherPath } from './launcher-path.ts';

interface Run {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the real launcher on the sources, in a directory and with a home of its own. */
async function place(t: TestContext): Promise<{ directory: string; run: (...words: string[]) => Run }> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-cli-'));
  t.after(async () => rm(directory, { recursive: true }));
  const env = { PATH: process.env['PATH'], HOME: directory, HOLDFAST_SOURCE: '1' };
  const run = (...words: string[]): Run => {
    const { status, stdout, stderr } = spawnSync(launcherPath(), words, {
      cwd: directory,
      env,
      encoding: 'utf8',
      timeout: 60_000,
    });
    return { status, stdout, stderr };
  };
  return { directory, run };
}

const CONFIGURATION = `clusters:
  app:
    servers: [postgres://holdfast@127.0.0.1:1/postgres?sslmode=disable]
repositories:
  local: { url: file:///nonexistent/repository }
`;

test('holdfast prints its version and its help on stdout', async (t) => {
  const { run } = await place(t);
  assert.match(run('--version').stdout, /^holdfast \d+\.\d+\.\d+\n$/);
  for (const words of [[], ['--help'], ['help']]) {
    const { status, stdout, stderr } = run(...words);
    assert.deepEqual([status, stderr], [0, ''], words.join(' '));
    assert.match(stdout, /wal push PATH/);
  }
  assert.match(run('help', 'check').stdout, /^Prove the setup/);
  assert.match(run('wal', '--help').stdout, /wal fetch NAME PATH/);
  assert.match(run('wal', 'fetch', '--help').stdout, /Ends with 0 when/);
});

test('holdfast refuses what is no command with status 2 and what may have been meant', async (t) => {
  const { run } = await place(t);
  const cases: [string[], RegExp][] = [
    [['chekc'], /did you mean "holdfast check"\?/],
    [['wal', 'psh'], /did you mean "holdfast wal push"\?/],
    [['wal'], /there are: .*holdfast wal push, .*holdfast wal fetch/],
    [['--jsn'], /holdfast --help/],
    [['check', '--verbos'], /did you mean --verbose\?/],
    [['check', 'a', 'b'], /holdfast check --help/],
    [['check', '--quiet', '--verbose'], /one of them/],
  ];
  for (const [words, hint] of cases) {
    const { status, stdout, stderr } = run(...words);
    assert.deepEqual([status, stdout], [2, ''], words.join(' '));
    assert.match(stderr, /^holdfast: [a-z"-].*[^.]\nhint: /, words.join(' '));
    assert.match(stderr, hint);
  }
});

test('holdfast without a configuration says where it looked', async (t) => {
  const { directory, run } = await place(t);
  const { status, stderr } = run('check');
  assert.equal(status, 2);
  assert.ok(stderr.includes(join(directory, 'holdfast.yaml')));
  assert.match(stderr, /hint: write one with "holdfast init"/);
  assert.match(run('check', '--config', 'other.yaml').stderr, /no configuration at .*other\.yaml/);
});

test('holdfast refuses a misspelt key with the nearest one, as text and as JSON', async (t) => {
  const { directory, run } = await place(t);
  await writeFile(join(directory, 'holdfast.yaml'), CONFIGURATION.replace('servers', 'server'));
  const text = run('check');
  assert.equal(text.status, 2);
  assert.match(text.stderr, /holdfast\.yaml:3: clusters\.app\.server is not a known key/);
  assert.match(text.stderr, /hint: did you mean "servers"\?/);
  const { status, stdout, stderr } = run('check', '--json');
  assert.deepEqual([status, stdout], [2, '']);
  const { error } = JSON.parse(stderr) as { error: Record<string, unknown> };
  assert.deepEqual([error['code'], error['exitCode']], ['config-invalid', 2]);
});

test('holdfast refuses an unknown cluster with the names there are', async (t) => {
  const { directory, run } = await place(t);
  await writeFile(join(directory, 'holdfast.yaml'), CONFIGURATION);
  for (const words of [
    ['check', 'ap'],
    ['list', 'ap'],
    ['backup', 'base', 'ap'],
  ]) {
    const { status, stderr } = run(...words);
    assert.equal(status, 2, words.join(' '));
    assert.match(stderr, /there is no cluster "ap"/);
    assert.match(stderr, /did you mean "app"\?/);
  }
});

test('holdfast check reports what cannot be reached and ends with 3', async (t) => {
  const { directory, run } = await place(t);
  await writeFile(join(directory, 'holdfast.yaml'), CONFIGURATION);
  const { status, stdout, stderr } = run('check', '--json');
  assert.equal(status, 3, stderr);
  const { ok, findings } = JSON.parse(stdout) as { ok: boolean; findings: Record<string, string>[] };
  assert.equal(ok, false);
  const failed = findings.filter((finding) => finding['status'] === 'fail');
  assert.deepEqual(
    failed.map((finding) => finding['subject']),
    ['repository local', 'cluster app'],
  );
  for (const finding of failed) assert.ok((finding['fix'] ?? '').length > 0);
  assert.match(stderr, /"code":"check-failed"/);
});

test('holdfast wal push and wal fetch end within the statuses PostgreSQL understands', async (t) => {
  const { directory, run } = await place(t);
  const missing = run('wal', 'push', 'pg_wal/000000010000000000000001');
  assert.equal(missing.status, 2);
  assert.match(missing.stderr, /there is no configuration/);
  assert.equal(run('wal', 'fetch', '000000010000000000000001', 'x').status, 126);
  await writeFile(join(directory, 'holdfast.yaml'), CONFIGURATION);
  assert.equal(run('wal', 'push', 'pg_wal/000000010000000000000001').status, 10);
  const fetched = run('wal', 'fetch', '000000010000000000000001', 'x', '--timeout', '0s');
  assert.equal(fetched.status, 126, fetched.stderr);
  assert.equal(run('wal', 'fetch', '--json').status, 126);
  assert.equal(run('wal', 'push', 'x', '--cluster', 'other').status, 2);
});

test('holdfast wal push keeps a checked configuration for the next segment', async (t) => {
  const { directory, run } = await place(t);
  const file = join(directory, 'holdfast.yaml');
  await writeFile(file, CONFIGURATION);
  // Only a file that has been left alone for two seconds is kept.
  await new Promise((resolve) => {
    setTimeout(resolve, 2100);
  });
  run('wal', 'push', 'x');
  const cache = join(directory, '.cache', 'holdfast');
  const [entry] = (await readdir(cache)).filter((name) => name.endsWith('.json'));
  assert.ok(entry !== undefined);
  assert.match(await readFile(join(cache, entry), 'utf8'), /nonexistent/);
  await writeFile(file, CONFIGURATION.replace('/nonexistent/', '/elsewhere/'));
  assert.match(run('wal', 'push', 'x').stderr, /elsewhere/);
});

test('holdfast init refuses contradictions and asks for what it cannot guess', async (t) => {
  const { directory, run } = await place(t);
  const server = ['--server', 'postgres://holdfast@127.0.0.1:1/postgres'];
  const cases: [string[], RegExp][] = [
    [[], /no --server/],
    [[...server, '--encryption', 'none', '--recipient', 'age1x'], /contradict/],
    [[...server, '--repository', '/a', '--repository', '/b'], /two repositories are called "local"/],
    [[...server, '--recipient', 'bob'], /age recipient/],
    [['--server', '/var/lib/postgresql/15/main'], /over a connection/],
  ];
  for (const [words, wanted] of cases) {
    const { status, stderr } = run('init', ...words);
    assert.equal(status, 2, words.join(' '));
    assert.match(stderr, wanted);
  }
  assert.deepEqual(await readdir(directory).then((names) => names.filter((name) => name !== '.cache')), []);
});

test('holdfast init writes a configuration and a repository once, and changes neither again', async (t) => {
  const { directory, run } = await place(t);
  const words = [
    '--server',
    'postgres://holdfast@127.0.0.1:1/postgres',
    '--repository',
    'repo',
    '--state',
    'state',
  ];
  const first = run('init', '--cluster', 'app', '--identity', 'identity.txt', ...words);
  // Nothing listens at port 1, so the check at its end fails.
  assert.equal(first.status, 3, first.stderr);
  assert.match(first.stderr, /CREATE ROLE "?holdfast"? LOGIN REPLICATION/);
  assert.match(first.stderr, /archive_command = '.*wal push %p --config /);
  assert.match(first.stderr, /made the secret key/);
  const files = ['holdfast.yaml', 'repo/holdfast.json', 'identity.txt'].map((name) => join(directory, name));
  const before = await Promise.all(files.map(async (file) => readFile(file, 'utf8')));
  assert.match(before[0] ?? '', /recipients:\n\s+- age1/);

  const second = run('init', '--cluster', 'other', '--json');
  assert.equal(second.status, 3);
  const result = JSON.parse(second.stdout) as { created: boolean; repositories: { created: boolean }[] };
  assert.deepEqual([result.created, result.repositories[0]?.created], [false, false]);
  assert.match(second.stderr, /--cluster changed nothing/);
  assert.deepEqual(await Promise.all(files.map(async (file) => readFile(file, 'utf8'))), before);
});

test('holdfast ends with 130 on a signal, though the server never answers', async (t) => {
  const { directory } = await place(t);
  // Takes connections and never answers.
  const silent = createServer();
  const reached = new EventEmitter();
  silent.on('connection', (socket) => {
    socket.on('error', () => undefined);
    reached.emit('connection');
  });
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  t.after(() => silent.close());
  const { port } = silent.address() as AddressInfo;
  await writeFile(
    join(directory, 'holdfast.yaml'),
    CONFIGURATION.replace('127.0.0.1:1', `127.0.0.1:${port}`),
  );

  const env = { PATH: process.env['PATH'], HOME: directory, HOLDFAST_SOURCE: '1' };
  const check = spawn(launcherPath(), ['check'], { cwd: directory, env });
  await once(reached, 'connection');
  check.kill('SIGINT');
  const [status] = (await once(check, 'exit')) as [number | null];
  assert.equal(status, 130);
});
