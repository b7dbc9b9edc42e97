import { randomBytes } from 'node:crypto';

import { formatLsn, type Lsn, parseLsn } from '../postgres/lsn.ts';
import { type TimelineId, formatTimeline, timelineOf } from '../postgres/timeline.ts';
import { encodeClearObject, readClearObject } from './clear-object.ts';
import { type ClusterIdentity, FORMAT_VERSION, walGapPrefix } from './layout.ts';
import type { Repository } from './repository.ts';

/** Why WAL can never arrive, as far as whoever noticed knows. */
export type WalGapCause =
  /** The server removed the slot's WAL (`max_slot_wal_keep_size`), or the slot was dropped or invalidated. */
  | 'slot-lost'
  /** The server no longer has it and no slot held it. */
  | 'removed-by-server';

/** WAL of a timeline that is lost for good: noted when it is noticed, so that it can be explained later. */
export interface WalGapNote {
  timeline: TimelineId;
  fromLsn: Lsn;
  /** Exclusive: where the server's WAL begins again. */
  toLsn: Lsn;
  cause: WalGapCause;
  detail: string;
  noticedAt: string;
  host: string;
}

const NOTE_MAX_BYTES = 64 * 1024;

/** Writes a note down; durable when it resolves. The same gap noted twice gives two notes. */
export async function storeGapNote(
  repository: Repository,
  identity: ClusterIdentity,
  note: WalGapNote,
  signal?: AbortSignal,
): Promise<void> {
  const key = `${walGapPrefix(identity)}${formatTimeline(note.timeline)}/${randomBytes(8).toString('hex')}.json`;
  const object = {
    format: FORMAT_VERSION,
    kind: 'wal-gap',
    ...identity,
    ...note,
    fromLsn: formatLsn(note.fromLsn),
    toLsn: formatLsn(note.toLsn),
  };
  await repository.storage.put(key, encodeClearObject(object), { ifAbsent: true, ...(signal && { signal }) });
}

/** Every note of a history. Notes only explain: one that cannot be understood is passed over. */
export async function* listGapNotes(
  repository: Repository,
  identity: ClusterIdentity,
  signal?: AbortSignal,
): AsyncGenerator<WalGapNote> {
  const { storage } = repository;
  for await (const { key } of storage.list(walGapPrefix(identity), { ...(signal && { signal }) })) {
    const note = await readNote(repository, key, signal);
    if (note !== undefined) yield note;
  }
}

async function readNote(
  repository: Repository,
  key: string,
  signal: AbortSignal | undefined,
): Promise<WalGapNote | undefined> {
  try {
    const parsed = await readClearObject(repository.storage, key, NOTE_MAX_BYTES, signal);
    if (parsed === undefined || parsed['kind'] !== 'wal-gap') return undefined;
    const { timeline, fromLsn, toLsn, cause, detail, noticedAt, host } = parsed;
    if (cause !== 'slot-lost' && cause !== 'removed-by-server') return undefined;
    return {
      timeline: timelineOf(Number(timeline)),
      fromLsn: parseLsn(String(fromLsn)),
      toLsn: parseLsn(String(toLsn)),
      cause,
      detail: String(detail),
      noticedAt: String(noticedAt),
      host: String(host),
    };
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof Error) return undefined;
    throw error;
  }
}
