import assert from 'node:assert/strict';
import { test } from 'node:test';

import { openTestRepository, SEGMENT_SIZE, SYSTEM_IDENTIFIER } from '../../test/wal-lab.ts';
import { formatLsn, lsnOf, type Lsn } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { walSegmentName } from '../postgres/wal-segment.ts';
import type { Repository } from '../repository/repository.ts';
import { storeWalFile } from '../repository/wal-file.ts';
import { prepareTail, storeTail } from '../repository/wal-tail.ts';
import { blake3Hex } from '../stream/hash.ts';
import { compressFrame } from '../stream/zstd.ts';
import { formatMicroseconds } from '../postgres/timestamp.ts';
import { findNewestWal } from './stored-end.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };
const COMMIT = 1_800_000_000_000_000n;
const start = (segment: bigint): Lsn => lsnOf(segment * BigInt(SEGMENT_SIZE));

/** A segment whose header says when its last commit was. Its bytes do not matter here. */
async function segment(
  repository: Repository,
  timeline: number,
  number: bigint,
  commit?: bigint,
): Promise<void> {
  const bytes = Buffer.from(`${timeline} ${number}`);
  const frame = { bytes: await compressFrame(bytes), storedBytes: 0, sizeBytes: bytes.length };
  await storeWalFile(
    repository,
    identity,
    {
      name: walSegmentName(timelineOf(timeline), number, SEGMENT_SIZE),
      sizeBytes: bytes.length,
      hash: blake3Hex(bytes),
      modifiedAt: new Date(0),
      async *frames() {
        yield { ...frame, storedBytes: frame.bytes.length };
      },
      wal:
        commit === undefined
          ? {}
          : {
              lastCommitLsn: formatLsn(lsnOf(start(number) + 100n)),
              lastCommitTime: formatMicroseconds(commit),
            },
    },
    { host: 'h', now: () => new Date(0) },
  );
}

async function tail(
  repository: Repository,
  timeline: number,
  number: bigint,
  [from, to]: [number, number],
  commit?: bigint,
): Promise<void> {
  const name = walSegmentName(timelineOf(timeline), number, SEGMENT_SIZE);
  await storeTail(repository, identity, await prepareTail(name, from, Buffer.alloc(to - from, 1), commit));
}

test('findNewestWal() of a repository without WAL is undefined', async () => {
  const repository = await openTestRepository();
  assert.equal(await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE }), undefined);
});

test('findNewestWal() ends with the last segment, and knows the commits before that', async () => {
  const repository = await openTestRepository();
  for (const number of [1n, 2n, 3n]) await segment(repository, 1, number, COMMIT + number * 1_000_000n);
  await segment(repository, 1, 4n);
  const newest = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE });
  assert.equal(newest?.timeline, 1);
  assert.equal(newest.lsn, start(5n));
  assert.equal(newest.lastCommitTime, COMMIT + 3_000_000n);
  assert.deepEqual(
    newest.samples.map(({ at }) => at - COMMIT),
    [1_000_000n, 2_000_000n, 3_000_000n],
  );
});

test('findNewestWal() adds what tails of the next segment give, without a hole', async () => {
  const repository = await openTestRepository();
  await segment(repository, 1, 3n, COMMIT);
  // Of a segment that is complete, and so worth nothing.
  await tail(repository, 1, 3n, [0, 900], COMMIT + 9n);
  await tail(repository, 1, 4n, [0, 500], COMMIT + 1n);
  await tail(repository, 1, 4n, [500, 800], COMMIT + 2n);
  await tail(repository, 1, 4n, [801, 900], COMMIT + 3n);
  const newest = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE });
  assert.equal(newest?.lsn, start(4n) + 800n);
  assert.equal(newest.tailBytes, 800);
  assert.equal(newest.lastCommitTime, COMMIT + 2n);
});

test('findNewestWal() looks for no gap: what was streamed behind one is stored too', async () => {
  const repository = await openTestRepository();
  await segment(repository, 1, 3n, COMMIT);
  await tail(repository, 1, 9n, [0, 500], COMMIT + 1n);
  const newest = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE });
  assert.equal(newest?.lsn, start(9n) + 500n);
  assert.equal(newest.lastCommitTime, COMMIT + 1n);
});

test('findNewestWal() follows a new timeline that has tails only, and begins near or far', async () => {
  const repository = await openTestRepository();
  await segment(repository, 1, 3n, COMMIT);
  const near = { timeline: timelineOf(2), lsn: start(4n) };
  const old = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE, near });
  assert.equal(old?.timeline, 1, 'the listing near the server finds nothing, so all is listed');
  await tail(repository, 2, 3n, [0, 700]);
  const newest = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE, near });
  assert.equal(newest?.timeline, 2);
  assert.equal(newest.lsn, start(3n) + 700n);
  assert.equal(newest.lastCommitTime, COMMIT, 'the last one before the switch');
  assert.equal(newest.segment, undefined);
});
