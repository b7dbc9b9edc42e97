import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import type { BackupRecord } from '../repository/backup-record.ts';
import { SPAN_BLOCKS } from '../repository/block-map.ts';
import type { Repository } from '../repository/repository.ts';
import { readFiles, storeFiles, type SyntheticEntry } from '../../test/harness/synthetic-backup.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { openTestRepository } from '../../test/wal-lab.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);

type Files = Map<string, Buffer>;

/** Entries in a random order, each in random pieces. */
function* inPieces(files: Files, random: () => number): Generator<SyntheticEntry> {
  const paths = [...files.keys()].sort(() => random() - 0.5);
  for (const path of paths) {
    const content = files.get(path) ?? Buffer.alloc(0);
    yield { path, pieces: cut(content, random) };
  }
}

function* cut(content: Buffer, random: () => number): Generator<Buffer> {
  const largest = 1 + Math.floor(content.length / 200 + random() ** 3 * 300_000);
  for (let at = 0; at < content.length;) {
    const bytes = 1 + Math.floor(random() * largest);
    yield content.subarray(at, at + bytes);
    at += bytes;
  }
}

/** Blocks of zeros, of noise, of one byte; the last may be short. */
function makeContent(sizeBytes: number, blockSize: number, random: () => number): Buffer {
  const content = Buffer.alloc(sizeBytes);
  const zeros = random() * 0.8;
  for (let at = 0; at < sizeBytes; at += blockSize) {
    if (random() < zeros) continue;
    const block = content.subarray(at, at + blockSize);
    if (random() < 0.3) block.fill(Math.floor(random() * 256));
    else
      for (let byte = 0; byte < block.length; byte += 1 + Math.floor(random() * 64))
        block[byte] = random() * 256;
  }
  return content;
}

/** A later version: blocks changed, zeroed, moved; the end cut off or grown. */
function edit(content: Buffer, blockSize: number, random: () => number): Buffer {
  const kind = random();
  if (kind < 0.3) return content;
  let next = Buffer.from(content);
  if (kind < 0.5) next = next.subarray(0, Math.floor(random() * next.length));
  if (kind > 0.8)
    next = Buffer.concat([next, makeContent(Math.floor(random() * 3 * blockSize), blockSize, random)]);
  for (let times = Math.floor(random() * 5); times > 0 && next.length > 0; times -= 1) {
    const at = Math.floor(random() * next.length);
    const what = random();
    if (what < 0.5) next[at] = random() * 256;
    else if (what < 0.8) next.subarray(at, at + Math.floor(random() * 4 * blockSize)).fill(0);
    else next.copy(next, 0, at, at + blockSize);
  }
  return next;
}

/** How many blocks must be stored: not those of zeros, not those the version before had at the same place. */
function changedBlocks(now: Files, before: Files, blockSize: number): number {
  let changed = 0;
  for (const [path, content] of now) {
    const old = before.get(path) ?? Buffer.alloc(0);
    for (let at = 0; at < content.length; at += blockSize) {
      const block = content.subarray(at, at + blockSize);
      if (block.length === blockSize && block.every((byte) => byte === 0)) continue;
      if (!old.subarray(at, at + blockSize).equals(block)) changed += 1;
    }
  }
  return changed;
}

const blockSizes = fc.constantFrom(16, 64, 512, 8192, 32_768, 131_072);

test('BlockWriter stores what was written, byte for byte, and no block that the backup before has in its place', async () => {
  let spans = 0;
  await fc.assert(
    fc.asyncProperty(fc.integer(), blockSizes, async (seed, blockSize) => {
      const random = seededRandom(seed);
      const repository = await openTestRepository();
      let files: Files = new Map();
      for (let count = Math.floor(random() * 6); count >= 0; count -= 1) {
        const path = `base/${count}/${Math.floor(random() * 1000)}`;
        files.set(path, makeContent(oddSize(blockSize, random), blockSize, random));
      }
      let before: Files = new Map();
      let previous: BackupRecord | undefined;
      for (let generation = 1; generation <= 3; generation += 1) {
        const { record } = await storeFiles(
          repository,
          `2026010${generation}T000000Z-0000`,
          inPieces(files, random),
          { blockSizeBytes: blockSize, ...(previous && { previous }) },
        );
        assert.equal(record.stored.newBlocks, changedBlocks(files, before, blockSize));
        await assertHolds(repository, record, files);
        for (const { length } of files.values()) if (length > SPAN_BLOCKS * blockSize) spans += 1;
        [before, previous] = [files, record];
        files = new Map(Array.from(files, ([path, content]) => [path, edit(content, blockSize, random)]));
        if (random() < 0.3) files.delete([...files.keys()][0] ?? '');
        if (random() < 0.3) files.set('base/new', makeContent(3 * blockSize, blockSize, random));
      }
    }),
    { numRuns: 40 * SCALE },
  );
  assert.ok(spans > 0, 'no file had several spans');
});

