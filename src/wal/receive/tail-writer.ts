import { HoldfastError } from '../../errors.ts';
import type { WalSegmentName } from '../../postgres/wal-segment.ts';
import { type ClusterIdentity, walHeaderKey } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHeader } from '../../repository/wal-file.ts';
import {
  chainTails,
  listTails,
  planTailStart,
  prepareTail,
  type PreparedTail,
  storeTail,
  TAIL_PIECE_BYTES,
  type WalTail,
} from '../../repository/wal-tail.ts';
import { blake3Hex } from '../../stream/hash.ts';
import { releaseBuffer } from '../../stream/release.ts';
import type { SpoolFile } from './segment-spool.ts';

/** Writes the tails of one segment into any number of repositories. */
export interface TailWriter {
  /**
   * Stores what the file has before `end` and the repository has not. When it resolves, the repository durably holds all
   * of it. May be repeated after a failure. Throws `wal-conflict` where the repository has other bytes of this segment.
   */
  write(repository: Repository, file: SpoolFile, reached: TailReach, signal: AbortSignal): Promise<void>;
}

export interface TailReach {
  /** Offset in the segment. */
  end: number;
  /** Of the newest commit before it, microseconds since 1970. */
  lastCommitTime: bigint | undefined;
}

export function createTailWriter(segment: WalSegmentName, identity: ClusterIdentity): TailWriter {
  const stored = new Map<string, StoredTails>();
  // Repositories usually want the very same tail: it is compressed once.
  let prepared: Promise<PreparedTail> | undefined;
  let preparedFor = '';
  const prepare = async (
    file: SpoolFile,
    from: number,
    to: number,
    commit: bigint | undefined,
  ): Promise<PreparedTail> => {
    const key = `${from}-${to}`;
    if (prepared === undefined || preparedFor !== key) {
      preparedFor = key;
      prepared = file.read(from, to).then(async (bytes) => prepareTail(segment, from, bytes, commit));
    }
    return prepared;
  };
  return {
    async write(repository, file, { end, lastCommitTime }, signal) {
      const state =
        stored.get(repository.name) ?? (await earlierTails(repository, identity, file, segment, end, signal));
      stored.set(repository.name, state);
      state.unproven = await proveTails(repository, segment, state.unproven, file, end);
      const { tails } = state;
      for (let from = planTailStart(tails, end); from < end; from = tails.at(-1)?.to ?? 0) {
        const to = Math.min(end, from + TAIL_PIECE_BYTES);
        // The commit may lie in a later piece; then an earlier piece does not know of it.
        const tail = await storeTail(
          repository,
          identity,
          await prepare(file, from, to, to === end ? lastCommitTime : undefined),
          signal,
        );
        const superseded = tails.filter((one) => one.from >= from);
        tails.splice(tails.length - superseded.length, superseded.length, tail);
        await removeTails(repository, superseded, signal);
      }
    },
  };
}

/** Deletes the tails of a segment that is stored whole. Best effort: a host may write without being allowed to delete. */
export async function dropTails(
  repository: Repository,
  identity: ClusterIdentity,
  segment: WalSegmentName,
  signal: AbortSignal,
): Promise<void> {
  try {
    await removeTails(
      repository,
      await Array.fromAsync(listTails(repository, identity, { segment, signal })),
      signal,
    );
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
  }
}

/**
 * Deletes what a receiver left that was killed between storing a segment whole and dropping its tails. The whole segment
 * is made sure of first: its writer may have died before it was durable. Best effort.
 */
export async function dropLeftTails(
  repository: Repository,
  identity: ClusterIdentity,
  signal: AbortSignal,
): Promise<void> {
  const segments = new Set<WalSegmentName>();
  for await (const { segment } of listTails(repository, identity, { signal })) segments.add(segment);
  for (const segment of segments) {
    try {
      const header = await readWalHeader(repository, identity, segment, signal);
      if (header === undefined) continue;
      await repository.storage.confirm(header.stored.key);
      await repository.storage.confirm(walHeaderKey(identity, segment));
    } catch (error) {
      if (error instanceof HoldfastError && !signal.aborted) continue;
      throw error;
    }
    await dropTails(repository, identity, segment, signal);
  }
}

async function removeTails(
  repository: Repository,
  tails: readonly WalTail[],
  signal: AbortSignal,
): Promise<void> {
  for (const { key } of tails) {
    try {
      await repository.storage.delete(key, { signal });
    } catch (error) {
      if (!(error instanceof HoldfastError)) throw error;
    }
  }
}

/**
 * Compares what is stored of a segment with the first `end` bytes that came of it. Throws `wal-conflict`. To be asked
 * before a segment is stored whole that this receiver did not write all tails of.
 */
export async function assertSameBytes(
  repository: Repository,
  identity: ClusterIdentity,
  segment: WalSegmentName,
  file: Pick<SpoolFile, 'read'>,
  end: number,
  signal: AbortSignal,
): Promise<void> {
  const listed = await Array.fromAsync(listTails(repository, identity, { segment, signal }));
  await proveTails(repository, segment, listed, file, end);
}

interface StoredTails {
  /** In order, without overlap, durable, and the same bytes as in the file. */
  tails: WalTail[];
  /** Of an earlier receiver, reaching further than what has come so far. */
  unproven: WalTail[];
}

/** What an earlier receiver stored of the segment, compared with what the server sent now. */
async function earlierTails(
  repository: Repository,
  identity: ClusterIdentity,
  file: SpoolFile,
  segment: WalSegmentName,
  end: number,
  signal: AbortSignal,
): Promise<StoredTails> {
  const listed = await Array.fromAsync(listTails(repository, identity, { segment, signal }));
  const unproven = await proveTails(repository, segment, listed, file, end);
  const tails: WalTail[] = [];
  let at = 0;
  for (const tail of chainTails(listed)?.tails ?? []) {
    // What begins within another one, or reaches further than what has come so far, is written anew.
    if (tail.from !== at || tail.to > end) break;
    // Its writer may have died between making it visible and making it durable.
    await repository.storage.confirm(tail.key);
    tails.push(tail);
    at = tail.to;
  }
  return { tails, unproven };
}

/** Holds tails to the first `end` bytes of the file; returns those that reach further. */
async function proveTails(
  repository: Repository,
  segment: WalSegmentName,
  tails: readonly WalTail[],
  file: Pick<SpoolFile, 'read'>,
  end: number,
): Promise<WalTail[]> {
  for (const tail of tails) {
    if (tail.to > end) continue;
    const bytes = await file.read(tail.from, tail.to);
    const hash = blake3Hex(bytes);
    releaseBuffer(bytes);
    if (!hash.startsWith(tail.hash)) throw conflict(repository, segment, tail);
  }
  return tails.filter(({ to }) => to > end);
}

function conflict(repository: Repository, segment: WalSegmentName, tail: WalTail): HoldfastError {
  return new HoldfastError(
    'wal-conflict',
    `repository ${repository.name} holds other bytes of ${segment} (${tail.key}) than the server sends; nothing was overwritten`,
    {
      hint: 'two servers write WAL as one cluster: find the copy (a restored clone, an old primary) and stop it',
      context: { segment, repository: repository.name, tail: tail.key },
    },
  );
}
