import { HoldfastError } from '../../errors.ts';
import { connect } from '../../postgres/connection.ts';
import { inspectWal } from '../../postgres/inspect-wal.ts';
import type { Lsn } from '../../postgres/lsn.ts';
import { connectReplication } from '../../postgres/replication.ts';
import { formatMicroseconds } from '../../postgres/timestamp.ts';
import type { OpenSource, SourceCandidate } from './choose-source.ts';

type Say = (text: string) => void;

/** Makes sure that the slot is there and holds WAL. One that lost its WAL holds nothing any more and is made anew. */
export async function ensureSlot(source: OpenSource, slot: string, say: Say): Promise<void> {
  const { replication } = source;
  const found = await replication.readSlot(slot);
  if (found?.restartLsn !== undefined) return;
  if (found === undefined) {
    await createSlot(source, slot);
    return;
  }
  await recreateSlot(source, slot, say);
}

/** Drops the slot, where it is there, and makes it anew. Returns the position from which it holds WAL. */
export async function recreateSlot(source: OpenSource, slot: string, say: Say): Promise<Lsn> {
  const { replication } = source;
  say(`the replication slot ${slot} on ${source.server} has lost its WAL: it is made anew`);
  try {
    await replication.dropSlot(slot);
  } catch (error) {
    if (!hasState(error, '42704')) throw error;
  }
  await createSlot(source, slot);
  return (await replication.readSlot(slot))?.restartLsn ?? source.position;
}

async function createSlot(source: OpenSource, slot: string): Promise<void> {
  try {
    await source.replication.createPhysicalSlot(slot);
  } catch (error) {
    // Another receiver was quicker; the stream will tell whether it uses it.
    if (hasState(error, '42710')) return;
    if (hasState(error, '53400')) {
      throw new HoldfastError('server-setting', `${source.server} has no room for a replication slot`, {
        hint: 'raise max_replication_slots and restart the server, or drop a slot that nobody uses (pg_replication_slots)',
        cause: error,
      });
    }
    throw error;
  }
}

/** Who streams from a slot, for messages. Never throws. */
export async function describeHolder(url: string, slot: string, signal: AbortSignal): Promise<string> {
  try {
    await using connection = await connect(url, { signal });
    const { holder, slot: facts } = await inspectWal(connection, slot);
    if (holder === undefined) {
      return facts?.activePid === undefined ? 'another receiver' : `server process ${facts.activePid}`;
    }
    const { pid, applicationName, user, clientAddress, startedAt } = holder;
    const since = startedAt === undefined ? '' : `, since ${formatMicroseconds(startedAt)}`;
    return `${applicationName} as ${user} from ${clientAddress ?? 'the same host'} (server process ${pid}${since})`;
  } catch (error) {
    return error instanceof Error && !signal.aborted ? 'another receiver' : 'an unknown receiver';
  }
}

export interface ReleaseElsewhereOptions {
  source: OpenSource;
  others: readonly SourceCandidate[];
  slot: string;
  signal: AbortSignal;
  say: Say;
}

/**
 * After a failover the old primary, a standby now, still has our slot, which nobody will ever advance: it would keep WAL
 * until its disk is full. Dropped where nobody uses it; on another primary it is only told of. Never rejects.
 */
export async function releaseElsewhere(options: ReleaseElsewhereOptions): Promise<void> {
  const { source, others, slot, signal, say } = options;
  for (const other of others) {
    try {
      await using replication = await connectReplication(other.url, {
        applicationName: `${slot}_probe`,
        deadlineMs: 10_000,
        signal,
      });
      if ((await replication.readSlot(slot)) === undefined) continue;
      if (!other.inRecovery || source.inRecovery) {
        say(
          `${other.server} has a slot ${slot}, too, which keeps WAL there: "holdfast wal release" drops it when that server is not used any more`,
        );
        continue;
      }
      await replication.dropSlot(slot);
      say(`dropped the slot ${slot} that was left on the standby ${other.server}`);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
    }
  }
}

function hasState(error: unknown, state: string): boolean {
  return error instanceof HoldfastError && error.context['sqlState'] === state;
}
