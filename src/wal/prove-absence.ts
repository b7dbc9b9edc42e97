import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import { type TimelineId, parseTimelineHistory, historyFileName, timelineOf } from '../postgres/timeline.ts';
import { LONG_HEADER_BYTES, readWalLongHeader } from '../postgres/wal-page.ts';
import {
  classifyWalFile,
  parseWalSegmentName,
  segmentOfLsn,
  segmentStart,
  type WalFile,
  walSegmentName,
  type WalSegmentName,
} from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { hasWalData, listWal } from '../repository/wal-listing.ts';
import {
  chainTails,
  findTailChain,
  listTails,
  readTail,
  tailsBySegment,
  type WalTail,
  type WalTailChain,
} from '../repository/wal-tail.ts';
import type { FoundTail } from './deliver-tail.ts';

/** Why a file that has no header may be missing: it never was there, it is not complete yet, or it is lost. */
export type AbsenceProof =
  | { kind: 'absent'; reason: string }
  /** It must have existed: saying that it is absent would end recovery too early, in silence. */
  | { kind: 'hole'; reason: string }
  /** Its beginning is there, and is all that recovery can or has to get. */
  | { kind: 'tail'; tail: FoundTail };

export interface AbsenceOptions {
  /** What recovery has to reach. */
  until?: Lsn;
  /** Of the cluster, where the caller knows it; else it is looked up in the repository. */
  segmentSize?: number;
  signal?: AbortSignal;
}

const HISTORY_MAX_BYTES = 1024 * 1024;

/**
 * Decides about a file whose header is certainly not there. PostgreSQL takes "absent" for the end of WAL (manual,
 * "Recovering Using a Continuous Archive Backup") and opens the database, and so it does where a segment ends in zeros.
 * Both are therefore only said where the repository proves them:
 *
 * - a segment is a hole if its timeline has anything later, tails included, unless the timeline only begins after it
 *   (recovery asks the newest timeline first and then goes down);
 * - with `until`, a segment that begins before it is a hole, unless its tails reach as far, or all that is needed of it
 *   lies on the parent timeline, which has the same segment as far as that;
 * - without `until`, tails are the end of WAL where nothing comes after them; a child's that do not go beyond the switch
 *   point count for nothing where the parent's segment reaches at least as far;
 * - without `until`, data left under its name counts as a hole where there are no tails: nobody can tell a crashed upload
 *   from a lost header;
 * - a history file is a hole if its timeline has anything else.
 */
export async function proveAbsence(
  repository: Repository,
  identity: ClusterIdentity,
  file: WalFile,
  options: AbsenceOptions,
): Promise<AbsenceProof> {
  if (file.kind === 'segment')
    return segmentAbsence(new Lookup(repository, identity, options), file, options);
  if (file.kind === 'history') return historyAbsence(repository, identity, file, options);
  return absent('recovery does not need it');
}

type Segment = Extract<WalFile, { kind: 'segment' }>;
type History = Extract<WalFile, { kind: 'history' }>;

async function segmentAbsence(lookup: Lookup, file: Segment, options: AbsenceOptions): Promise<AbsenceProof> {
  // Tails before headers: they are dropped only when the header is there.
  const tails = await lookup.tailsFrom(file);
  const later = (await lookup.laterThan(file)) ?? tails.later;
  const segmentSize = await lookup.segmentSize(tails.own);
  const begin = await lookup.timelineBegin(file.timeline);
  const { until } = options;
  if (segmentSize === undefined) {
    if (later !== undefined) return hole(`${later} comes after it`);
    if (until !== undefined) return hole('no wal segment tells how large segments are');
    return lookup.withoutLeftovers(file.name);
  }
  const { segmentNumber } = parseWalSegmentName(file.name, segmentSize);
  if (begin !== undefined && segmentOfLsn(begin, segmentSize) > segmentNumber) {
    return absent(`timeline ${file.timeline} begins after it, at ${formatLsn(begin)}`);
  }
  const start = segmentStart(segmentNumber, segmentSize);
  const chain = chainTails(tails.own.filter(({ to }) => to <= segmentSize));
  const end = chain === undefined || chain.end < LONG_HEADER_BYTES ? start : lsnOf(start + BigInt(chain.end));
  const found = (enough: number | undefined): AbsenceProof | undefined =>
    chain === undefined || end === start
      ? undefined
      : { kind: 'tail', tail: lookup.found(file, segmentSize, tails.own, chain, enough) };
  if (chain?.end === segmentSize) return found(segmentSize) ?? hole('it is in pieces');
  if (until !== undefined && until <= end) {
    const tail = found(until > start ? Number(until - start) : LONG_HEADER_BYTES);
    if (tail !== undefined) return tail;
  }
  const stored = end === start ? '' : `it is stored up to ${formatLsn(end)} only, and `;
  if (later !== undefined) return hole(`${stored}${later} comes after it`);
  const parent = await lookup.parentOf(file.timeline);
  const inParent = parent && walSegmentName(parent, segmentNumber, segmentSize);
  if (until === undefined) {
    if (begin !== undefined && inParent !== undefined && end > start && end <= begin) {
      const reach = Number(end - start);
      if (await lookup.reaches(inParent, reach)) return absent(`${inParent} has as much of it`);
    }
    return found(undefined) ?? (await lookup.withoutLeftovers(file.name));
  }
  if (start >= until) return absent(`it begins at or after ${formatLsn(until)}`);
  if (begin !== undefined && inParent !== undefined && until <= begin) {
    if (await lookup.reaches(inParent, Number(until - start))) {
      return absent(`${inParent} holds what is needed of it`);
    }
  }
  return hole(`${stored}it is needed to reach ${formatLsn(until)}`);
}

