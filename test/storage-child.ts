/**
 * What tests of local storage run in processes of their own: `node test/storage-child.ts ACTION ROOT [ARGUMENT…]`.
 * Results are lines on stdout. Everything is loaded before rights are dropped, so a checkout may lie where only its
 * owner may read.
 */
import { writeSync } from 'node:fs';

import { errorText, HoldfastError } from '../src/errors.ts';
import { createLocalStorage } from '../src/storage/local.ts';
import type { Storage } from '../src/storage/storage.ts';
import { patternedBytes } from './storage-suite.ts';

const [action = '', root = '', argument = ''] = process.argv.slice(2);

async function outcome(name: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
    say(`${name} done`);
  } catch (error) {
    say(`${name} ${error instanceof HoldfastError ? error.code : errorText(error)}`);
  }
}

/** Unbuffered: what was said is heard even if this process is killed right after. */
function say(line: string): void {
  writeSync(1, `${line}\n`);
}

/** Waits for one byte on stdin, so that many children start at the same moment. */
async function starterPistol(): Promise<void> {
  say('ready');
  await new Promise((resolve) => process.stdin.once('data', resolve));
  process.stdin.destroy();
}

function dropRights(): void {
  if (process.getuid?.() !== 0) return;
  process.setgroups?.([65_534]);
  process.setgid?.(65_534);
  process.setuid?.(65_534);
}

async function everyOperation(storage: Storage): Promise<void> {
  await outcome('head', () => storage.head('seen/object'));
  await outcome('get', () => Array.fromAsync(storage.get('seen/object')));
  await outcome('list', () => Array.fromAsync(storage.list('')));
  await outcome('list-below', () => Array.fromAsync(storage.list('seen/')));
  await outcome('list-absent', () => Array.fromAsync(storage.list('absent/')));
  await outcome('put', () => storage.put('seen/other', Buffer.from('x'), { ifAbsent: true }));
  await outcome('put-new-directory', () => storage.put('unseen/other', Buffer.from('x')));
  await outcome('delete', () => storage.delete('seen/object'));
  await outcome('confirm', () => storage.confirm('seen/object'));
}

/** Puts objects whose content follows from their key until it is killed; says each one that was acknowledged. */
async function putForEver(storage: Storage, round: string): Promise<void> {
  for (let number = 0; ; number += 1) {
    const sizeBytes = (number * 7919) % 300_000;
    const key = `loop/${number % 5}/${round}-${number}-${sizeBytes}`;
    const bytes = patternedBytes(sizeBytes, number + 1);
    const source = (async function* () {
      yield bytes.subarray(0, sizeBytes / 2);
      yield bytes.subarray(sizeBytes / 2);
    })();
    await storage.put(key, number % 2 === 0 ? bytes : source, { ifAbsent: number % 3 !== 0 });
    say(key);
  }
}

const storage = createLocalStorage(root);
switch (action) {
  case 'race': {
    await starterPistol();
    const { created } = await storage.put('race/winner', Buffer.from(argument), { ifAbsent: true });
    say(String(created));
    break;
  }
  case 'denied':
    dropRights();
    await everyOperation(createLocalStorage(root));
    break;
  case 'fill':
    await outcome('small', () => storage.put('small', patternedBytes(1000)));
    await outcome('large', () => storage.put('large', patternedBytes(Number(argument))));
    await outcome('small-again', () => storage.put('small-again', patternedBytes(1000)));
    break;
  case 'put-for-ever':
    await putForEver(storage, argument);
    break;
  default:
    throw new Error(`there is no action "${action}"`);
}