/** Around the ends of blocks and spans, where block sizes are small enough to have any. */
function oddSize(blockSize: number, random: () => number): number {
  const blocks = blockSize <= 64 ? [1, 3, SPAN_BLOCKS, 2 * SPAN_BLOCKS] : [1, 2, 5, 20];
  const around = (blocks[Math.floor(random() * blocks.length)] ?? 1) * blockSize;
  return Math.max(0, around + Math.floor((random() - 0.5) * 4) * (random() < 0.5 ? 1 : blockSize));
}

async function assertHolds(repository: Repository, record: BackupRecord, files: Files): Promise<void> {
  const found = await readFiles(repository, record);
  assert.deepEqual([...found.keys()].sort(), [...files.keys()].sort());
  for (const [path, content] of files) assert.ok(found.get(path)?.equals(content), path);
}

test('BlockWriter stores an unchanged backup as nothing but its map, also in the third generation', async () => {
  const repository = await openTestRepository();
  const random = seededRandom(7);
  const files: Files = new Map();
  for (let file = 0; file < 50; file += 1)
    files.set(`base/1/${file}`, makeContent(file * 3000, 8192, random));
  let previous: BackupRecord | undefined;
  for (let generation = 1; generation <= 3; generation += 1) {
    const { record } = await storeFiles(
      repository,
      `2026010${generation}T000000Z-0000`,
      inPieces(files, random),
      {
        ...(previous && { previous }),
      },
    );
    if (generation > 1) assert.deepEqual([record.stored.newBytes, record.stored.newBlocks], [0, 0]);
    await assertHolds(repository, record, files);
    previous = record;
  }
});

test('BlockWriter compares nothing with a backup of another block size', async () => {
  const repository = await openTestRepository();
  const files: Files = new Map([['a', makeContent(100_000, 8192, () => 0.4)]]);
  const random = seededRandom(1);
  const { record: previous } = await storeFiles(
    repository,
    '20260101T000000Z-0000',
    inPieces(files, random),
    {
      blockSizeBytes: 8192,
    },
  );
  const { record } = await storeFiles(repository, '20260102T000000Z-0000', inPieces(files, random), {
    blockSizeBytes: 16_384,
    previous,
  });
  assert.equal(record.stored.newBlocks, changedBlocks(files, new Map(), 16_384));
  await assertHolds(repository, record, files);
});

test('BlockWriter keeps holes out of the repository', async () => {
  const repository = await openTestRepository();
  const zeros = Buffer.alloc(1024 * 1024);
  const pieces = Array.from({ length: 64 }, () => zeros);
  const { record } = await storeFiles(repository, '20260101T000000Z-0000', [{ path: 'holes', pieces }]);
  assert.equal(record.stored.newBlocks, 0);
  assert.equal(record.files.sizeBytes, 64 * 2 ** 20);
  assert.ok(record.stored.newBytes < 1000, `${record.stored.newBytes} bytes`);
  assert.equal((await readFiles(repository, record)).get('holes')?.length, 64 * 2 ** 20);
});

test('BlockWriter does not change the bytes it is lent, nor keep them', async () => {
  // `storeFiles` overwrites every piece as soon as `write` settled: what is read back was copied in time.
  const repository = await openTestRepository();
  const random = seededRandom(3);
  const content = makeContent(4 * 2 ** 20, 32_768, () => random() * 0.5);
  const { record } = await storeFiles(repository, '20260101T000000Z-0000', [
    { path: 'a', pieces: cut(content, random) },
  ]);
  await assertHolds(repository, record, new Map([['a', content]]));
});
