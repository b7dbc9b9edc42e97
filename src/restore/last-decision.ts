import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { WalDecoder } from '../postgres/wal-decoder.ts';
import { segmentStart } from '../postgres/wal-segment.ts';
import { type WalArchive, isDamage, isKeyProblem } from './wal-archive.ts';

/**
 * The end of the last record in a segment that something a user asks for depends on: a transaction's end or a restore
 * point; the segment's start where it has none. Undefined where it cannot be read, also for want of a key.
 */
export async function lastDecisionIn(
  archive: WalArchive,
  timeline: TimelineId,
  segment: bigint,
): Promise<Lsn | undefined> {
  const start = segmentStart(segment, archive.segmentSize);
  const decoder = new WalDecoder({
    start,
    segmentSize: archive.segmentSize,
    kinds: ['commit', 'commit-prepared', 'abort', 'abort-prepared', 'restore-point'],
  });
  let last = start;
  try {
    for await (const chunk of archive.open(timeline, segment)) {
      for (const record of decoder.push(chunk)) last = record.endLsn;
    }
  } catch (error) {
    if (!isDamage(error) && !isKeyProblem(error)) throw error;
    return undefined;
  }
  return last;
}
