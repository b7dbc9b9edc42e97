import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { parseWalSegmentName, walSegmentName } from '../postgres/wal-segment.ts';
import type { FetchResult } from './fetch.ts';
import { deliveredName, readyName } from './prefetch-owner.ts';
import { PrefetchWindow } from './prefetch-window.ts';

const SIZE = 2 ** 20;
const nameOf = (number: number): string => walSegmentName(timelineOf(1), BigInt(number), SIZE);
const delivered = (more: Partial<Extract<FetchResult, { kind: 'delivered' }>> = {}): FetchResult => ({
  kind: 'delivered',
  repository: 'a',
  sizeBytes: SIZE,
  hash: 'ab',
  warnings: [],
  ...more,
});

interface Stage {
  window: PrefetchWindow;
  directory: string;
  /** Numbers of the segments that were asked for, in order. */
  asked: number[];
  /** Advances until nothing is left to be done, but for so many fetches that never end. */
  settle: (hanging?: number) => Promise<void>;
  ready: () => Promise<number[]>;
  take: (number: number) => Promise<void>;
}

async function stage(
  t: TestContext | undefined,
  answer: (number: number, signal: AbortSignal) => FetchResult | Promise<FetchResult> = () => delivered(),
  end?: number,
): Promise<Stage> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-window-'));
  t?.after(async () => rm(directory, { recursive: true }));
  const asked: number[] = [];
  const window = new PrefetchWindow({
    directory,
    systemIdentifier: '7',
    after: walSegmentName(timelineOf(1), 4n, SIZE),
    segmentSize: SIZE,
    ...(end !== undefined && { end: BigInt(end) }),
    async fetch(name, destination, signal) {
      const number = Number(parseWalSegmentName(name, SIZE).segmentNumber);
      asked.push(number);
      const result = await answer(number, signal);
      if (result.kind === 'delivered') await writeFile(destination, name);
      return result;
    },
  });
  return {
    window,
    directory,
    asked,
    async settle(hanging = 0) {
      for (;;) {
        const before = asked.length;
        await window.advance();
        await window.pause(5, new AbortController().signal);
        if (asked.length === before && window.inFlight <= hanging) break;
      }
      // What came to its end last is seen now.
      await window.advance();
    },
    async ready() {
      const names = await readdir(directory);
      return names
        .filter((name) => name.startsWith('7-'))
        .map((name) => Number(parseWalSegmentName(name.split('-')[1] ?? '', SIZE).segmentNumber))
        .toSorted((a, b) => a - b);
    },
    take: async (number) => rm(join(directory, readyName('7', nameOf(number), 'ab'))),
  };
}

const range = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, n) => from + n);

test('PrefetchWindow fills, pauses while it is full, and goes on as segments are taken', async (t) => {
  const { asked, settle, ready, take, window } = await stage(t);
  await settle();
  assert.deepEqual(await ready(), range(5, 20));
  await settle();
  // Those that are on their way together may overtake one another.
  assert.deepEqual(
    asked.toSorted((a, b) => a - b),
    range(5, 20),
  );
  await take(5);
  await take(6);
  await settle();
  assert.deepEqual(await ready(), range(7, 22));
  assert.equal(window.isOver, false);
});

test('PrefetchWindow ends where a segment is absent, incomplete, failed or of the wrong size', async (t) => {
  const ends: [string, () => FetchResult | Promise<FetchResult>][] = [
    ['absent', () => ({ kind: 'absent', reason: '', warnings: [] })],
    ['failed', () => ({ kind: 'failed', error: new HoldfastError('wal-gap', 'x'), warnings: [] })],
    ['a tail', () => ({ kind: 'delivered', repository: 'a', sizeBytes: SIZE, warnings: [] })],
    ['short', () => delivered({ sizeBytes: 7 })],
    ['thrown', () => Promise.reject(new Error('x'))],
  ];
  for (const [what, end] of ends) {
    const { window, settle, ready, take, directory } = await stage(t, (number) =>
      number === 8 ? end() : delivered(),
    );
    await settle();
    assert.deepEqual(await ready(), [5, 6, 7], what);
    assert.equal((await readdir(directory)).length, 3, `${what}: nothing half done stays`);
    assert.equal(window.isOver, false, 'what is there can still be taken');
    for (const number of [5, 6, 7]) await take(number);
    await settle();
    assert.equal(window.isOver, true, what);
  }
});

