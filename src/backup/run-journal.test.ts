import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { recordKey, runPrefix } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { FaultyStorage } from '../../test/faulty-storage.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { openTestRepository, withStorage } from '../../test/wal-lab.ts';
import { beginRun } from './run-journal.ts';

const identity = { cluster: 'app', systemIdentifier: '7000000000000000001' };
const OLD = '20260101T000000Z-0001';
const NEW = '20260102T000000Z-0002';

interface Place {
  state: string;
  storage: ReturnType<typeof createMemoryStorage>;
  repository: Repository;
  said: string[];
  begin: (backupId: string, repository?: Repository) => ReturnType<typeof beginRun>;
  /** Where the run is noted. */
  journal: () => Promise<string>;
  keys: () => Promise<string[]>;
}

async function place(t: TestContext): Promise<Place> {
  const state = await mkdtemp(join(tmpdir(), 'hf-journal-'));
  t.after(() => rm(state, { recursive: true, force: true }));
  const storage = createMemoryStorage();
  const repository = await openTestRepository(storage);
  const said: string[] = [];
  return {
    state,
    storage,
    repository,
    said,
    begin: (backupId, other = repository) =>
      beginRun(other, identity, backupId, state, (text) => said.push(text)),
    journal: async () => {
      const names = await readdir(join(state, 'runs'));
      assert.equal(names.length, 1, `notes: ${names.join()}`);
      return join(state, 'runs', names[0] ?? '');
    },
    keys: async () => {
      const keys: string[] = [];
      for await (const { key } of storage.list('clusters/')) keys.push(key);
      return keys;
    },
  };
}

async function store(storage: Place['storage'], backupId: string): Promise<string[]> {
  const keys = ['b000001.pack', 'm000001.pack', 'index.jsonl'].map((n) => runPrefix(identity, backupId) + n);
  for (const key of keys) await storage.put(key, Buffer.from('x'));
  return keys;
}

test('beginRun() keeps a second run of the same cluster and repository away while the first lives', async (t) => {
  const { begin, state } = await place(t);
  {
    await using run = await begin(OLD);
    await assert.rejects(begin(NEW), (error: unknown) => {
      assert.ok(failsWith('repository-locked')(error));
      assert.match((error as HoldfastError).message, new RegExp(`${OLD}, process ${process.pid}`));
      return true;
    });
    assert.ok(run);
  }
  await using next = await begin(NEW);
  assert.ok(next);
  assert.equal((await readdir(join(state, 'runs'))).length, 1);
});

test('beginRun() lets another repository and another cluster be backed up at the same time', async (t) => {
  const { begin, repository, state } = await place(t);
  await using first = await begin(OLD);
  await using second = await begin(NEW, { ...repository, id: 'another' });
  await using third = await beginRun(repository, { ...identity, cluster: 'b' }, NEW, state, () => undefined);
  assert.ok(first && second && third);
});

test('beginRun() lets exactly one of many racing callers through', async (t) => {
  const { begin } = await place(t);
  const results = await Promise.allSettled(
    Array.from({ length: 20 }, (_, i) => begin(`20260102T000000Z-${String(i).padStart(4, '0')}`)),
  );
  assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1);
  for (const result of results)
    if (result.status === 'rejected')
      assert.ok(failsWith('repository-locked')(result.reason), String(result.reason));
});

test('beginRun() removes what a run that died had stored, and nothing else', async (t) => {
  const { begin, journal, storage, said, keys } = await place(t);
  const run = await begin(OLD);
  const left = await store(storage, OLD);
  const others = await store(storage, '20260101T000000Z-0003');
  await makeDead(await journal());
  assert.ok(run);
  await using next = await begin(NEW);
  assert.ok(next);
  assert.deepEqual(await keys(), others.toSorted());
  assert.match(said.join(), new RegExp(`removed ${left.length} objects of backup ${OLD}`));
});

test('beginRun() keeps what a dead run had committed', async (t) => {
  const { begin, journal, storage, keys } = await place(t);
  await begin(OLD);
  const left = await store(storage, OLD);
  await storage.put(recordKey(identity, OLD), Buffer.from('{}'));
  await makeDead(await journal());
  await using next = await begin(NEW);
  assert.ok(next);
  assert.deepEqual(await keys(), [...left, recordKey(identity, OLD)].toSorted());
});

test('beginRun() takes a process of the same number but another start for a dead one', async (t) => {
  const { begin, journal } = await place(t);
  await begin(OLD);
  const path = await journal();
  const entry = JSON.parse(await readFile(path, 'utf8')) as { startTicks: string };
  await writeFile(path, JSON.stringify({ ...entry, startTicks: String(Number(entry.startTicks) + 1) }));
  await using next = await begin(NEW);
  assert.ok(next);
});

test('beginRun() takes a run of another host for living, and touches nothing of it', async (t) => {
  const { begin, journal, storage, keys } = await place(t);
  await begin(OLD);
  const path = await journal();
  const left = await store(storage, OLD);
  const entry = JSON.parse(await readFile(path, 'utf8')) as object;
  await writeFile(path, JSON.stringify({ ...entry, host: `not-${hostname()}`, pid: 999_999_999 }));
  await assert.rejects(begin(NEW), failsWith('repository-locked'));
  assert.deepEqual(await keys(), left.toSorted());
});

test('beginRun() passes over a note that is none', async (t) => {
  const { begin, journal } = await place(t);
  for (const text of ['', '{"backupId":', 'null', '{}', '{"backupId":"../x"}']) {
    await begin(OLD);
    await writeFile(await journal(), text);
    await using next = await begin(NEW);
    assert.ok(next);
  }
});

test('discard() removes what the run stored and frees the place', async (t) => {
  const { begin, storage, keys, state } = await place(t);
  {
    await using run = await begin(OLD);
    await store(storage, OLD);
    await run.discard();
  }
  assert.deepEqual(await keys(), []);
  assert.deepEqual(await readdir(join(state, 'runs')), []);
});

test('discard() that fails leaves the work to the next run, also of the same process', async (t) => {
  const { begin, storage, repository, keys } = await place(t);
  for (const only of ['head', 'list', 'delete'] as const) {
    const faulty = new FaultyStorage(storage, { kind: 'error-before', at: 1, only: [only] });
    {
      await using run = await begin(OLD, withStorage(repository, faulty));
      await store(storage, OLD);
      await assert.rejects(run.discard(), failsWith('storage-unavailable'));
    }
    assert.notEqual((await keys()).length, 0);
    await using next = await begin(NEW);
    assert.ok(next);
    assert.deepEqual(await keys(), [], only);
  }
});

test('beginRun() that cannot reclaim leaves the note for the next one', async (t) => {
  const { begin, journal, storage, repository, keys } = await place(t);
  await begin(OLD);
  await store(storage, OLD);
  await makeDead(await journal());
  const faulty = new FaultyStorage(storage, { kind: 'error-before', at: 2, only: ['delete'] });
  await assert.rejects(begin(NEW, withStorage(repository, faulty)), failsWith('storage-unavailable'));
  await using next = await begin(NEW);
  assert.ok(next);
  assert.deepEqual(await keys(), []);
});

/** Makes the note's process one that is gone. */
async function makeDead(path: string): Promise<void> {
  const child = spawn(process.execPath, ['-e', '']);
  await once(child, 'exit');
  const entry = JSON.parse(await readFile(path, 'utf8')) as object;
  await writeFile(path, JSON.stringify({ ...entry, pid: child.pid }));
}
