import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { failsWith } from '../../../test/sealed-object.ts';
import { takeReceiverLock } from './receiver-lock.ts';

async function inDirectory(work: (file: string, directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-lock-'));
  try {
    await work(join(directory, 'receive', 'app.lock'), directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

const CHILD = fileURLToPath(new URL('../../../test/receiver-lock-child.ts', import.meta.url));

function startChild(file: string): ReturnType<typeof spawn> {
  return spawn(process.execPath, [CHILD, file], { stdio: ['ignore', 'pipe', 'inherit'] });
}

async function firstWord(child: ReturnType<typeof spawn>): Promise<string> {
  assert.ok(child.stdout);
  const [chunk] = (await once(child.stdout, 'data')) as [Buffer];
  return chunk.toString().trim();
}

void it('takeReceiverLock() lets one process in, and the next when that one was killed', async () => {
  await inDirectory(async (file) => {
    const first = startChild(file);
    assert.equal(await firstWord(first), 'held');
    await assert.rejects(takeReceiverLock(file, 'app'), (error) => {
      assert.ok(failsWith('receiver-running')(error) && error instanceof Error);
      return error.message.includes(`process ${first.pid} `);
    });
    first.kill('SIGKILL');
    await once(first, 'close');
    const lock = await takeReceiverLock(file, 'app');
    await lock.release();
    assert.deepEqual(await readdir(join(file, '..')), []);
  });
});

void it('takeReceiverLock() lets exactly one of several in', async () => {
  await inDirectory(async (file) => {
    const children = Array.from({ length: 4 }, () => startChild(file));
    const words = await Promise.all(children.map(firstWord));
    assert.deepEqual(words.sort(), ['held', 'receiver-running', 'receiver-running', 'receiver-running']);
    for (const child of children) child.kill('SIGKILL');
  });
});

void it('takeReceiverLock() does not take another process of the same number for a receiver', async () => {
  await inDirectory(async (file) => {
    await (await takeReceiverLock(file, 'app')).release();
    // The number of a process that lives, noted by one of an earlier boot; a half-written file; none at all.
    for (const text of [`${process.ppid}\n`, `${process.ppid} 12 0-0-0\n`, '', 'x', '-1 2 3\n']) {
      await writeFile(file, text);
      const lock = await takeReceiverLock(file, 'app');
      assert.match(await readFile(file, 'utf8'), new RegExp(`^${process.pid} \\d+ `));
      await lock.release();
    }
  });
});
