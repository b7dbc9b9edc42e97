import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { createFaultyFiles, type FilesPlan } from '../../test/faulty-files.ts';
import { CrashError } from '../../test/faulty-storage.ts';
import { collect, patternedBytes, withCode } from '../../test/storage-suite.ts';
import { createLocalStorage } from './local.ts';
import { removeStaleTemporaries } from './local-temporaries.ts';

const CHILD = fileURLToPath(new URL('../../test/storage-child.ts', import.meta.url));

async function scratch(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-crash-test-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

async function temporaries(root: string): Promise<string[]> {
  return (await readdir(root, { recursive: true })).filter((path) => path.includes('.tmp-'));
}

const BYTES = patternedBytes(200_000);

async function* inTwo(): AsyncGenerator<Buffer> {
  yield BYTES.subarray(0, 100_000);
  yield BYTES.subarray(100_000);
}

/** Puts in every way with a fault at step 1, 2, … until none is hit; gives `check` each one that was. */
async function atEveryStep(
  t: TestContext,
  plan: FilesPlan,
  check: (root: string, step: string, error: unknown) => Promise<void>,
): Promise<number> {
  let faults = 0;
  for (const ifAbsent of [true, false]) {
    for (const source of [() => BYTES, inTwo]) {
      for (let at = 1; ; at += 1) {
        const root = join(await scratch(t), 'new/root');
        const faulty = createFaultyFiles({ ...plan, at });
        let error: unknown;
        try {
          await createLocalStorage(root, faulty.files).put('a/b/object', source(), { ifAbsent });
        } catch (thrown) {
          error = thrown;
        }
        const step = faulty.fired();
        if (step === undefined) {
          assert.ifError(error);
          break;
        }
        faults += 1;
        await check(root, `${step.call} ${step.path} (step ${at})`, error);
      }
    }
  }
  return faults;
}

/** The object is absent or whole, and putting it again works. */
async function assertWholeOrAbsent(root: string, step: string): Promise<void> {
  const storage = createLocalStorage(root);
  let listed: unknown[] = [];
  try {
    listed = await Array.fromAsync(storage.list(''));
  } catch (error) {
    withCode('repository-missing')(error);
  }
  if (listed.length > 0) {
    assert.deepEqual(listed, [{ key: 'a/b/object', sizeBytes: BYTES.length }], step);
    assert.ok((await collect(storage.get('a/b/object'))).equals(BYTES), step);
  }
  const again = await createLocalStorage(root).put('a/b/object', BYTES, { ifAbsent: true });
  assert.equal(again.created, listed.length === 0, step);
  await storage.confirm('a/b/object');
  assert.ok((await collect(storage.get('a/b/object'))).equals(BYTES), step);
}

for (const [code, expected] of [
  ['EIO', 'storage-unavailable'],
  ['ENOSPC', 'storage-full'],
  ['EDQUOT', 'storage-full'],
  ['EROFS', 'storage-denied'],
] as const) {
  test(`put() that meets ${code} at any step throws ${expected} and leaves no temporary file`, async (t) => {
    const faults = await atEveryStep(t, { kind: 'error', code }, async (root, step, error) => {
      assert.ok(error instanceof Error, step);
      withCode(expected)(error);
      // Removing the second name is itself the step that failed: the file is left to `removeStaleTemporaries`.
      const left = step.startsWith('unlink') ? await temporaries(root) : [];
      assert.deepEqual(await temporaries(root).catch(() => []), left, step);
      await assertWholeOrAbsent(root, step);
    });
    assert.ok(faults > 60, `only ${faults} steps failed`);
  });
}

for (const kind of ['crash-before', 'crash-after'] as const) {
  test(`put() that dies at any step (${kind}) leaves the object whole or absent`, async (t) => {
    const faults = await atEveryStep(t, { kind }, async (root, step, error) => {
      assert.ok(error instanceof CrashError, step);
      await assertWholeOrAbsent(root, step);
      await removeStaleTemporaries(root, -60_000);
      assert.deepEqual(await temporaries(root), [], step);
      assert.ok((await collect(createLocalStorage(root).get('a/b/object'))).equals(BYTES), step);
    });
    assert.ok(faults > 60, `only ${faults} steps failed`);
  });
}

test('a failed fsync is not tried again on the same file', async (t) => {
  const root = await scratch(t);
  const probe = createFaultyFiles();
  await createLocalStorage(root, probe.files).put('a', BYTES);
  const at = probe.steps.findIndex(({ call, path }) => call === 'sync' && path.includes('.tmp-')) + 1;
  const faulty = createFaultyFiles({ at });
  await assert.rejects(
    createLocalStorage(root, faulty.files).put('b', BYTES),
    withCode('storage-unavailable'),
  );
  assert.equal(faulty.steps.filter(({ call, path }) => call === 'sync' && path.includes('.tmp-')).length, 1);
  assert.equal(await createLocalStorage(root).head('b'), undefined);
});

function child(t: TestContext, ...argumentList: string[]): ChildProcess & { lines: AsyncIterator<string> } {
  const started = spawn(process.execPath, [CHILD, ...argumentList], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => started.kill('SIGKILL'));
  const lines = createInterface({ input: started.stdout })[Symbol.asyncIterator]();
  return Object.assign(started, { lines });
}

test('put() with ifAbsent lets exactly one of 20 racing processes create', async (t) => {
  const root = await scratch(t);
  const children = Array.from({ length: 20 }, (_, number) => child(t, 'race', root, `from ${number}`));
  for (const { lines } of children) assert.equal((await lines.next()).value, 'ready');
  for (const { stdin } of children) stdin?.write('!');
  const created = await Promise.all(children.map(async ({ lines }) => String((await lines.next()).value)));
  assert.deepEqual(created.toSorted(), [...Array<string>(19).fill('false'), 'true']);
  const winner = String(await collect(createLocalStorage(root).get('race/winner')));
  assert.equal(winner, `from ${created.indexOf('true')}`);
  assert.deepEqual(await temporaries(root), []);
});

test('killed writers leave whole objects, every acknowledged one, and temporary files that can be removed', async (t) => {
  const root = await scratch(t);
  const acknowledged: string[] = [];
  for (let round = 0; round < 6; round += 1) {
    const writer = child(t, 'put-for-ever', root, String(round));
    for (let lines = 0; lines < 20 + round * 7; lines += 1) {
      acknowledged.push(String((await writer.lines.next()).value));
    }
    writer.kill('SIGKILL');
    await once(writer, 'exit');
    for (let line = await writer.lines.next(); line.done !== true; line = await writer.lines.next()) {
      acknowledged.push(line.value);
    }
  }
  const storage = createLocalStorage(root);
  const check = async (): Promise<number> => {
    const seen = new Set<string>();
    for await (const { key, sizeBytes } of storage.list('')) {
      const [number, promised] = key.split('-').slice(1).map(Number);
      assert.equal(sizeBytes, promised, key);
      const bytes = await collect(storage.get(key));
      assert.ok(bytes.equals(patternedBytes(sizeBytes, (number ?? 0) + 1)), key);
      seen.add(key);
    }
    for (const key of acknowledged) assert.ok(seen.has(key), `${key} was acknowledged and is lost`);
    return seen.size;
  };
  assert.ok(acknowledged.length > 200, `only ${acknowledged.length} puts`);
  const objects = await check();
  const left = await temporaries(root);
  const removed = await removeStaleTemporaries(root, -60_000);
  assert.equal(removed.files, left.length);
  assert.deepEqual(await temporaries(root), []);
  assert.equal(await check(), objects);
});
