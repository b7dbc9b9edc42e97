import { type BigIntStats, existsSync } from 'node:fs';
import { lstat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

import { HoldfastError } from '../errors.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { WalHighWaterMark } from '../repository/wal-high-water.ts';
import {
  isWalSegmentName,
  isWalSegmentSize,
  nextSegmentName,
  type WalSegmentName,
} from '../postgres/wal-segment.ts';
import { notePushed, pushOne, type PushOptions, type PushResult } from './push.ts';

/** As many as PostgreSQL's archiver picks at a time (NUM_FILES_PER_DIRECTORY_SCAN in pgarch.c, from 15 on). */
const AHEAD_MAX = 64;
/** PostgreSQL waits for its own file all the while, so no more are begun after this. */
const BEGIN_WITHIN_MS = 4000;
/** Segments held in memory at once, the one asked for included: each costs up to about twice its size. */
const IN_FLIGHT_BYTES = 48 * 1024 * 1024;
const IN_FLIGHT_MAX = 4;

export interface AheadOptions extends PushOptions {
  /** Default true. */
  lookAhead?: boolean;
  /** By a clock that does not jump, milliseconds. */
  elapsedMs?: () => number;
}

/** A file that was stored before PostgreSQL asked for it. */
export interface PushedAhead {
  path: string;
  /** What `fileFacts` said of it before it was read and after it was stored. */
  facts: string;
}

/**
 * As `pushWal`, and then some: where PostgreSQL has the next segments of this timeline ready as well, they are stored at
 * the same time, committed in their order, none before the file asked for. Whatever goes wrong with one of them only ends
 * the looking ahead. Tells which of them every required repository has confirmed.
 */
export async function pushWithAhead(
  options: AheadOptions,
): Promise<{ result: PushResult; ahead: PushedAhead[] }> {
  const { path, elapsedMs = () => performance.now() } = options;
  const { names, inFlight } = options.lookAhead === false ? NOTHING : await planAhead(path);
  const identified = Promise.withResolvers<ClusterIdentity>();
  const own = pushOne(options, { identified: identified.resolve });
  // Awaited at the end; a failure before that must not count as unhandled.
  own.catch(identified.reject);
  identified.promise.catch(() => undefined);
  const run: Run = { options, stored: [], failed: false };
  if (names.length > 0) {
    const giveUpAt = elapsedMs() + BEGIN_WITHIN_MS;
    const identity = await identified.promise.catch(() => undefined);
    const running = new Set<Promise<void>>();
    const watch = (pushing: Promise<unknown>): void => {
      const over = pushing.then(
        () => void running.delete(over),
        () => void running.delete(over),
      );
      running.add(over);
    };
    let before: Promise<unknown> = own;
    watch(own);
    for (const name of names) {
      while (running.size >= inFlight) await Promise.race(running);
      if (identity === undefined || run.failed || elapsedMs() > giveUpAt) break;
      before = pushNext(run, join(dirname(path), name), identity, before);
      watch(before);
    }
    await Promise.all(running);
  }
  const { result, mark } = await own;
  const { stored } = run;
  await notePushed(options, result.identity, latestMark([mark, ...stored.map((one) => one.mark)]));
  return { result, ahead: stored.map(({ pushed }) => pushed) };
}

interface Run {
  options: AheadOptions;
  stored: { pushed: PushedAhead; mark: WalHighWaterMark | undefined }[];
  failed: boolean;
}

async function pushNext(
  run: Run,
  path: string,
  identity: ClusterIdentity,
  commitAfter: Promise<unknown>,
): Promise<void> {
  try {
    const before = await factsOf(path);
    const { mark } = await pushOne({ ...run.options, path }, { identity, commitAfter });
    if ((await factsOf(path)) !== before) {
      throw new HoldfastError('wal-invalid', `${path} changed while it was stored`);
    }
    run.stored.push({ pushed: { path, facts: before }, mark });
  } catch (error) {
    run.failed = true;
    throw error;
  }
}

interface AheadPlan {
  names: readonly WalSegmentName[];
  /** Files stored at once, the one asked for included. */
  inFlight: number;
}

const NOTHING: AheadPlan = { names: [], inFlight: 1 };

/**
 * Which segments follow in the same directory that PostgreSQL has marked as ready, without a hole; none where `path` is
 * not in the `pg_wal` of a data directory, or is no segment that is marked so itself.
 */
async function planAhead(path: string): Promise<AheadPlan> {
  const name = basename(path);
  const ready = (segment: string): boolean =>
    existsSync(join(dirname(path), 'archive_status', `${segment}.ready`));
  const names: WalSegmentName[] = [];
  if (!isWalSegmentName(name) || !ready(name)) return NOTHING;
  const size = await lstat(path).then(
    (info) => info.size,
    () => 0,
  );
  if (!isWalSegmentSize(size)) return NOTHING;
  for (let next = nextSegmentName(name, size); names.length < AHEAD_MAX && ready(next);) {
    names.push(next);
    next = nextSegmentName(next, size);
  }
  return { names, inFlight: Math.min(Math.max(Math.floor(IN_FLIGHT_BYTES / size), 2), IN_FLIGHT_MAX) };
}

/**
 * What tells one content of a file from every other: the same text as `stat -c '%d.%i %f %s %.9Y %.9Z'` of GNU coreutils
 * gives. A file that is renamed, recycled, written to or replaced has another one.
 */
export function fileFacts({ dev, ino, mode, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev}.${ino} ${mode.toString(16)} ${size} ${seconds(mtimeNs)} ${seconds(ctimeNs)}`;
}

async function factsOf(path: string): Promise<string> {
  return fileFacts(await lstat(path, { bigint: true }));
}

function seconds(nanoseconds: bigint): string {
  return `${nanoseconds / 1_000_000_000n}.${String(nanoseconds % 1_000_000_000n).padStart(9, '0')}`;
}

/** The furthest, with the newest commit of all. */
function latestMark(marks: readonly (WalHighWaterMark | undefined)[]): WalHighWaterMark | undefined {
  return marks.reduce<WalHighWaterMark | undefined>(
    (latest, mark) =>
      mark === undefined
        ? latest
        : { ...mark, lastCommitTime: mark.lastCommitTime ?? latest?.lastCommitTime ?? null },
    undefined,
  );
}
