import type { TimelineId } from '../../postgres/timeline.ts';
import { parseWalSegmentName } from '../../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { listTails } from '../../repository/wal-tail.ts';
import type { StoredReach } from './plan-start.ts';

/**
 * Reads how far a repository's WAL reaches, by its listings alone. A hole before the newest segment is not looked for:
 * it is not the receiver's to fill. Throws where a listing fails, never takes that for an empty repository.
 */
export async function readStoredReach(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  signal?: AbortSignal,
): Promise<StoredReach> {
  const options = { ...(signal && { signal }) };
  const next = new Map<TimelineId, bigint>();
  for await (const { kind, name, timeline } of listWal(repository, identity, options)) {
    if (kind !== 'segment') continue;
    next.set(timeline, parseWalSegmentName(name, segmentSize).segmentNumber + 1n);
  }
  const tailOnly = new Map<TimelineId, bigint>();
  for await (const { segment, timeline } of listTails(repository, identity, options)) {
    if (next.has(timeline) || tailOnly.has(timeline)) continue;
    tailOnly.set(timeline, parseWalSegmentName(segment, segmentSize).segmentNumber);
  }
  return { next: new Map([...next, ...tailOnly]) };
}
