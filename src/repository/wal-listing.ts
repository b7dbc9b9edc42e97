import type { TimelineId } from '../postgres/timeline.ts';
import { formatTimeline } from '../postgres/timeline.ts';
import {
  type WalFile,
  type WalSegmentName,
  classifyWalFile,
  parseWalSegmentName,
} from '../postgres/wal-segment.ts';
import { type ClusterIdentity, walDataKey, walHeaderKey, walPrefix, walTimelinePrefix } from './layout.ts';
import type { Repository } from './repository.ts';

/** One committed WAL file of a cluster, known by its header's key alone. */
export interface WalEntry {
  timeline: TimelineId;
  name: string;
  kind: WalFile['kind'];
}

/** Segments of one timeline without a hole between them. */
export interface WalRange {
  timeline: TimelineId;
  first: WalSegmentName;
  last: WalSegmentName;
  count: number;
}

export interface ListWalOptions {
  signal?: AbortSignal;
  /** Only this timeline. */
  timeline?: TimelineId;
  /** Only from the segment of this name on, with its partial and backup history files. */
  from?: string;
}

const HEADER_SUFFIX = '.json';

/**
 * Every committed WAL file: timelines ascending; within one, segments with their partials and backup history files in
 * the order of their names, then the timeline's history file. Constant memory; a listing that fails midway throws. Keys
 * that are no header's are passed over.
 */
export async function* listWal(
  repository: Repository,
  identity: ClusterIdentity,
  options: ListWalOptions = {},
): AsyncGenerator<WalEntry> {
  const { signal, timeline, from } = options;
  const prefix =
    timeline === undefined ? walPrefix(identity) : walTimelinePrefix(identity, formatTimeline(timeline));
  const listing = repository.storage.list(prefix, {
    ...(from !== undefined && { after: walHeaderKey(identity, from).slice(0, -HEADER_SUFFIX.length) }),
    ...(signal && { signal }),
  });
  for await (const { key } of listing) {
    const entry = entryOfKey(identity, key);
    if (entry !== undefined) yield entry;
  }
}

/**
 * Joins consecutive segments into ranges, in the order of the listing (other kinds of files are passed over). Between
 * two ranges of one timeline segments are missing. Pure; holds one range at a time.
 */
export async function* walCoverage(
  entries: AsyncIterable<WalEntry> | Iterable<WalEntry>,
  segmentSize: number,
): AsyncGenerator<WalRange> {
  let range: WalRange | undefined;
  let lastNumber = 0n;
  for await (const entry of entries) {
    if (entry.kind !== 'segment') continue;
    const name = entry.name as WalSegmentName;
    const { segmentNumber } = parseWalSegmentName(name, segmentSize);
    if (range?.timeline === entry.timeline && segmentNumber === lastNumber + 1n) {
      range = { ...range, last: name, count: range.count + 1 };
    } else {
      if (range !== undefined) yield range;
      range = { timeline: entry.timeline, first: name, last: name, count: 1 };
    }
    lastNumber = segmentNumber;
  }
  if (range !== undefined) yield range;
}

/**
 * Whether data of a WAL file lies in the repository, committed or not. Without a header it is what a crashed attempt
 * left, or all that is left after the header was lost: nobody can tell which.
 */
export async function hasWalData(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  signal?: AbortSignal,
): Promise<boolean> {
  const prefix = walDataKey(identity, name, '', '').slice(0, -'-.zst'.length);
  for await (const object of repository.storage.list(prefix, { ...(signal && { signal }) })) {
    return object.key !== '';
  }
  return false;
}

function entryOfKey(identity: ClusterIdentity, key: string): WalEntry | undefined {
  const name = key.slice(key.lastIndexOf('/') + 1, -HEADER_SUFFIX.length);
  const file = classifyWalFile(name);
  if (file === undefined || walHeaderKey(identity, name) !== key) return undefined;
  return { timeline: file.timeline, name, kind: file.kind };
}
