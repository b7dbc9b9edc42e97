import assert from 'node:assert/strict';
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { createWalLab, openTestRepository, SYSTEM_IDENTIFIER } from '../../test/wal-lab.ts';
import { HoldfastError } from '../errors.ts';
import { parseLsn } from '../postgres/lsn.ts';
import { createLocalStorage } from '../storage/local.ts';
import type { FetchResult } from '../wal/fetch.ts';
import { pushWal } from '../wal/push.ts';
import { Output } from './output.ts';
import {
  FETCH_OPTIONS,
  type FetchRequest,
  fetchFromAll,
  isSettled,
  readFetchRequest,
} from './fetch-request.ts';
import { parsePlain } from './parse-plain.ts';
import { walFetch } from './commands/wal-fetch.ts';

interface Stage extends AsyncDisposable {
  directory: string;
  destination: string;
  name: string;
  bytes: Buffer;
  request: (...words: string[]) => Promise<FetchRequest>;
  fetch: (request: FetchRequest, name?: string) => ReturnType<typeof fetchFromAll>;
}

async function stage(): Promise<Stage> {
  const lab = await createWalLab();
  const { directory } = lab;
  await mkdir(join(directory, 'good'));
  await mkdir(join(directory, 'empty'));
  const repository = await openTestRepository(createLocalStorage(join(directory, 'good')), 'good');
  const { path, name, bytes } = await lab.segment({ segment: 1 });
  await pushWal({
    path,
    repositories: [repository],
    cluster: { configured: ['app'] },
    host: 'test',
    now: () => new Date(),
  });
  await writeFile(
    join(directory, 'holdfast.yaml'),
    `clusters: { app: { servers: ["postgres://h@localhost/postgres"] } }
repositories:
  unmounted: { url: "file://${directory}/empty" }
  nowhere: { url: "env:HOLDFAST_NO_SUCH_VARIABLE" }
  distant: { url: "s3://bucket/backups" }
  good: { url: "file://${directory}/good" }
state: ${directory}/state
`,
  );
  const environment = { XDG_CACHE_HOME: join(directory, 'cache') };
  const { signal } = new AbortController();
  const sink = { write: () => undefined, isTerminal: false, columns: () => 80 };
  return {
    directory,
    destination: join(directory, 'fetched'),
    name,
    bytes,
    request: async (...words) =>
      readFetchRequest({
        ...parsePlain(walFetch, [name, 'x', '--system-identifier', SYSTEM_IDENTIFIER, ...words]),
        context: {
          output: new Output({
            stdout: sink,
            stderr: sink,
            json: false,
            quiet: true,
            verbose: false,
            nowMs: () => 0,
          }),
          signal,
          environment,
          directory,
          configFile: undefined,
          configuration: () => Promise.reject(new Error('not needed')),
        },
      }),
    fetch: async (request, asked = name) =>
      fetchFromAll(
        request,
        { name: asked, destination: join(directory, 'fetched') },
        { configuration: request.configuration, environment, signal },
      ),
    [Symbol.asyncDispose]: () => lab[Symbol.asyncDispose](),
  };
}

const messages = (errors: readonly Error[]): string => errors.map(({ message }) => message).join('\n');

test('fetchFromAll() takes a file from whichever repository has it and says which could not be opened', async () => {
  await using lab = await stage();
  const { result, failures } = await lab.fetch(await lab.request());
  assert.equal(result.kind === 'delivered' ? result.repository : result.kind, 'good');
  assert.deepEqual(await readFile(lab.destination), lab.bytes);
  assert.match(messages(failures), /no Holdfast repository at .*empty/);
  assert.match(messages(failures), /HOLDFAST_NO_SUCH_VARIABLE/);
  assert.equal(failures.length, 2, 'a store that this version cannot use never had anything of it');
});

test('fetchFromAll() asks what the command names, and nothing else', async () => {
  await using lab = await stage();
  const named = await lab.fetch(await lab.request('--repository', 'distant', '--repository', 'good'));
  assert.equal(named.result.kind, 'delivered');
  assert.match(messages(named.failures), /s3/);
  await assert.rejects(
    lab.request('--repository', 'unmounted').then(lab.fetch),
    (error) => error instanceof HoldfastError && error.code === 'repository-missing',
  );
  const only = await lab.fetch(await lab.request('--repository', 'good'));
  assert.deepEqual(only.failures, []);
});

test('fetchFromAll() does not wait for what will not come, and finds what has come back', async () => {
  await using lab = await stage();
  await rename(join(lab.directory, 'good'), join(lab.directory, 'away'));
  const started = performance.now();
  await assert.rejects(lab.request().then(async (request) => lab.fetch(request)));
  assert.ok(performance.now() - started < 30_000);
  await rename(join(lab.directory, 'away'), join(lab.directory, 'good'));
  assert.equal((await lab.fetch(await lab.request())).result.kind, 'delivered');
});

test('isSettled() leaves an absence, and an incomplete segment, open while a repository could not be asked', () => {
  const until = parseLsn('0/2000000');
  const complete: FetchResult = { kind: 'delivered', repository: 'a', sizeBytes: 1, hash: 'x', warnings: [] };
  const tail = (storedUpTo: string): FetchResult => ({
    kind: 'delivered',
    repository: 'a',
    sizeBytes: 1,
    storedUpTo: parseLsn(storedUpTo),
    warnings: [],
  });
  const absent: FetchResult = { kind: 'absent', reason: '', warnings: [] };
  const failed: FetchResult = { kind: 'failed', error: new Error('x'), warnings: [] };
  const cases: [FetchResult, boolean, boolean][] = [
    [complete, true, true],
    [absent, false, true],
    [tail('0/2000000'), false, true],
    [tail('0/1FFFFFF'), false, false],
    [failed, false, false],
  ];
  for (const [result, without, with_] of cases) {
    assert.equal(isSettled(undefined, result), without, JSON.stringify(result.kind));
    assert.equal(isSettled(until, result), with_, JSON.stringify(result.kind));
  }
});

test('FETCH_OPTIONS that take a value are all known to the launcher', async () => {
  const launcher = await readFile(new URL('../../bin/holdfast', import.meta.url), 'utf8');
  for (const { flags } of FETCH_OPTIONS) {
    const [flag = ''] = flags.split(' ');
    assert.ok(launcher.includes(` ${flag} |`) || launcher.includes(`| ${flag})`), flag);
    assert.ok(launcher.includes(` ${flag}=* |`) || launcher.includes(`| ${flag}=*)`), flag);
  }
});