test('PrefetchWindow goes on behind what was handed over another way, forwards and back', async (t) => {
  let holds8 = false;
  const { window, settle, ready, directory } = await stage(t, (number) =>
    number === 8 && !holds8 ? { kind: 'absent', reason: '', warnings: [] } : delivered(),
  );
  await settle();
  await writeFile(join(directory, deliveredName(nameOf(8))), '');
  await settle();
  assert.deepEqual(await ready(), range(9, 24));
  holds8 = true;
  await writeFile(join(directory, deliveredName(nameOf(2))), '');
  await settle();
  assert.deepEqual(await ready(), range(3, 18));
  assert.equal(window.isOver, false);
  assert.deepEqual(
    (await readdir(directory)).filter((name) => !name.startsWith('7-')),
    [],
  );
});

test('PrefetchWindow gives up what is on its way when it is not wanted any more', async (t) => {
  const aborted: number[] = [];
  const { window, settle, directory } = await stage(t, async (number, signal) => {
    if (number > 7) return delivered();
    return new Promise((_, reject) => {
      signal.addEventListener('abort', () => {
        aborted.push(number);
        reject(new Error('aborted'));
      });
    });
  });
  await window.advance();
  await window.pause(20, new AbortController().signal);
  await writeFile(join(directory, deliveredName(nameOf(6))), '');
  await settle(1);
  assert.deepEqual(aborted, [5, 6]);
  await window.stop();
  assert.deepEqual(aborted, [5, 6, 7]);
  assert.deepEqual(
    (await readdir(directory)).filter((name) => !name.startsWith('7-')),
    [],
  );
});

test('PrefetchWindow keeps a warning beside its segment until that is taken', async (t) => {
  const warnings = [new HoldfastError('object-damaged', 'a is\ndamaged'), new HoldfastError('wal-gap', 'b')];
  const { settle, take, directory } = await stage(t, (number) =>
    number === 5 ? delivered({ warnings }) : delivered(),
  );
  await settle();
  const file = join(directory, `${nameOf(5)}.warning`);
  assert.equal(await readFile(file, 'utf8'), 'a is damaged\nb\n');
  await take(5);
  await settle();
  assert.equal((await readdir(directory)).includes(`${nameOf(5)}.warning`), false);
});

test('PrefetchWindow does not go beyond what recovery has to reach, unless recovery does', async (t) => {
  const { settle, ready, take, window, directory } = await stage(t, () => delivered(), 7);
  await settle();
  assert.deepEqual(await ready(), [5, 6]);
  await take(5);
  await take(6);
  await settle();
  assert.equal(window.isOver, true);
  await writeFile(join(directory, deliveredName(nameOf(7))), '');
  await settle();
  assert.deepEqual(await ready(), range(8, 23));
  const beyond = await stage(t, () => delivered(), 3);
  await beyond.settle();
  assert.deepEqual(await beyond.ready(), range(5, 20));
});

test('PrefetchWindow hands every segment out once and whole, whatever is taken when', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.boolean(), { minLength: 10, maxLength: 40 }), async (moves) => {
      const { window, directory, ready, take } = await stage(undefined, (number) =>
        number < 30 ? delivered() : { kind: 'absent', reason: '', warnings: [] },
      );
      let next = 5;
      const move = async (takes: boolean): Promise<void> => {
        await window.advance();
        await window.pause(1, new AbortController().signal);
        const there = await ready();
        assert.ok(there.length <= 16);
        if (!takes || !there.includes(next)) return;
        const path = join(directory, readyName('7', nameOf(next), 'ab'));
        assert.equal(await readFile(path, 'utf8'), nameOf(next));
        await take(next);
        next += 1;
      };
      for (const takes of moves) await move(takes);
      const giveUpAt = performance.now() + 30_000;
      while (!window.isOver && performance.now() < giveUpAt) await move(true);
      assert.equal(next, 30);
      assert.deepEqual(await readdir(directory), []);
      await rm(directory, { recursive: true });
    }),
    { numRuns: 20, endOnFailure: true },
  );
});