async function historyAbsence(
  repository: Repository,
  identity: ClusterIdentity,
  file: History,
  options: AbsenceOptions,
): Promise<AbsenceProof> {
  // PostgreSQL never writes a history file for the first timeline.
  if (file.timeline === 1) return absent('the first timeline has no history file');
  const { signal } = options;
  for await (const entry of listWal(repository, identity, {
    timeline: file.timeline,
    ...(signal && { signal }),
  })) {
    return hole(`its timeline has ${entry.name}`);
  }
  for await (const { segment } of listTails(repository, identity, {
    timeline: file.timeline,
    ...(signal && { signal }),
  })) {
    return hole(`its timeline has tails of ${segment}`);
  }
  const lookup = new Lookup(repository, identity, options);
  return options.until === undefined
    ? lookup.withoutLeftovers(file.name)
    : absent('its timeline has nothing');
}

/** What the repository says about one cluster, asked once. */
class Lookup {
  readonly #repository: Repository;
  readonly #identity: ClusterIdentity;
  readonly #options: AbsenceOptions;
  readonly #signal: { signal?: AbortSignal };

  constructor(repository: Repository, identity: ClusterIdentity, options: AbsenceOptions) {
    this.#repository = repository;
    this.#identity = identity;
    this.#options = options;
    this.#signal = { ...(options.signal && { signal: options.signal }) };
  }

  /** The first file which shows that its timeline went on beyond this segment. */
  async laterThan(file: Segment): Promise<string | undefined> {
    const listing = listWal(this.#repository, this.#identity, {
      timeline: file.timeline,
      from: file.name,
      ...this.#signal,
    });
    for await (const entry of listing) {
      const found = classifyWalFile(entry.name);
      if (found === undefined || found.kind === 'history') continue;
      // A backup history file is written when its segment is complete; a partial segment is the end of its timeline.
      if (found.segment > file.name || found.kind === 'backup-label') return entry.name;
    }
    return undefined;
  }

  /** The tails of a segment, and the first that shows that its timeline went on beyond it. */
  async tailsFrom(file: Segment): Promise<{ own: WalTail[]; later: string | undefined }> {
    const { timeline, segment: from } = file;
    const listing = listTails(this.#repository, this.#identity, { timeline, from, ...this.#signal });
    let own: WalTail[] = [];
    for await (const tails of tailsBySegment(listing)) {
      const { segment } = tails[0];
      if (segment !== from) return { own, later: `a tail of ${segment}` };
      own = tails;
    }
    return { own, later: undefined };
  }

  found(
    file: Segment,
    segmentSize: number,
    tails: readonly WalTail[],
    chain: WalTailChain,
    enough: number | undefined,
  ): FoundTail {
    const [repository, identity] = [this.#repository, this.#identity];
    return { repository, identity, segment: file.segment, segmentSize, tails, chain, enough };
  }

  /** `tails`: of the segment that is asked for; its first page says how large segments are. */
  async segmentSize(tails: readonly WalTail[]): Promise<number | undefined> {
    if (this.#options.segmentSize !== undefined) return this.#options.segmentSize;
    const first = chainTails(tails)?.tails.find(({ to }) => to >= LONG_HEADER_BYTES);
    if (first?.from === 0) {
      return readWalLongHeader(await readTail(this.#repository, first, this.#options.signal)).segmentSize;
    }
    for await (const { kind, name } of listWal(this.#repository, this.#identity, this.#signal)) {
      if (kind !== 'segment' && kind !== 'partial') continue;
      const header = await readWalHeader(this.#repository, this.#identity, name, this.#options.signal);
      return header?.sizeBytes;
    }
    return undefined;
  }

  /** Where a timeline forked off its parent; undefined for the first one and where its history is not stored. */
  async timelineBegin(timeline: TimelineId): Promise<Lsn | undefined> {
    return (await this.#fork(timeline))?.end;
  }

  async parentOf(timeline: TimelineId): Promise<TimelineId | undefined> {
    const parent = (await this.#fork(timeline))?.timeline;
    return parent === undefined ? undefined : timelineOf(parent);
  }

  /** Whether this many bytes of a segment are there, whole or as tails. */
  async reaches(name: WalSegmentName, bytes: number): Promise<boolean> {
    const { signal } = this.#options;
    if ((await readWalHeader(this.#repository, this.#identity, name, signal)) !== undefined) return true;
    const chain = await findTailChain(this.#repository, this.#identity, name, signal);
    return chain !== undefined && chain.end >= bytes;
  }

  async withoutLeftovers(name: string): Promise<AbsenceProof> {
    return (await hasWalData(this.#repository, this.#identity, name, this.#options.signal))
      ? hole(
          'data of it lies in the repository without a header: a crashed upload, or a header that was lost',
        )
      : absent('the repository has nothing of it and nothing after it');
  }

  async #fork(timeline: TimelineId): Promise<{ timeline: number; end: Lsn } | undefined> {
    if (timeline === 1) return undefined;
    const { signal } = this.#options;
    const header = await readWalHeader(this.#repository, this.#identity, historyFileName(timeline), signal);
    if (header === undefined) return undefined;
    const bytes = await readWholeWalFile(this.#repository, header, HISTORY_MAX_BYTES, signal);
    return parseTimelineHistory(timeline, bytes.toString('utf8')).entries.at(-1);
  }
}

function absent(reason: string): AbsenceProof {
  return { kind: 'absent', reason };
}

function hole(reason: string): AbsenceProof {
  return { kind: 'hole', reason };
}
