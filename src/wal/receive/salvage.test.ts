import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';

import { createReceiveLab, heldOf, IDENTITY, type ReceiveLab, walOf } from '../../../test/receive-lab.ts';
import { makeSegment, openTestRepository, SEGMENT_SIZE } from '../../../test/wal-lab.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { WalDecoder } from '../../postgres/wal-decoder.ts';
import { segmentStart, walSegmentName } from '../../postgres/wal-segment.ts';
import type { Repository } from '../../repository/repository.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { findTailChain, listTails, prepareTail, storeTail } from '../../repository/wal-tail.ts';
import { salvageSpool } from './salvage.ts';

const name = (number: number, timeline = 1) =>
  walSegmentName(timelineOf(timeline), BigInt(number), SEGMENT_SIZE);

async function leave(lab: ReceiveLab, file: string, bytes: Buffer): Promise<void> {
  await mkdir(lab.spool.directory, { recursive: true });
  await writeFile(join(lab.spool.directory, file), bytes);
}

async function salvage(lab: ReceiveLab, ...required: Repository[]): Promise<[string, number][]> {
  const told: [string, number][] = [];
  await salvageSpool({
    spool: lab.spool,
    required,
    identity: IDENTITY,
    host: 'test',
    now: () => new Date(0),
    signal: new AbortController().signal,
    salvaged: (segment, sizeBytes) => told.push([segment, sizeBytes]),
  });
  return told;
}

/** Offsets at which records of a segment end. */
function recordEnds(number: number): number[] {
  const start = segmentStart(BigInt(number), SEGMENT_SIZE);
  const decoder = new WalDecoder({ start, segmentSize: SEGMENT_SIZE });
  return Array.from(decoder.push(walOf(number)), ({ endLsn }) => Number(endLsn - start));
}

void describe('salvageSpool()', () => {
  void it('salvageSpool() stores whole segments and whole records of the last one, once', async () => {
    await using lab = await createReceiveLab();
    const repositories = [await openTestRepository(), await openTestRepository(undefined, 'second')];
    await leave(lab, name(3), walOf(3));
    await leave(lab, name(4), walOf(4));
    await leave(lab, name(5), walOf(5).subarray(0, 30_001));
    const told = await salvage(lab, ...repositories);
    assert.ok(told.length === 6);
    for (const repository of repositories) {
      assert.deepEqual(await Array.fromAsync(listWal(repository, IDENTITY), (one) => one.name), [
        name(3),
        name(4),
      ]);
      const held = await heldOf(repository, name(5), walOf(5));
      assert.equal(
        held,
        recordEnds(5).findLast((end) => end <= 30_001),
      );
      assert.equal((await findTailChain(repository, IDENTITY, name(5)))?.lastCommitTime !== undefined, true);
    }
    assert.deepEqual(await salvage(lab, ...repositories), []);
    assert.equal((await lab.spool.leftOver()).length, 3, 'it removes nothing');
  });

  void it('salvageSpool() takes nothing behind what a crash of the machine lost', async () => {
    await using lab = await createReceiveLab();
    const ends = recordEnds(4);
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 0, max: SEGMENT_SIZE }),
        fc.integer({ min: 0, max: 60_000 }),
        fc.constantFrom('zeros', 'noise', 'cut'),
        async (length, tornAt, kind) => {
          await lab.spool.clear();
          const repository = await openTestRepository();
          const whole = Buffer.from(walOf(4).subarray(0, length));
          const torn = kind === 'cut' ? whole.subarray(0, tornAt) : whole;
          if (kind === 'zeros') torn.fill(0, tornAt);
          if (kind === 'noise') torn.fill(0x5b, tornAt);
          await leave(lab, name(4), torn);
          await leave(lab, name(5), walOf(5));
          await salvage(lab, repository);
          const held = await heldOf(repository, name(4), walOf(4));
          const sound = torn.equals(walOf(4).subarray(0, torn.length)) ? torn.length : tornAt;
          if (held === SEGMENT_SIZE) {
            assert.equal(sound, SEGMENT_SIZE);
            return;
          }
          // The padding behind a record is known to be zeros.
          assert.ok(held <= Math.ceil(sound / 8) * 8, `${held} of ${sound}`);
          // Nothing that was there whole is given up, but for what a first page cut short could tell.
          const expected = ends.findLast((end) => end <= sound) ?? 0;
          assert.ok(held >= expected, `${held} of ${expected}`);
          assert.deepEqual(await Array.fromAsync(listWal(repository, IDENTITY)), []);
        },
      ),
      {
        numRuns: 80,
        // The file ends right behind a record, before its padding.
        examples: [[52402, 60_000, 'cut'] as [number, number, 'zeros' | 'noise' | 'cut']],
      },
    );
  });

  void it('salvageSpool() leaves out what belongs to another cluster or another place', async () => {
    await using lab = await createReceiveLab();
    for (const bytes of [
      makeSegment({ segment: 4, systemIdentifier: '7000000000000000002' }).bytes,
      walOf(3),
      Buffer.alloc(SEGMENT_SIZE),
      Buffer.alloc(0),
      walOf(4).subarray(0, 39),
    ]) {
      await lab.spool.clear();
      const repository = await openTestRepository();
      await leave(lab, name(4), bytes);
      assert.deepEqual(await salvage(lab, repository), []);
      assert.deepEqual(await Array.fromAsync(listTails(repository, IDENTITY)), []);
      assert.deepEqual(await Array.fromAsync(listWal(repository, IDENTITY)), []);
    }
  });

  void it('salvageSpool() never goes on behind stored bytes that are others than its own', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    const other = makeSegment({ segment: 4, seed: 9 }).bytes;
    await storeTail(
      repository,
      IDENTITY,
      await prepareTail(name(4), 0, Buffer.from(other.subarray(0, 20_000)), undefined),
    );
    await leave(lab, name(4), walOf(4).subarray(0, 60_000));
    assert.deepEqual(await salvage(lab, repository), []);
    assert.equal(await heldOf(repository, name(4), other), 20_000);
    // Nor is a whole one put in its place.
    await lab.spool.clear();
    await leave(lab, name(4), walOf(4));
    assert.deepEqual(await salvage(lab, repository), []);
    assert.deepEqual(await Array.fromAsync(listWal(repository, IDENTITY)), []);
  });

  void it('salvageSpool() adds to a shorter tail, and leaves what is stored whole alone', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    await storeTail(
      repository,
      IDENTITY,
      await prepareTail(name(4), 0, Buffer.from(walOf(4).subarray(0, 20_000)), 7n),
    );
    await leave(lab, name(4), walOf(4).subarray(0, 60_000));
    const [told] = await salvage(lab, repository);
    const held = await heldOf(repository, name(4), walOf(4));
    assert.ok(held > 50_000);
    assert.deepEqual(told, [name(4), held - 20_000]);
    await lab.spool.clear();
    await leave(lab, name(4), walOf(4));
    await salvage(lab, repository);
    assert.deepEqual(await Array.fromAsync(listTails(repository, IDENTITY)), []);
    await lab.spool.clear();
    await leave(lab, name(4), makeSegment({ segment: 4, seed: 9 }).bytes);
    assert.deepEqual(await salvage(lab, repository), []);
    assert.equal(await heldOf(repository, name(4), walOf(4)), SEGMENT_SIZE);
  });
});
