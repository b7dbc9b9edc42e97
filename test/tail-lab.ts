/** For tests of tails: pieces of segments, stored as a receiver stores them. */
import { lsnOf } from '../src/postgres/lsn.ts';
import { WalDecoder } from '../src/postgres/wal-decoder.ts';
import { readWalLongHeader } from '../src/postgres/wal-page.ts';
import { parseWalSegmentName, segmentStart, type WalSegmentName } from '../src/postgres/wal-segment.ts';
import type { ClusterIdentity } from '../src/repository/layout.ts';
import type { Repository } from '../src/repository/repository.ts';
import { prepareTail, storeTail, type WalTail } from '../src/repository/wal-tail.ts';

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
