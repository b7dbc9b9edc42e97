import assert from 'node:assert/strict';
import { describe, it } from 'node:test';

import { createReceiveLab, IDENTITY, walOf } from '../../../test/receive-lab.ts';
import { VolatileStorage } from '../../../test/volatile-storage.ts';
import { makeSegment, openTestRepository, SEGMENT_SIZE } from '../../../test/wal-lab.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { walSegmentName } from '../../postgres/wal-segment.ts';
import { walHeaderKey } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { storeWalFile } from '../../repository/wal-file.ts';
import { prepareTail, storeTail } from '../../repository/wal-tail.ts';
import { readStoredReach } from './stored-reach.ts';

async function storeSegment(repository: Repository, number: number, timeline = 1): Promise<string> {
  await using lab = await createReceiveLab();
  const segment = await lab.receive(number);
  const content = segment.content();
  assert.ok(content !== undefined);
  const name = walSegmentName(timelineOf(timeline), BigInt(number), SEGMENT_SIZE);
  await storeWalFile(
    repository,
    IDENTITY,
    { ...content, name, modifiedAt: new Date(0) },
    { host: 'test', now: () => new Date(0) },
  );
  return name;
}

async function storeTailOf(repository: Repository, number: number, timeline = 1): Promise<void> {
  const name = walSegmentName(timelineOf(timeline), BigInt(number), SEGMENT_SIZE);
  const bytes = timeline === 1 ? walOf(number) : makeSegment({ segment: number, timeline }).bytes;
  await storeTail(
    repository,
    IDENTITY,
    await prepareTail(name, 0, Buffer.from(bytes.subarray(0, 9000)), undefined),
  );
}

void describe('readStoredReach()', () => {
  void it('readStoredReach() tells what comes next on each timeline', async () => {
    const repository = await openTestRepository();
    assert.deepEqual([...(await readStoredReach(repository, IDENTITY, SEGMENT_SIZE)).next], []);
    await storeSegment(repository, 3);
    await storeSegment(repository, 4);
    // The first is left over from a segment that is complete.
    await storeTailOf(repository, 4);
    await storeTailOf(repository, 5);
    await storeTailOf(repository, 5, 2);
    const { next } = await readStoredReach(repository, IDENTITY, SEGMENT_SIZE);
    assert.deepEqual(
      [...next],
      [
        [1, 5n],
        [2, 5n],
      ],
    );
  });

  void it('readStoredReach() goes on behind a gap that was accepted as soon as anything behind it is stored', async () => {
    const repository = await openTestRepository();
    await storeSegment(repository, 3);
    await storeTailOf(repository, 9);
    const { next } = await readStoredReach(repository, IDENTITY, SEGMENT_SIZE);
    assert.deepEqual([...next], [[1, 9n]]);
  });

  void it('readStoredReach() relies on nothing that a power cut could take back', async () => {
    const storage = new VolatileStorage();
    const repository = await openTestRepository(storage);
    await storeSegment(repository, 3);
    // Its writer died between making it visible and making it durable.
    storage.unsync(walHeaderKey(IDENTITY, await storeSegment(repository, 4)));
    const { next } = await readStoredReach(repository, IDENTITY, SEGMENT_SIZE);
    assert.deepEqual([...next], [[1, 5n]]);
    storage.crash();
    assert.deepEqual([...(await readStoredReach(repository, IDENTITY, SEGMENT_SIZE)).next], [[1, 5n]]);
  });
});
