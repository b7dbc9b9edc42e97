import { randomBytes } from 'node:crypto';

import { HoldfastError, errorText } from '../errors.ts';
import { sealKindOf } from '../seal/sealers.ts';
import { type TimelineId, formatTimeline, parseTimeline } from '../postgres/timeline.ts';
import { isWalSegmentName, type WalSegmentName } from '../postgres/wal-segment.ts';
import { blake3Hex } from '../stream/hash.ts';
import { decompressFrame } from '../stream/zstd.ts';
import {
  type ClusterIdentity,
  walTailPrefix,
  walTailSegmentPrefix,
  walTailTimelinePrefix,
} from './layout.ts';
import type { Repository } from './repository.ts';
import { collect, putSealed } from './sealed-object.ts';
import { compressProven } from './wal-frames.ts';

/** One tail is one zstd frame, held in memory whole: what may be read at most. */
const TAIL_MAX_BYTES = 16 * 1024 * 1024;

/** What is written at most: longer stretches are cut. */
export const TAIL_PIECE_BYTES = 4 * 1024 * 1024;

/** Digits of the BLAKE3 that a tail's key carries: 128 bits. */
const HASH_DIGITS = 32;

const TAIL_NAME =
  /^([0-9A-F]{24})-([0-9a-f]{8})-([0-9a-f]{8})-(none|\d{1,16})-([0-9a-f]{32})-[0-9a-f]{8}\.zst(?:\.age|\.gpg)?$/;

/**
 * An immutable object with some bytes of a segment that is not complete yet. Everything but the bytes is in its key, so
 * that a listing tells how far the WAL reaches without a key.
 */
export interface WalTail {
  timeline: TimelineId;
  segment: WalSegmentName;
  /** Offsets in the segment, the end exclusive. */
  from: number;
  to: number;
  /** Of the newest commit in the segment before `to`, microseconds since 1970; undefined where there is none. */
  lastCommitTime: bigint | undefined;
  /** BLAKE3-128 of the plain bytes, hexadecimal. */
  hash: string;
  key: string;
  /** As it lies in the store. */
  storedBytes: number;
}

/** What the tails of one segment give together: its bytes from the first one on, without a hole. */
export interface WalTailChain {
  timeline: TimelineId;
  segment: WalSegmentName;
  /** How many of the segment's bytes there are. */
  end: number;
  lastCommitTime: bigint | undefined;
  storedBytes: number;
  /** In order; each begins at or before the end of the one before it. */
  tails: readonly WalTail[];
}

/** Some bytes of a segment, ready to be stored in any number of repositories. */
export interface PreparedTail {
  segment: WalSegmentName;
  from: number;
  to: number;
  lastCommitTime: bigint | undefined;
  hash: string;
  frame: Buffer;
}

/**
 * Compresses bytes of a segment and proves that they decompress to what went in (`checksum-mismatch` otherwise). At most
 * `TAIL_MAX_BYTES`.
 */
export async function prepareTail(
  segment: WalSegmentName,
  from: number,
  bytes: Buffer,
  lastCommitTime: bigint | undefined,
): Promise<PreparedTail> {
  if (bytes.length === 0 || bytes.length > TAIL_MAX_BYTES) {
    throw new HoldfastError('assertion', `a tail cannot have ${bytes.length} bytes`);
  }
  const { bytes: frame } = await compressProven(bytes);
  const hash = blake3Hex(bytes).slice(0, HASH_DIGITS);
  return { segment, from, to: from + bytes.length, lastCommitTime, hash, frame };
}

/** Stores a tail. When it resolves, the object is durable and whole; a failure leaves nothing. May be repeated. */
export async function storeTail(
  repository: Repository,
  identity: ClusterIdentity,
  prepared: PreparedTail,
  signal?: AbortSignal,
): Promise<WalTail> {
  const { segment, from, to, lastCommitTime, hash, frame } = prepared;
  const name = [hex(from), hex(to), lastCommitTime ?? 'none', hash, randomBytes(4).toString('hex')].join('-');
  async function* body(): AsyncGenerator<Buffer> {
    yield frame;
  }
  const key = `${walTailSegmentPrefix(identity, segment)}${name}.zst`;
  const stored = await putSealed(repository, key, body(), signal);
  return {
    timeline: parseTimeline(segment.slice(0, 8)),
    segment,
    from,
    to,
    lastCommitTime,
    hash,
    key: stored.key,
    storedBytes: stored.sizeBytes,
  };
}

export interface ListTailsOptions {
  timeline?: TimelineId;
  segment?: WalSegmentName;
  /** Only tails of this segment and of those behind it. */
  from?: WalSegmentName;
  signal?: AbortSignal;
}

/** Every tail of a history, of one timeline or of one segment, segments in the order of their names. */
export async function* listTails(
  repository: Repository,
  identity: ClusterIdentity,
  options: ListTailsOptions = {},
): AsyncGenerator<WalTail> {
  const { timeline, segment, from, signal } = options;
  const after = from === undefined ? undefined : walTailSegmentPrefix(identity, from);
  const prefix =
    segment !== undefined
      ? walTailSegmentPrefix(identity, segment)
      : timeline !== undefined
        ? walTailTimelinePrefix(identity, formatTimeline(timeline))
        : walTailPrefix(identity);
  const listing = repository.storage.list(prefix, {
    ...(after !== undefined && { after }),
    ...(signal && { signal }),
  });
  for await (const { key, sizeBytes } of listing) {
    const tail = tailOfKey(identity, key, sizeBytes);
    if (tail !== undefined) yield tail;
  }
}

