import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import * as fc from 'fast-check';

import {
  comingName,
  deliveredName,
  deliveredSegment,
  formatOwner,
  identifyProcess,
  isRunning,
  parseOwner,
  type PrefetchOwner,
  readOwner,
  registerOwner,
  removeWindow,
  windowDirectory,
} from './prefetch-owner.ts';

const NEXT = '000000010000000000000008';

async function self(): Promise<PrefetchOwner> {
  const own = await identifyProcess(process.pid);
  assert.ok(own);
  const postmaster = { pid: 1, startedAt: 2 };
  return {
    process: own,
    purpose: { postmaster, systemIdentifier: '7', timeline: '00000001', words: '--config\na b\n' },
  };
}

async function spoolOf(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-spool-'));
  t.after(async () => rm(directory, { recursive: true }));
  return join(directory, 'holdfast-prefetch');
}

test('parseOwner() reads what formatOwner() wrote, and no part of it', async () => {
  const owner = await self();
  const text = formatOwner(owner);
  assert.deepEqual(parseOwner(text), owner);
  const header = text.split('\n').slice(0, 8).join('\n').length;
  for (let length = 0; length <= header; length += 1)
    assert.equal(parseOwner(text.slice(0, length)), undefined);
  assert.equal(parseOwner(text.slice(0, -1)), undefined);
  assert.equal(parseOwner(text.replace('prefetch 1', 'prefetch 2')), undefined);
});

test('parseOwner() keeps words apart whatever they are', () => {
  const word = fc.string().filter((text) => !text.includes('\n'));
  fc.assert(
    fc.property(fc.array(word), (words) => {
      const owner: PrefetchOwner = {
        process: { pid: 1, startTime: '2', bootId: 'x' },
        purpose: {
          postmaster: { pid: 3, startedAt: 4 },
          systemIdentifier: '5',
          timeline: '00000001',
          words: words.map((one) => `${one}\n`).join(''),
        },
      };
      assert.deepEqual(parseOwner(formatOwner(owner)), owner);
    }),
  );
});

test('deliveredSegment() reads what deliveredName() wrote, and nothing else', () => {
  assert.equal(deliveredSegment(deliveredName(NEXT)), NEXT);
  for (const name of [NEXT, comingName(NEXT), '.delivered', 'x.delivered', `${NEXT}.`]) {
    assert.equal(deliveredSegment(name), undefined, name);
  }
});

test('isRunning() tells a live process from a dead one, a zombie and a number used again', async () => {
  const { process: own } = await self();
  assert.equal(await isRunning(own), true);
  assert.equal(await isRunning({ ...own, startTime: '1' }), false);
  assert.equal(await isRunning({ ...own, bootId: 'other' }), false);
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  const identity = await identifyProcess(child.pid ?? 0);
  assert.ok(identity && (await isRunning(identity)));
  const gone = new Promise((resolve) => {
    child.once('exit', resolve);
  });
  child.kill('SIGKILL');
  await gone;
  assert.equal(await isRunning(identity), false);
});

test('registerOwner() replaces what the dead left and leaves the living alone', async (t) => {
  const spool = await spoolOf(t);
  const owner = await self();
  await mkdir(join(spool, '999999999-1'), { recursive: true });
  await mkdir(join(spool, `${process.pid}-1`));
  await writeFile(join(spool, 'stray'), '');
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  t.after(() => child.kill('SIGKILL'));
  const other = await identifyProcess(child.pid ?? 0);
  assert.ok(other);
  await registerOwner(spool, { ...owner, process: other }, NEXT);
  await registerOwner(spool, owner, NEXT);
  const names = [windowDirectory('', owner.process), windowDirectory('', other)];
  assert.deepEqual((await readdir(spool)).toSorted(), [...names, 'owner'].toSorted());
  assert.deepEqual(await readOwner(spool), owner);
  assert.deepEqual(await readdir(windowDirectory(spool, owner.process)), [comingName(NEXT)]);

  await removeWindow(spool, other);
  assert.deepEqual(await readOwner(spool), owner, 'one that is replaced removes only its own');
  await removeWindow(spool, owner.process);
  assert.equal(existsSync(spool), false);
});

test('registerOwner() refuses a spool that is no directory', async (t) => {
  const spool = await spoolOf(t);
  await writeFile(spool, 'mine');
  await assert.rejects(registerOwner(spool, await self(), NEXT));
  assert.equal(await readFile(spool, 'utf8'), 'mine');
});
