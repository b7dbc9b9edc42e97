import type { Clock } from '../clock.ts';
import { HoldfastError } from '../errors.ts';
import { formatLsn, type Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { segmentOfLsn, walSegmentName, type WalSegmentName } from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { verifyStored } from '../repository/sealed-object.ts';
import { readWalHeader } from '../repository/wal-file.ts';

/** The segments that replay needs to get from one LSN to another, in order. The end is exclusive. */
export function segmentsBetween(
  timeline: TimelineId,
  start: Lsn,
  end: Lsn,
  segmentSize: number,
): WalSegmentName[] {
  const names: WalSegmentName[] = [];
  const last = segmentOfLsn((end > start ? end - 1n : end) as Lsn, segmentSize);
  for (let number = segmentOfLsn(start, segmentSize); number <= last; number += 1n) {
    names.push(walSegmentName(timeline, number, segmentSize));
  }
  return names;
}

export interface AwaitWalOptions {
  repository: Repository;
  identity: ClusterIdentity;
  segments: readonly WalSegmentName[];
  stopLsn: Lsn;
  clock: Clock;
  /** How long the newest of them may take to arrive. */
  timeoutMs: number;
  /** Told once, when there is something to wait for. */
  waiting: (missing: WalSegmentName) => Promise<void>;
  signal?: AbortSignal;
}

const FIRST_PAUSE_MS = 20;
const LONGEST_PAUSE_MS = 1000;

/**
 * Waits until every segment is in the repository and reads each back against its recorded hash. Throws
 * `wal-not-archived` when one does not come in time: then the backup cannot be restored and must not be committed. Tails
 * do not count: a host without the key cannot verify them, and they go when their segment is complete. The caller ends
 * the segment that holds the backup's stop, so that nothing is waited for in vain.
 */
export async function awaitWal(options: AwaitWalOptions): Promise<void> {
  const { repository, identity, clock, signal } = options;
  const deadline = clock.monotonicMs() + options.timeoutMs;
  let told = false;
  for (const segment of options.segments) {
    for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS)) {
      const header = await readWalHeader(repository, identity, segment, signal);
      if (header !== undefined) {
        await verifyStored(repository.storage, header.stored, signal);
        break;
      }
      if (clock.monotonicMs() >= deadline) throw notArchived(options, segment);
      if (!told) await options.waiting(segment);
      told = true;
      await clock.sleep(pause, signal);
    }
  }
}

function notArchived(options: AwaitWalOptions, segment: WalSegmentName): HoldfastError {
  const seconds = Math.round(options.timeoutMs / 1000);
  return new HoldfastError(
    'wal-not-archived',
    `wal segment ${segment}, which the backup needs to be consistent at ${formatLsn(options.stopLsn)}, did not arrive in repository ${options.repository.name} within ${seconds} s`,
    {
      hint: `"holdfast wal status ${options.identity.cluster}" shows why WAL does not arrive: the receiver, or what pg_stat_archiver and the server's log say of archive_command`,
      context: { segment, repository: options.repository.name },
    },
  );
}
