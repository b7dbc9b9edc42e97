import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import type { Clock } from '../clock.ts';
import { HoldfastError } from '../errors.ts';
import { lsnOf, parseLsn } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { segmentOfLsn, type WalSegmentName, walSegmentName } from '../postgres/wal-segment.ts';
import type { Repository } from '../repository/repository.ts';
import { storeWalFile } from '../repository/wal-file.ts';
import { compressFrames, piecesOf, type WalFrame } from '../repository/wal-frames.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { blake3Hex } from '../stream/hash.ts';
import { IDENTITY } from '../../test/harness/synthetic-backup.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import { awaitWal, segmentsBetween } from './await-wal.ts';

const SEGMENT = 2 ** 20;
const TIMELINE = timelineOf(3);
const stopLsn = parseLsn('0/5000000');

test('segmentsBetween() names every segment that holds a byte between the two, and no other', () => {
  const lsn = fc
    .integer({ min: 1, max: 40 * SEGMENT })
    .map((at) => BigInt(at) + 2n ** 32n - BigInt(20 * SEGMENT));
  fc.assert(
    fc.property(lsn, lsn, (a, b) => {
      const [start, end] = a < b ? [a, b] : [b, a + 1n];
      const wanted: string[] = [];
      for (let at = start - (start % BigInt(SEGMENT)); at < end; at += BigInt(SEGMENT)) {
        wanted.push(walSegmentName(TIMELINE, segmentOfLsn(lsnOf(at), SEGMENT), SEGMENT));
      }
      assert.deepEqual(segmentsBetween(TIMELINE, lsnOf(start), lsnOf(end), SEGMENT), wanted);
    }),
  );
});

test('segmentsBetween() does not ask for the segment behind a stop on a boundary', () => {
  const between = (start: string, end: string): number =>
    segmentsBetween(TIMELINE, parseLsn(start), parseLsn(end), SEGMENT).length;
  assert.equal(between('0/100000', '0/200000'), 1);
  assert.equal(between('0/100000', '0/200001'), 2);
  assert.equal(between('0/100028', '0/100028'), 1);
  assert.equal(between('0/FFFFFFFF', '1/1'), 2);
});

const NAMES = segmentsBetween(TIMELINE, parseLsn('0/300000'), parseLsn('0/600000'), SEGMENT);

async function push(repository: Repository, name: WalSegmentName): Promise<void> {
  const bytes = Buffer.alloc(SEGMENT, name);
  const frames = (): AsyncIterable<WalFrame> => compressFrames(piecesOf(bytes));
  const file = { name, sizeBytes: SEGMENT, hash: blake3Hex(bytes), modifiedAt: new Date(0), frames };
  await storeWalFile(repository, IDENTITY, file, { host: 'h', now: () => new Date(0) });
}

/** Time that passes only in `sleep`; `during` happens in each. */
function fakeClock(
  during: (elapsedMs: number) => Promise<void> = async () => undefined,
): Clock & { slept: number[] } {
  let nowMs = 0;
  const slept: number[] = [];
  return {
    slept,
    now: () => new Date(nowMs),
    monotonicMs: () => nowMs,
    sleep: async (ms) => {
      slept.push(ms);
      nowMs += ms;
      await during(nowMs);
    },
  };
}

test('awaitWal() returns at once where everything is there', async () => {
  const repository = await openTestRepository();
  for (const name of NAMES) await push(repository, name);
  const clock = fakeClock();
  const waiting = async (): Promise<void> => assert.fail('there was nothing to wait for');
  await awaitWal({ repository, identity: IDENTITY, segments: NAMES, stopLsn, clock, timeoutMs: 0, waiting });
  assert.deepEqual(clock.slept, []);
});

test('awaitWal() waits for segments in whatever order they come, and says so once', async () => {
  const repository = await openTestRepository();
  const late = [...NAMES].reverse();
  const clock = fakeClock(async () => {
    const next = late.pop();
    if (next !== undefined) await push(repository, next);
  });
  const told: string[] = [];
  const waiting = async (name: string): Promise<void> => void told.push(name);
  await awaitWal({
    repository,
    identity: IDENTITY,
    segments: NAMES,
    stopLsn,
    clock,
    timeoutMs: 60_000,
    waiting,
  });
  assert.deepEqual(told, [NAMES[0]]);
  assert.ok(clock.slept.every((ms) => ms <= 1000));
});

test('awaitWal() gives up after its time, naming the first segment that is missing', async () => {
  const repository = await openTestRepository();
  const [first, second, third] = NAMES;
  assert.ok(first && second && third);
  await push(repository, first);
  await push(repository, third);
  const clock = fakeClock();
  const options = {
    repository,
    identity: IDENTITY,
    segments: NAMES,
    stopLsn,
    clock,
    timeoutMs: 90_000,
    waiting: async () => undefined,
  };
  await assert.rejects(awaitWal(options), (error: unknown) => {
    assert.ok(error instanceof HoldfastError && error.code === 'wal-not-archived');
    assert.match(error.message, new RegExp(`${second}.* 0/5000000,.* 90 s`));
    return true;
  });
  assert.ok(clock.monotonicMs() >= 90_000 && clock.monotonicMs() < 95_000);
});

test('awaitWal() refuses a segment that is there and is not what was stored', async () => {
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  for (const name of NAMES) await push(repository, name);
  const options = {
    repository,
    identity: IDENTITY,
    segments: NAMES,
    stopLsn,
    clock: fakeClock(),
    timeoutMs: 0,
    waiting: async () => undefined,
  };
  for (const [key, bytes] of Array.from(objects)) {
    if (!/\/wal(-data)?\//.test(key)) continue;
    const flipped = Buffer.from(bytes);
    flipped.writeUInt8(flipped.readUInt8(40) ^ 4, 40);
    for (const damaged of [flipped, bytes.subarray(1), Buffer.alloc(0)]) {
      objects.set(key, damaged);
      await assert.rejects(awaitWal(options), failsWith('object-damaged'), key);
    }
    if (key.includes('/wal-data/')) {
      objects.delete(key);
      await assert.rejects(awaitWal(options), failsWith('object-missing', 'object-damaged'));
    }
    objects.set(key, bytes);
  }
  await awaitWal(options);
});
