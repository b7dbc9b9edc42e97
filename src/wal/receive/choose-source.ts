import { HoldfastError, errorText } from '../../errors.ts';
import type { Lsn } from '../../postgres/lsn.ts';
import { connectReplication, type ReplicationConnection } from '../../postgres/replication.ts';
import type { SystemIdentifier } from '../../postgres/system-identifier.ts';
import type { TimelineId } from '../../postgres/timeline.ts';

/** A server that could be streamed from. */
export interface SourceCandidate {
  url: string;
  /** `host:port`. */
  server: string;
  inRecovery: boolean;
  systemIdentifier: SystemIdentifier;
  timeline: TimelineId;
  position: Lsn;
}

export interface OpenSource extends SourceCandidate {
  replication: ReplicationConnection;
}

export interface SourceOptions {
  urls: readonly string[];
  applicationName: string;
  /** Of each connection attempt. */
  deadlineMs: number;
  stallMs: number;
  signal: AbortSignal;
}

/**
 * Asks every configured server what it is and keeps the connection to the one to stream from (see `preferredSource`). Where none answers the
 * first error is thrown; `connection-failed` is worth another try.
 */
export async function openSource(
  options: SourceOptions,
): Promise<{ source: OpenSource; others: SourceCandidate[] }> {
  const results = await Promise.allSettled(options.urls.map(async (url) => open(url, options)));
  const opened = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const chosen = preferredSource(opened);
  await Promise.all(
    opened.filter((one) => one !== chosen).map(async ({ replication }) => replication.close()),
  );
  options.signal.throwIfAborted();
  if (chosen === undefined) throw worstOf(results);
  return { source: chosen, others: opened.filter((one) => one !== chosen) };
}

/**
 * The newest timeline (a primary on an older one was left behind by a failover), on it a primary before a standby, then
 * the furthest position. Two primaries on one timeline cannot be told apart: `wal-conflict`. Servers of different clusters
 * are `cluster-mismatch`. Pure.
 */
export function preferredSource<Candidate extends SourceCandidate>(
  candidates: readonly Candidate[],
): Candidate | undefined {
  const [best, next] = [...candidates].sort((a, b) => {
    if (a.timeline !== b.timeline) return b.timeline - a.timeline;
    if (a.inRecovery !== b.inRecovery) return a.inRecovery ? 1 : -1;
    return a.position === b.position ? 0 : a.position < b.position ? 1 : -1;
  });
  if (best === undefined) return undefined;
  const foreign = candidates.find((one) => one.systemIdentifier !== best.systemIdentifier);
  if (foreign !== undefined) {
    throw new HoldfastError(
      'cluster-mismatch',
      `${foreign.server} has system identifier ${foreign.systemIdentifier}, ${best.server} has ${best.systemIdentifier}: they are different clusters`,
      { hint: 'list a primary and its standbys only; give every other cluster a name of its own' },
    );
  }
  if (next !== undefined && !next.inRecovery && next.timeline === best.timeline) {
    throw new HoldfastError(
      'wal-conflict',
      `${best.server} and ${next.server} are both primaries on timeline ${best.timeline}: nobody can tell whose WAL counts`,
      { hint: 'stop the one that is no longer in use, or take it out of the list of servers' },
    );
  }
  return best;
}

async function open(url: string, options: SourceOptions): Promise<OpenSource> {
  const { applicationName, deadlineMs, stallMs, signal } = options;
  const replication = await connectReplication(url, { applicationName, deadlineMs, stallMs, signal });
  try {
    const system = await replication.identifySystem();
    const inRecovery = (await replication.show('in_hot_standby')) === 'on';
    return { url, server: replication.server, inRecovery, replication, ...system };
  } catch (error) {
    await replication.close();
    throw error;
  }
}

/** One that waiting may mend, if there is any: the other servers may just be down. */
function worstOf(results: readonly PromiseSettledResult<unknown>[]): Error {
  const errors = results.flatMap((result) =>
    result.status === 'rejected' ? [result.reason as unknown] : [],
  );
  const chosen = errors.find((error) => error instanceof HoldfastError && error.retryable) ?? errors[0];
  return chosen instanceof Error ? chosen : new Error(errorText(chosen));
}
