import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { walSegmentName } from '../../postgres/wal-segment.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { seededRandom } from '../../../test/seeded-random.ts';
import { deferSpoolFile } from './deferred-file.ts';
import { PiecePool, SegmentFrames } from './segment-frames.ts';
import { openSegmentSpool } from './segment-spool.ts';

const NAME = walSegmentName(timelineOf(1), 1n, 2 ** 24);

test('deferSpoolFile() makes no file before anything is asked of it', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'hf-deferred-'));
  try {
    const spool = await openSegmentSpool(directory);
    const frames = new SegmentFrames(new PiecePool());
    const file = deferSpoolFile(
      { name: NAME, path: join(directory, NAME) },
      () => spool.create(NAME),
      frames,
    );
    frames.append(Buffer.alloc(3_000_000, 7));
    file.append(Buffer.alloc(3_000_000, 7));
    assert.equal(file.sizeBytes, 3_000_000);
    await file.discard();
    await frames.release();
    assert.deepEqual(await readdir(directory), []);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('deferSpoolFile() gives back what was appended, before and while the file is made', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'hf-deferred-'));
  const slices = fc.array(fc.integer({ min: 1, max: 700_000 }), { minLength: 1, maxLength: 12 });
  try {
    await fc.assert(
      fc.asyncProperty(slices, fc.nat({ max: 11 }), fc.nat(), async (sizes, askedAt, seed) => {
        const spool = await openSegmentSpool(directory);
        const frames = new SegmentFrames(new PiecePool());
        const file = deferSpoolFile(
          { name: NAME, path: join(directory, NAME) },
          () => spool.create(NAME),
          frames,
        );
        const random = seededRandom(seed);
        const all: Buffer[] = [];
        let syncing: Promise<void> | undefined;
        for (const [index, size] of sizes.entries()) {
          if (index === askedAt) syncing = file.sync();
          const bytes = Buffer.alloc(size, Math.floor(random() * 256));
          all.push(bytes);
          frames.append(bytes);
          file.append(bytes);
          // Lets the making go on between some of the slices.
          if (random() < 0.5) await new Promise((resolve) => setTimeout(resolve, random() * 4));
        }
        const whole = Buffer.concat(all);
        const from = Math.floor(random() * whole.length);
        assert.ok((await file.read(from, whole.length)).equals(whole.subarray(from)));
        await syncing;
        await file.sync();
        assert.ok((await readFile(join(directory, NAME))).equals(whole));
        await file.discard();
        await frames.release();
        assert.deepEqual(await readdir(directory), []);
      }),
      { numRuns: 40 },
    );
  } finally {
    await rm(directory, { recursive: true });
  }
});
