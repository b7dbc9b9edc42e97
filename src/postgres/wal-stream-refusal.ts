import { HoldfastError } from '../errors.ts';
import type { Lsn } from './lsn.ts';
import type { ServerSystem } from './replication.ts';
import type { TimelineHistory, TimelineId } from './timeline.ts';

/** Why a server does not stream what it was asked for. */
export type WalStreamRefusal =
  /** Somebody else streams from the slot. */
  | 'slot-active'
  | 'slot-missing'
  /** Invalidated: it kept more than the server allows, or was idle for too long. */
  | 'slot-lost'
  | 'slot-logical'
  /** The server no longer has the WAL. */
  | 'wal-removed'
  /** The server's WAL ends before the position: it is not the server, or not in the state, it was before. */
  | 'ahead-of-server'
  /** The server's history does not contain the position on this timeline: it took another branch, or lags. */
  | 'not-in-history';

const HINTS: Record<WalStreamRefusal, string> = {
  'slot-active': 'end the other receiver, or give each receiver a slot of its own',
  'slot-missing': 'create the slot anew; the server may have removed WAL since the old one was dropped',
  'slot-lost': 'drop the slot and create it anew; raise max_slot_wal_keep_size, then take a base backup',
  'slot-logical': 'choose another name for the slot: this one belongs to logical replication',
  'wal-removed': 'look for the segment in an archive; without it, only a new base backup closes the gap',
  'ahead-of-server':
    'check where the address leads: a standby that lags, or a server that was restored to an earlier point',
  'not-in-history':
    'check where the address leads: after a failover the old server may still run on another branch',
};

const OF_SQL_STATE: ReadonlyMap<string, WalStreamRefusal> = new Map([
  ['55006', 'slot-active'],
  ['42704', 'slot-missing'],
  ['58P01', 'wal-removed'],
]);

/** The reason that `streamWal` found, undefined for every other error. */
export function walStreamRefusal(error: unknown): WalStreamRefusal | undefined {
  const reason = error instanceof HoldfastError ? error.context['refusal'] : undefined;
  return typeof reason === 'string' && isRefusal(reason) ? reason : undefined;
}

/** What `findRefusal` may ask the server that refused. */
export interface RefusalWitness {
  identifySystem(): Promise<ServerSystem>;
  timelineHistory(timeline: TimelineId): Promise<{ history: TimelineHistory }>;
  readSlot(name: string): Promise<unknown>;
}

/**
 * Why START_REPLICATION failed. The SQLSTATE does not tell everything, and messages are in the server's language: the
 * rest is found by asking.
 */
export async function findRefusal(
  error: unknown,
  asked: { slot?: string; timeline: TimelineId; start: Lsn },
  server: RefusalWitness,
): Promise<WalStreamRefusal | undefined> {
  const state = error instanceof HoldfastError ? String(error.context['sqlState']) : '';
  const told = OF_SQL_STATE.get(state);
  if (told !== undefined) return told;
  if (state === '55000') {
    try {
      // The server answers this for physical slots only.
      await server.readSlot(asked.slot ?? '');
      return 'slot-lost';
    } catch {
      return 'slot-logical';
    }
  }
  if (state !== 'XX000') return undefined;
  try {
    const system = await server.identifySystem();
    if (system.timeline <= asked.timeline) return judgeStart(asked, system, undefined);
    return judgeStart(asked, system, (await server.timelineHistory(system.timeline)).history);
  } catch {
    // The server's own words must do.
    return undefined;
  }
}

/** Whether a position can be streamed by a server at `system`, whose history is given where it is on a later timeline. */
export function judgeStart(
  asked: { timeline: TimelineId; start: Lsn },
  system: { timeline: TimelineId; position: Lsn },
  history: TimelineHistory | undefined,
): 'ahead-of-server' | 'not-in-history' | undefined {
  if (asked.timeline === system.timeline) {
    return asked.start > system.position ? 'ahead-of-server' : undefined;
  }
  const end = history?.entries.find(({ timeline }) => timeline === asked.timeline)?.end;
  return end === undefined || asked.start > end ? 'not-in-history' : undefined;
}

/** The same failure, with what it means. */
export function explainRefusal(error: unknown, refusal: WalStreamRefusal | undefined): unknown {
  if (refusal === undefined || !(error instanceof HoldfastError)) return error;
  return new HoldfastError(error.code, error.message, {
    hint: HINTS[refusal],
    context: { ...error.context, refusal },
    cause: error,
  });
}

function isRefusal(text: string): text is WalStreamRefusal {
  return Object.hasOwn(HINTS, text);
}
