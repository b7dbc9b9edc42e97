/** For tests of tails: pieces of segments, stored as a receiver stores them. */
import { type Lsn, lsnOf } from '../src/postgres/lsn.ts';
import { timelineOf } from '../src/postgres/timeline.ts';
import { WalDecoder } from '../src/postgres/wal-decoder.ts';
import { readWalLongHeader } from '../src/postgres/wal-page.ts';
import {
  parseWalSegmentName,
  segmentOfLsn,
  segmentStart,
  walSegmentName,
  type WalSegmentName,
} from '../src/postgres/wal-segment.ts';
import type { ClusterIdentity } from '../src/repository/layout.ts';
import type { Repository } from '../src/repository/repository.ts';
import { prepareTail, storeTail, type WalTail } from '../src/repository/wal-tail.ts';
import { IDENTITY, storeSegments } from './restore-lab.ts';
import { SEGMENT_SIZE } from './wal-lab.ts';
import type { WalWriter } from './wal-writer.ts';

/** Stores `[from, to)` of a segment, with the time of the last commit before `to`. */
export async function storePiece(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  bytes: Buffer,
  from: number,
  to: number,
): Promise<WalTail> {
  const piece = Buffer.from(bytes.subarray(from, to));
  const time = lastCommitBefore(name, bytes, to);
  return await storeTail(repository, identity, await prepareTail(name as WalSegmentName, from, piece, time));
}

/** Stores a segment's bytes up to the last of the cuts, one tail between each two. */
export async function storeCuts(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  bytes: Buffer,
  cuts: readonly number[],
): Promise<WalTail[]> {
  const tails: WalTail[] = [];
  for (const [index, to] of cuts.entries()) {
    tails.push(await storePiece(repository, identity, name, bytes, cuts[index - 1] ?? 0, to));
  }
  return tails;
}

function lastCommitBefore(name: string, bytes: Buffer, end: number): bigint | undefined {
  const { segmentSize } = readWalLongHeader(bytes);
  const { segmentNumber } = parseWalSegmentName(name, segmentSize);
  const start = segmentStart(segmentNumber, segmentSize);
  const decoder = new WalDecoder({ start, segmentSize });
  let time: bigint | undefined;
  for (const record of decoder.push(bytes.subarray(0, end))) {
    if (record.kind !== 'commit' && record.kind !== 'commit-prepared') continue;
    if (record.endLsn <= lsnOf(start + BigInt(end))) time = record.time;
  }
  return time;
}

/**
 * Stores what a writer wrote up to an LSN as a receiver would: whole segments, and of the one that holds `end` tails, cut
 * at `cuts` equal distances.
 */
export async function storeUpTo(
  repository: Repository,
  writer: WalWriter,
  end: Lsn,
  options: { timeline?: number; from?: bigint; summaries?: boolean; cuts?: number } = {},
): Promise<WalTail[]> {
  const { timeline = 1, cuts = 3 } = options;
  const last = segmentOfLsn(end, SEGMENT_SIZE);
  await storeSegments(repository, writer, { ...options, to: last - 1n });
  const bytes = writer.segments()[Number(last - segmentOfLsn(writer.start, SEGMENT_SIZE))];
  const offset = Number(end % BigInt(SEGMENT_SIZE));
  if (bytes === undefined || offset === 0) return [];
  const name = walSegmentName(timelineOf(timeline), last, SEGMENT_SIZE);
  const places = Array.from({ length: cuts }, (_, at) => Math.ceil((offset * (at + 1)) / cuts));
  return await storeCuts(repository, IDENTITY, name, Buffer.from(bytes), [...new Set(places)]);
}
