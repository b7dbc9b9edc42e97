import { HoldfastError, errorText } from '../errors.ts';
import { type Lsn } from '../postgres/lsn.ts';
import {
  type TimelineHistory,
  type TimelineId,
  historyFileName,
  parseTimelineHistory,
} from '../postgres/timeline.ts';
import { walSegmentName, parseWalSegmentName, segmentStart } from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { type WalHeader, readWalFile, readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { type WalEntry, listWal, walCoverage } from '../repository/wal-listing.ts';
import type { SegmentRange } from './coverage.ts';
import { type TimelineTree, timelineTree } from './timelines.ts';

/** What is known of one segment without opening it. */
export interface SegmentFacts {
  name: string;
  sizeBytes: number;
  storedBytes: number;
  /** As its writer summed it up. */
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
  ranges(timeline: TimelineId): readonly SegmentRange[];
  /** Names of partial segments, which recovery does not use. */
  readonly partials: readonly string[];
  /**
   * Looks at a listed segment: its header, and whether its data is there in full length. A segment that cannot be used
   * is described, not thrown; a store that fails throws.
   */
  examine(timeline: TimelineId, segment: bigint): Promise<SegmentFacts | UnusableSegment>;
  /** The bytes of a segment, proven only when the stream has ended. */
  open(timeline: TimelineId, segment: bigint): AsyncGenerator<Buffer>;
  /** Takes a segment out of `ranges`: it turned out to be unusable. */
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
  const historyNames: WalEntry[] = [];
  const partials: string[] = [];
  const segments = new Map<TimelineId, SegmentRange[]>();
  const problems: string[] = [];

  async function* noted(): AsyncGenerator<WalEntry> {
    for await (const entry of listWal(repository, identity, { ...(signal && { signal }) })) {
      if (entry.kind === 'history') historyNames.push(entry);
      else if (entry.kind === 'partial') partials.push(entry.name);
      if (entry.kind !== 'backup-label') timelines.add(entry.timeline);
      yield entry;
    }
  }
  for await (const range of walCoverage(noted(), segmentSize)) {
    const list = segments.get(range.timeline) ?? [];
    list.push({
      first: parseWalSegmentName(range.first, segmentSize).segmentNumber,
      last: parseWalSegmentName(range.last, segmentSize).segmentNumber,
    });
    segments.set(range.timeline, list);
  }
  const histories: TimelineHistory[] = [];
  for (const { timeline } of historyNames) {
    const history = await readHistory(repository, identity, timeline, signal);
    if (typeof history === 'string') problems.push(history);
    else histories.push(history);
  }

  const examined = new Map<string, Promise<SegmentFacts | UnusableSegment>>();
  const nameOf = (timeline: TimelineId, segment: bigint): string =>
    walSegmentName(timeline, segment, segmentSize);
  return {
    repository,
    identity,
    segmentSize,
    tree: timelineTree(histories, timelines),
    problems,
    partials,
    ranges: (timeline) => segments.get(timeline) ?? [],
    examine: async (timeline, segment) => {
      const name = nameOf(timeline, segment);
      let facts = examined.get(name);
      if (facts === undefined) {
        facts = examineSegment(repository, identity, name, signal);
        examined.set(name, facts);
      }
      return await facts;
    },
    open: (timeline, segment) => openSegment(repository, identity, nameOf(timeline, segment), signal),
    exclude: (timeline, segment) => {
      segments.set(timeline, withoutSegment(segments.get(timeline) ?? [], segment));
    },
  };
}

/** The end of the last segment the listing has of a timeline. */
export function listedEnd(archive: WalArchive, timeline: TimelineId): Lsn | undefined {
  const last = archive.ranges(timeline).at(-1);
  return last && segmentStart(last.last + 1n, archive.segmentSize);
}

export function isUnusable(facts: SegmentFacts | UnusableSegment): facts is UnusableSegment {
  return 'reason' in facts;
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

function isKeyProblem(error: unknown): boolean {
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
