import { type Lsn, lsnOf, parseLsn } from '../postgres/lsn.ts';
import { type TimelineId, timelineOf } from '../postgres/timeline.ts';
import {
  parseWalSegmentName,
  segmentOfLsn,
  segmentStart,
  walSegmentName,
  type WalSegmentName,
} from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader } from '../repository/wal-file.ts';
import { listWal } from '../repository/wal-listing.ts';
import { chainTails, listTails, type WalTail, type WalTailChain } from '../repository/wal-tail.ts';
import type { WalSample } from './forecast.ts';
import type { StoredEnd } from './recovery-point.ts';

/** The newest WAL of a history in a repository, from listings and a few headers. */
export interface NewestWal extends StoredEnd {
  /** The last complete segment of the timeline. */
  segment: WalSegmentName | undefined;
  /** Bytes of the segment after it that are stored as tails. */
  tailBytes: number;
  /** Commits of the last segments, oldest first. */
  samples: readonly WalSample[];
}

export interface FindNewestWalOptions {
  segmentSize: number;
  /** Where the server is, so that only the end of a long archive is listed. */
  near?: { timeline: TimelineId; lsn: Lsn };
  signal?: AbortSignal;
}

/** How far before the server's position the listing begins. */
const NEAR_SEGMENTS = 256n;
const SAMPLE_SEGMENTS = 12;
/** How many segments are looked at, backwards, for the last commit. */
const LOOK_BACK_SEGMENTS = 64;

/**
 * Where the WAL of the newest timeline in the repository ends: its last complete segment, and what its tails add to that.
 * Holes before it are not looked for. Undefined where there is no WAL at all. Needs no key.
 */
export async function findNewestWal(
  repository: Repository,
  identity: ClusterIdentity,
  options: FindNewestWalOptions,
): Promise<NewestWal | undefined> {
  const { segmentSize, near, signal } = options;
  const last =
    (near && (await lastSegment(repository, identity, startOfListing(near, segmentSize), signal))) ??
    (await lastSegment(repository, identity, undefined, signal));
  const chain = await newestChain(repository, identity, last, signal);
  const parsed = last === undefined ? undefined : parseWalSegmentName(last, segmentSize);
  const timeline = chain?.timeline ?? parsed?.timeline;
  if (timeline === undefined) return undefined;
  const segment = parsed?.timeline === timeline ? last : undefined;
  const notes = last === undefined ? [] : await readNotes(repository, identity, last, segmentSize, signal);
  const lsn =
    chain === undefined
      ? segmentStart((parsed?.segmentNumber ?? 0n) + 1n, segmentSize)
      : endOfChain(chain, segmentSize);
  return {
    timeline,
    lsn,
    lastCommitTime: chain?.lastCommitTime ?? notes.at(-1)?.at,
    segment,
    tailBytes: chain?.end ?? 0,
    samples: notes.slice(-SAMPLE_SEGMENTS),
  };
}

function startOfListing(near: { timeline: TimelineId; lsn: Lsn }, segmentSize: number): string {
  const at = segmentOfLsn(near.lsn, segmentSize) - NEAR_SEGMENTS;
  return walSegmentName(near.timeline, at < 0n ? 0n : at, segmentSize);
}

/** The last one in the order of names: of the highest timeline. */
async function lastSegment(
  repository: Repository,
  identity: ClusterIdentity,
  from: string | undefined,
  signal: AbortSignal | undefined,
): Promise<WalSegmentName | undefined> {
  let last: WalSegmentName | undefined;
  const listing = listWal(repository, identity, {
    ...(from !== undefined && { from }),
    ...(signal && { signal }),
  });
  for await (const { kind, name } of listing) if (kind === 'segment') last = name as WalSegmentName;
  return last;
}

/** The newest tails behind the last segment (behind a gap too, which is not looked for here), or those of a newer timeline that has no complete segment yet. */
async function newestChain(
  repository: Repository,
  identity: ClusterIdentity,
  last: WalSegmentName | undefined,
  signal: AbortSignal | undefined,
): Promise<WalTailChain | undefined> {
  let name: WalSegmentName | undefined;
  let tails: WalTail[] = [];
  for await (const tail of listTails(repository, identity, { ...(signal && { signal }) })) {
    if (last !== undefined && tail.segment <= last) continue;
    if (tail.segment !== name) [name, tails] = [tail.segment, []];
    tails.push(tail);
  }
  if (name === undefined) return undefined;
  return chainTails(tails);
}

function endOfChain(chain: WalTailChain, segmentSize: number): Lsn {
  const { segmentNumber } = parseWalSegmentName(chain.segment, segmentSize);
  return lsnOf(segmentStart(segmentNumber, segmentSize) + BigInt(chain.end));
}

/** The last commits of the segments up to `last`, of its timeline. Segments that cannot be read are passed over. */
async function readNotes(
  repository: Repository,
  identity: ClusterIdentity,
  last: WalSegmentName,
  segmentSize: number,
  signal: AbortSignal | undefined,
): Promise<WalSample[]> {
  const { timeline, segmentNumber } = parseWalSegmentName(last, segmentSize);
  const notes: WalSample[] = [];
  for (let looked = 0; looked < LOOK_BACK_SEGMENTS && notes.length === 0; looked += SAMPLE_SEGMENTS) {
    const batch = Array.from({ length: SAMPLE_SEGMENTS }, (_, at) => segmentNumber - BigInt(looked + at));
    const found = await Promise.all(
      batch
        .filter((number) => number >= 0n)
        .map(async (number) => readNote(repository, identity, timeline, number, segmentSize, signal)),
    );
    notes.push(...found.filter((note) => note !== undefined).reverse());
  }
  return notes;
}

async function readNote(
  repository: Repository,
  identity: ClusterIdentity,
  timeline: TimelineId,
  segmentNumber: bigint,
  segmentSize: number,
  signal: AbortSignal | undefined,
): Promise<WalSample | undefined> {
  const name = walSegmentName(timelineOf(timeline), segmentNumber, segmentSize);
  const header = await readWalHeader(repository, identity, name, signal).catch(() => undefined);
  signal?.throwIfAborted();
  const { lastCommitLsn, lastCommitTime } = header?.wal ?? {};
  if (typeof lastCommitLsn !== 'string' || typeof lastCommitTime !== 'string') return undefined;
  const at = microsecondsOf(lastCommitTime);
  return at === undefined ? undefined : { lsn: parseLsn(lastCommitLsn), at };
}

/** Of RFC 3339 in UTC with microseconds, as summaries are written. */
function microsecondsOf(text: string): bigint | undefined {
  const match = /^(.{19})\.(\d{6})Z$/.exec(text);
  const ms = match === null ? Number.NaN : Date.parse(`${match[1]}Z`);
  return Number.isNaN(ms) ? undefined : BigInt(ms) * 1000n + BigInt(match?.[2] ?? 0);
}
