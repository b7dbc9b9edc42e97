import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { listWal } from '../repository/wal-listing.ts';
import { createLocalStorage } from '../storage/local.ts';
import { takeCatchUpLock } from '../wal/catch-up-lock.ts';
import { pushWal } from '../wal/push.ts';
import { createWalLab, openTestRepository, SYSTEM_IDENTIFIER } from '../../test/wal-lab.ts';
import { launcherPath } from './launcher-path.ts';

test('holdfast wal catch-up fills a repository, ends with 3 while one is away, and with 11 while another process works', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-catch-up-'));
  t.after(async () => rm(directory, { recursive: true }));
  const place = async (name: string) => {
    await mkdir(join(directory, name));
    return openTestRepository(createLocalStorage(join(directory, name)), name);
  };
  const [local, offsite] = [await place('local'), await place('offsite')];
  const config = join(directory, 'holdfast.yaml');
  await writeFile(
    config,
    `clusters:
  app: { servers: ["postgres://holdfast@localhost/postgres"] }
repositories:
  local: { url: "file://${directory}/local" }
  offsite: { url: "file://${directory}/offsite", required: false }
state: ${directory}/state
`,
  );
  await using lab = await createWalLab();
  const names: string[] = [];
  for (const segment of [1, 2, 3]) {
    const { path, name } = await lab.segment({ segment });
    const cluster = { configured: ['app'] };
    await pushWal({ path, repositories: [local], cluster, host: 'h', now: () => new Date() });
    names.push(name);
  }
  const run = (...words: string[]) => {
    const env = { PATH: process.env['PATH'], HOME: directory, HOLDFAST_SOURCE: '1' };
    const all = ['wal', 'catch-up', 'app', '--config', config, ...words];
    const { status, stdout, stderr } = spawnSync(launcherPath(), all, { env, encoding: 'utf8' });
    return { status, stdout, stderr };
  };

  const done = run('--json');
  assert.equal(done.status, 0, done.stderr);
  const { repositories } = JSON.parse(done.stdout) as { repositories: Record<string, unknown>[] };
  assert.equal(repositories.length, 1);
  const [first] = repositories;
  assert.deepEqual(
    [first?.['repository'], first?.['copied'], first?.['complete'], first?.['reason'], first?.['failed']],
    ['offsite', 3, true, null, []],
  );
  const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };
  const has = await Array.fromAsync(listWal(offsite, identity));
  assert.deepEqual(
    has.map(({ name }) => name),
    names,
  );
  assert.match(run().stdout, /^offsite has everything \(0 files copied\)\n$/);
  assert.equal(run('--repository', 'local').status, 0, 'the required one, from the other');

  await rename(join(directory, 'offsite'), join(directory, 'away'));
  const away = run();
  assert.equal(away.status, 3, away.stderr);
  assert.match(away.stdout, /offsite is behind/);
  assert.match(away.stderr, /repository offsite still lacks wal: .*does not exist\nhint: /);
  assert.equal(run('--repository', 'nowhere').status, 2);
  await rename(join(directory, 'away'), join(directory, 'offsite'));

  await using _lock = await takeCatchUpLock(join(directory, 'state'), SYSTEM_IDENTIFIER, 'offsite');
  const locked = run('--repository', 'offsite');
  assert.equal(locked.status, 11, locked.stderr);
  assert.match(locked.stderr, new RegExp(`process ${process.pid} is catching up`));
});
