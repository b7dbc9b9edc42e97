import { HoldfastError, errorText } from '../errors.ts';
import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import {
  type TimelineHistory,
  type TimelineId,
  historyFileName,
  parseTimelineHistory,
} from '../postgres/timeline.ts';
import {
  type WalSegmentName,
  parseWalSegmentName,
  segmentStart,
  walSegmentName,
} from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { type WalHeader, readWalFile, readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { type ListWalOptions, type WalEntry, listWal, walCoverage } from '../repository/wal-listing.ts';
import type { WalTailChain } from '../repository/wal-tail.ts';
import { listArchivedTails, readArchivedTail, shortenedChain } from './archived-tails.ts';
import { type Coverage, type SegmentRange, type SegmentTail, coverageOf } from './coverage.ts';
import { type TimelinePath, type TimelineTree, timelineTree } from './timelines.ts';

/** What is known of one segment without opening it. */
export interface SegmentFacts {
  name: string;
  sizeBytes: number;
  storedBytes: number;
  /** As its writer summed it up; undefined also for tails. */
  wal: Readonly<Record<string, unknown>> | undefined;
}

/** A segment that is listed and cannot be used. */
export interface UnusableSegment {
  name: string;
  reason: string;
}

/** The WAL of one history in one repository, as far as planning needs to know it. */
export interface WalArchive {
  readonly repository: Repository;
  readonly identity: ClusterIdentity;
  readonly segmentSize: number;
  readonly tree: TimelineTree;
  /** What could not be read and was left out. */
  readonly problems: readonly string[];
  /** The whole segments: those that have a header. */
  ranges(timeline: TimelineId): readonly SegmentRange[];
  /**
   * What is stored of segments that have no header, in their order: usually of the last segment of a timeline only.
   * `end` is an offset in the segment; a chain may reach to its end.
   */
  tails(timeline: TimelineId): readonly WalTailChain[];
  /** Names of partial segments, which recovery does not use. */
  readonly partials: readonly string[];
  /**
   * Looks at a listed segment: its header, and whether its data is there in full length; or at the tails there are of it,
   * as they were listed. A segment that cannot be used is described, not thrown; a store that fails throws.
   */
  examine(timeline: TimelineId, segment: bigint): Promise<SegmentFacts | UnusableSegment>;
  /** The bytes of a segment, or of its tails up to their end, proven only when the stream has ended. */
  open(timeline: TimelineId, segment: bigint): AsyncGenerator<Buffer>;
  /**
   * Takes a segment out of `ranges` and `tails`: it turned out to be unusable. Of tails those stay that `open` could read.
   */
  exclude(timeline: TimelineId, segment: bigint): void;
}

const HISTORY_MAX_BYTES = 1024 * 1024;

/** Reads the listing of a history's WAL and its timeline history files. `known`: timelines of backups. */
export async function readWalArchive(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  known: Iterable<TimelineId>,
  signal?: AbortSignal,
): Promise<WalArchive> {
  const timelines = new Set<TimelineId>(known);
  const historyNames = new Map<string, TimelineId>();
  const partials = new Set<string>();
  const segments = new Map<TimelineId, SegmentRange[]>();
  const problems: string[] = [];

  async function* noted(options: ListWalOptions): AsyncGenerator<WalEntry> {
    for await (const entry of listWal(repository, identity, { ...options, ...(signal && { signal }) })) {
      if (entry.kind === 'history') historyNames.set(entry.name, entry.timeline);
      else if (entry.kind === 'partial') partials.add(entry.name);
      if (entry.kind !== 'backup-label') timelines.add(entry.timeline);
      yield entry;
    }
  }
  const note = async (options: ListWalOptions = {}): Promise<void> => {
    for await (const range of walCoverage(noted(options), segmentSize)) {
      const first = parseWalSegmentName(range.first, segmentSize).segmentNumber;
      const last = parseWalSegmentName(range.last, segmentSize).segmentNumber;
      segments.set(range.timeline, withRange(segments.get(range.timeline) ?? [], { first, last }));
    }
  };
  await note();
  const hasHeader = (name: WalSegmentName): boolean => {
    const { timeline, segmentNumber } = parseWalSegmentName(name, segmentSize);
    return isIn(segments.get(timeline) ?? [], segmentNumber);
  };
  const tails = await listArchivedTails(repository, identity, segmentSize, hasHeader, signal);
  for (const timeline of tails.keys()) timelines.add(timeline);
  // What was a tail may have become a segment, and others may have followed it, between the one listing and the other.
  for (const timeline of timelines) {
    const last = segments.get(timeline)?.at(-1)?.last;
    const from = last === undefined ? undefined : walSegmentName(timeline, last, segmentSize);
    await note({ timeline, ...(from !== undefined && { from }) });
    const open = (tails.get(timeline) ?? []).filter(({ segment }) => !hasHeader(segment));
    tails.set(timeline, open);
  }
  const histories: TimelineHistory[] = [];
  for (const timeline of historyNames.values()) {
    const history = await readHistory(repository, identity, timeline, signal);
    if (typeof history === 'string') problems.push(history);
    else histories.push(history);
  }

  const examined = new Map<string, Promise<SegmentFacts | UnusableSegment>>();
  const readable = new Map<WalTailChain, number>();
  const nameOf = (timeline: TimelineId, segment: bigint): string =>
    walSegmentName(timeline, segment, segmentSize);
  const tailOf = (timeline: TimelineId, segment: bigint): WalTailChain | undefined =>
    tails.get(timeline)?.find((chain) => chain.segment === nameOf(timeline, segment));
  return {
    repository,
    identity,
    segmentSize,
    tree: timelineTree(histories, timelines),
    problems,
    partials: [...partials],
    ranges: (timeline) => segments.get(timeline) ?? [],
    tails: (timeline) => tails.get(timeline) ?? [],
    examine: async (timeline, segment) => {
      const name = nameOf(timeline, segment);
      const chain = tailOf(timeline, segment);
      if (chain !== undefined) {
        return { name, sizeBytes: chain.end, storedBytes: chain.storedBytes, wal: undefined };
      }
      let facts = examined.get(name);
      if (facts === undefined) {
        facts = examineSegment(repository, identity, name, signal);
        examined.set(name, facts);
      }
      return await facts;
    },
    open: (timeline, segment) => {
      const chain = tailOf(timeline, segment);
      if (chain === undefined) return openSegment(repository, identity, nameOf(timeline, segment), signal);
      return counted(readArchivedTail(repository, identity, chain, signal), (bytes) => {
        readable.set(chain, bytes);
      });
    },
    exclude: (timeline, segment) => {
      segments.set(timeline, withoutSegment(segments.get(timeline) ?? [], segment));
      const list = tails.get(timeline) ?? [];
      const shorten = (chain: WalTailChain): WalTailChain[] => {
        if (chain.segment !== nameOf(timeline, segment)) return [chain];
        const shorter = shortenedChain(chain, readable.get(chain) ?? 0);
        return shorter === undefined ? [] : [shorter];
      };
      tails.set(timeline, list.flatMap(shorten));
    },
  };
}

/** The end of what the listing has of a timeline. */
export function listedEnd(archive: WalArchive, timeline: TimelineId): Lsn | undefined {
  const last = archive.ranges(timeline).at(-1);
  const whole = last && segmentStart(last.last + 1n, archive.segmentSize);
  const end = segmentTails(archive, timeline).at(-1)?.end;
  return end === undefined || (whole !== undefined && whole > end) ? whole : end;
}

/** The tails of a timeline, as coverage needs them. */
export function segmentTails(archive: WalArchive, timeline: TimelineId): SegmentTail[] {
  return archive.tails(timeline).map(({ segment, end }) => {
    const { segmentNumber } = parseWalSegmentName(segment, archive.segmentSize);
    const start = segmentStart(segmentNumber, archive.segmentSize);
    return { segment: segmentNumber, end: lsnOf(start + BigInt(end)) };
  });
}

/** How far the WAL of an archive reaches along a path, from one segment on. */
export function archivedFrom(archive: WalArchive, path: TimelinePath, from: bigint): Coverage {
  return coverageOf(
    path,
    from,
    (timeline) => archive.ranges(timeline),
    archive.segmentSize,
    (timeline) => segmentTails(archive, timeline),
  );
}

export function isUnusable(facts: SegmentFacts | UnusableSegment): facts is UnusableSegment {
  return 'reason' in facts;
}

function isIn(ranges: readonly SegmentRange[], segment: bigint): boolean {
  return ranges.some(({ first, last }) => first <= segment && segment <= last);
}

/** Adds a range that begins in or behind the last one. */
function withRange(ranges: readonly SegmentRange[], range: SegmentRange): SegmentRange[] {
  const last = ranges.at(-1);
  if (last === undefined || range.first > last.last + 1n) return [...ranges, range];
  return [
    ...ranges.slice(0, -1),
    { first: last.first, last: range.last > last.last ? range.last : last.last },
  ];
}

function withoutSegment(ranges: readonly SegmentRange[], segment: bigint): SegmentRange[] {
  return ranges.flatMap(({ first, last }) => {
    if (segment < first || segment > last) return [{ first, last }];
    return [
      { first, last: segment - 1n },
      { first: segment + 1n, last },
    ].filter((range) => range.first <= range.last);
  });
}

async function examineSegment(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  signal: AbortSignal | undefined,
): Promise<SegmentFacts | UnusableSegment> {
  let header: WalHeader | undefined;
  try {
    header = await readWalHeader(repository, identity, name, signal);
  } catch (error) {
    if (!isDamage(error)) throw error;
    return { name, reason: errorText(error) };
  }
  if (header === undefined) return { name, reason: 'it is not in the repository' };
  const { stored } = header;
  const info = await repository.storage.head(stored.key, { ...(signal && { signal }) });
  if (info === undefined) return { name, reason: `its data ${stored.key} is gone` };
  if (info.sizeBytes !== stored.sizeBytes) {
    return {
      name,
      reason: `its data ${stored.key} has ${info.sizeBytes} bytes instead of ${stored.sizeBytes}`,
    };
  }
  return { name, sizeBytes: header.sizeBytes, storedBytes: stored.sizeBytes, wal: header.wal };
}

/** Tells how many bytes came before a stream failed. */
async function* counted(
  source: AsyncIterable<Buffer>,
  failed: (bytes: number) => void,
): AsyncGenerator<Buffer> {
  let bytes = 0;
  try {
    for await (const chunk of source) {
      bytes += chunk.length;
      yield chunk;
    }
  } catch (error) {
    failed(bytes);
    throw error;
  }
}

async function* openSegment(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer> {
  const header = await readWalHeader(repository, identity, name, signal);
  if (header === undefined)
    throw new HoldfastError('object-missing', `wal segment ${name} is not in the repository`);
  yield* readWalFile(repository, header, signal);
}

async function readHistory(
  repository: Repository,
  identity: ClusterIdentity,
  timeline: TimelineId,
  signal: AbortSignal | undefined,
): Promise<TimelineHistory | string> {
  const name = historyFileName(timeline);
  try {
    const header = await readWalHeader(repository, identity, name, signal);
    if (header === undefined) return `${name} is not in the repository`;
    const text = await readWholeWalFile(repository, header, HISTORY_MAX_BYTES, signal);
    return parseTimelineHistory(timeline, text.toString('utf8'));
  } catch (error) {
    // Without a key the rest of the archive can still be described.
    if (!isDamage(error) && !isKeyProblem(error)) throw error;
    return `${name} cannot be used: ${errorText(error)}`;
  }
}

export function isKeyProblem(error: unknown): boolean {
  return error instanceof HoldfastError && (error.code === 'key-missing' || error.code === 'key-wrong');
}

/** Damage of one object, as against a store or a key that does not work at all. */
export function isDamage(error: unknown): boolean {
  return (
    error instanceof HoldfastError &&
    ['object-damaged', 'object-missing', 'format-too-new', 'wal-invalid', 'usage-invalid'].includes(
      error.code,
    )
  );
}
