import type { TimelineId } from '../../postgres/timeline.ts';
import { parseWalSegmentName } from '../../postgres/wal-segment.ts';
import { type ClusterIdentity, walHeaderKey } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { listTails } from '../../repository/wal-tail.ts';
import type { StoredReach } from './plan-start.ts';

/**
 * Reads how far a repository's WAL reaches, by its listings alone. A hole before the newest segment is not looked for:
 * it is not the receiver's to fill. What is told is durable: writers commit in order, so only the newest file of a
 * timeline can be visible and not yet durable, which is mended here. Throws where a listing fails, never takes that for
 * an empty repository.
 */
export async function readStoredReach(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  signal?: AbortSignal,
): Promise<StoredReach> {
  const options = { ...(signal && { signal }) };
  const newest = new Map<TimelineId, string>();
  for await (const { kind, name, timeline } of listWal(repository, identity, options)) {
    if (kind === 'segment') newest.set(timeline, name);
  }
  const next = new Map<TimelineId, bigint>();
  for (const [timeline, name] of newest) {
    await repository.storage.confirm(walHeaderKey(identity, name));
    next.set(timeline, parseWalSegmentName(name, segmentSize).segmentNumber + 1n);
  }
  for await (const { segment, timeline } of listTails(repository, identity, options)) {
    const { segmentNumber } = parseWalSegmentName(segment, segmentSize);
    // A tail is stored only when everything before its segment is, or behind a gap that was accepted.
    if (segmentNumber > (next.get(timeline) ?? -1n)) next.set(timeline, segmentNumber);
  }
  return { next };
}