/**
 * The longest run of bytes from the segment's start that tails of *one* segment give. Undefined where none begins at its
 * start. Pure. Where tails overlap, fewer and longer ones are taken.
 */
export function chainTails(tails: readonly WalTail[]): WalTailChain | undefined {
  const chosen: WalTail[] = [];
  let end = 0;
  for (;;) {
    const next = tails
      .filter(({ from, to }) => from <= end && to > end)
      .reduce<WalTail | undefined>(
        (best, tail) => (best === undefined || tail.to > best.to ? tail : best),
        undefined,
      );
    if (next === undefined) break;
    chosen.push(next);
    end = next.to;
  }
  const last = chosen.at(-1);
  if (last === undefined) return undefined;
  return {
    timeline: last.timeline,
    segment: last.segment,
    end,
    lastCommitTime: last.lastCommitTime,
    storedBytes: chosen.reduce((sum, tail) => sum + tail.storedBytes, 0),
    tails: chosen,
  };
}

/** Puts tails that are listed in order together, segment by segment. Holds those of one segment. */
export async function* tailsBySegment(
  tails: AsyncIterable<WalTail>,
): AsyncGenerator<[WalTail, ...WalTail[]]> {
  let group: [WalTail, ...WalTail[]] | undefined;
  for await (const tail of tails) {
    if (group?.[0].segment === tail.segment) {
      group.push(tail);
      continue;
    }
    if (group !== undefined) yield group;
    group = [tail];
  }
  if (group !== undefined) yield group;
}

/** The chain of one segment, from a listing made now. */
export async function findTailChain(
  repository: Repository,
  identity: ClusterIdentity,
  segment: WalSegmentName,
  signal?: AbortSignal,
): Promise<WalTailChain | undefined> {
  return chainTails(
    await Array.fromAsync(listTails(repository, identity, { segment, ...(signal && { signal }) })),
  );
}

/**
 * The bytes of a chain, from the segment's start to `chain.end`. Each tail is verified whole before any of it is yielded.
 * Throws `object-missing` (also where a tail was dropped since it was listed, because its segment is complete now),
 * `object-damaged` and the opener's errors.
 */
export async function* readTailChain(
  repository: Repository,
  chain: WalTailChain,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  let at = 0;
  for (const tail of chain.tails) {
    const plain = await readTail(repository, tail, signal);
    yield plain.subarray(at - tail.from);
    at = tail.to;
  }
}

/**
 * From where the next tail of a segment should begin, so that few tails stay however often one is written: it takes in
 * the tails before it that are no longer than itself (as a binary counter carries), up to `TAIL_PIECE_BYTES`. `tails`: what
 * is stored now, in order and without overlap. Pure.
 */
export function planTailStart(tails: readonly { from: number; to: number }[], end: number): number {
  let from = tails.at(-1)?.to ?? 0;
  for (const tail of tails.toReversed()) {
    if (tail.to !== from || tail.to - tail.from > end - from || end - tail.from > TAIL_PIECE_BYTES) break;
    from = tail.from;
  }
  return from;
}

/**
 * The plain bytes of one tail, verified against the hash in its key. Throws `object-missing`, `object-damaged`, the
 * opener's errors and the store's.
 */
export async function readTail(repository: Repository, tail: WalTail, signal?: AbortSignal): Promise<Buffer> {
  const opener = await repository.opener(sealKindOf(tail.key));
  const sealed = repository.storage.get(tail.key, { ...(signal && { signal }) });
  const frame = await collect(opener.open(sealed), 2 * TAIL_MAX_BYTES, tail.key);
  let plain: Buffer;
  try {
    plain = await decompressFrame(frame, tail.to - tail.from);
  } catch (error) {
    throw damaged(tail, errorText(error), error);
  }
  if (blake3Hex(plain).slice(0, HASH_DIGITS) !== tail.hash) {
    throw damaged(tail, 'its bytes are not those that were stored');
  }
  return plain;
}

function damaged({ key }: WalTail, what: string, cause?: unknown): HoldfastError {
  return new HoldfastError('object-damaged', `${key} is damaged: ${what}`, {
    hint: 'this copy cannot be used: take another repository',
    context: { key },
    ...(cause !== undefined && { cause }),
  });
}

function tailOfKey(identity: ClusterIdentity, key: string, storedBytes: number): WalTail | undefined {
  const [, segment = '', from = '', to = '', commit = '', hash = ''] =
    TAIL_NAME.exec(key.slice(key.lastIndexOf('/') + 1)) ?? [];
  if (!isWalSegmentName(segment) || !key.startsWith(walTailSegmentPrefix(identity, segment)))
    return undefined;
  const [begin, end] = [Number.parseInt(from, 16), Number.parseInt(to, 16)];
  if (end <= begin || end - begin > TAIL_MAX_BYTES) return undefined;
  return {
    timeline: parseTimeline(segment.slice(0, 8)),
    segment,
    from: begin,
    to: end,
    lastCommitTime: commit === 'none' ? undefined : BigInt(commit),
    hash,
    key,
    storedBytes,
  };
}

function hex(offset: number): string {
  return offset.toString(16).padStart(8, '0');
}
