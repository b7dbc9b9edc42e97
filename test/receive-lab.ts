/** For tests of receiving without a server: a spool, segments of valid WAL that come in, and what a store has of them. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Clock } from '../src/clock.ts';
import { throwIfCancelled } from '../src/cancellation.ts';
import { parseSystemIdentifier } from '../src/postgres/system-identifier.ts';
import { timelineOf } from '../src/postgres/timeline.ts';
import type { WalSegmentName } from '../src/postgres/wal-segment.ts';
import type { ClusterIdentity } from '../src/repository/layout.ts';
import type { Repository } from '../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../src/repository/wal-file.ts';
import { findTailChain, readTailChain } from '../src/repository/wal-tail.ts';
import { type ReceivedSegment, receiveSegment } from '../src/wal/receive/received-segment.ts';
import { PiecePool } from '../src/wal/receive/segment-frames.ts';
import { openSegmentSpool, type SegmentSpool } from '../src/wal/receive/segment-spool.ts';
import { makeSegment, SEGMENT_SIZE, SYSTEM_IDENTIFIER } from './wal-lab.ts';

export const IDENTITY: ClusterIdentity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

/** Waits one turn of the event loop instead of the time. */
export const hastyClock: Clock = {
  now: () => new Date('2026-01-02T00:00:00Z'),
  monotonicMs: () => performance.now(),
  sleep: async (_ms, signal) => {
    throwIfCancelled(signal);
    await new Promise(setImmediate);
    throwIfCancelled(signal);
  },
};

export interface ReceiveLab extends AsyncDisposable {
  readonly directory: string;
  readonly spool: SegmentSpool;
  /** Segment `number` of timeline 1 as it comes in, with nothing in it yet, and what it will have. */
  begin(number: number): Promise<{ segment: ReceivedSegment; bytes: Buffer }>;
  /** The same with its bytes up to `end` in it. */
  receive(number: number, end?: number): Promise<ReceivedSegment>;
}

const made = new Map<number, Buffer>();

/** The WAL of segment `number`; the same each time. */
export function walOf(number: number): Buffer {
  let bytes = made.get(number);
  if (bytes === undefined) made.set(number, (bytes = makeSegment({ segment: number }).bytes));
  return bytes;
}

export async function createReceiveLab(): Promise<ReceiveLab> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-receive-'));
  const spool = await openSegmentSpool(join(directory, 'spool'));
  const pool = new PiecePool();
  const begin = async (number: number): ReturnType<ReceiveLab['begin']> => {
    const segment = await receiveSegment(spool, pool, {
      timeline: timelineOf(1),
      segment: BigInt(number),
      segmentSize: SEGMENT_SIZE,
      systemIdentifier: parseSystemIdentifier(SYSTEM_IDENTIFIER),
    });
    return { segment, bytes: walOf(number) };
  };
  return {
    directory,
    spool,
    begin,
    async receive(number, end = SEGMENT_SIZE) {
      const { segment, bytes } = await begin(number);
      for (let at = 0; at < end; at += 128 * 1024)
        segment.append(bytes.subarray(at, Math.min(end, at + 128 * 1024)));
      return segment;
    },
    async [Symbol.asyncDispose]() {
      await spool.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** What a repository has of a segment: the whole, or what its tails give. Verified against what it should be. */
export async function heldOf(
  repository: Repository,
  name: WalSegmentName,
  expected: Buffer,
): Promise<number> {
  const header = await readWalHeader(repository, IDENTITY, name);
  if (header !== undefined) {
    assert.ok((await readWholeWalFile(repository, header, SEGMENT_SIZE)).equals(expected));
    return expected.length;
  }
  const chain = await findTailChain(repository, IDENTITY, name);
  if (chain === undefined) return 0;
  const bytes = Buffer.concat(await Array.fromAsync(readTailChain(repository, chain)));
  assert.ok(bytes.equals(expected.subarray(0, bytes.length)), `${name}: other bytes`);
  return bytes.length;
}
