import { type Lsn, formatLsn } from '../postgres/lsn.ts';
import { type TimelineId, parseTimelineHistory, historyFileName, timelineOf } from '../postgres/timeline.ts';
import {
  classifyWalFile,
  parseWalSegmentName,
  segmentOfLsn,
  segmentStart,
  type WalFile,
  walSegmentName,
} from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { hasWalData, listWal } from '../repository/wal-listing.ts';

/** Why a file that has no header may be missing: it never was there, or it is lost. */
export type AbsenceProof =
  | { kind: 'absent'; reason: string }
  /** It must have existed: saying that it is absent would end recovery too early, in silence. */
  | { kind: 'hole'; reason: string };

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
 * "Recovering Using a Continuous Archive Backup") and opens the database, so it is only said where the repository proves
 * it:
 *
 * - a segment is a hole if its timeline has anything later, unless the timeline only begins after it (recovery asks the
 *   newest timeline first and then goes down);
 * - with `until`, a segment that begins before it is a hole, unless all that is needed of it lies on the parent timeline,
 *   which has the same segment;
 * - without `until`, data left under its name counts as a hole: nobody can tell a crashed upload from a lost header;
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
  const later = await lookup.laterThan(file);
  const segmentSize = await lookup.segmentSize();
  const begin = await lookup.timelineBegin(file.timeline);
  if (segmentSize === undefined) {
    if (later !== undefined) return hole(`${later} comes after it`);
    if (options.until !== undefined) return hole('no wal segment tells how large segments are');
    return lookup.withoutLeftovers(file.name);
  }
  const { segmentNumber } = parseWalSegmentName(file.name, segmentSize);
  if (begin !== undefined && segmentOfLsn(begin, segmentSize) > segmentNumber) {
    return absent(`timeline ${file.timeline} begins after it, at ${formatLsn(begin)}`);
  }
  if (later !== undefined) return hole(`${later} comes after it`);
  if (options.until === undefined) return lookup.withoutLeftovers(file.name);
  const start = segmentStart(segmentNumber, segmentSize);
  if (start >= options.until) return absent(`it begins at or after ${formatLsn(options.until)}`);
  const parent = await lookup.parentOf(file.timeline);
  if (begin !== undefined && parent !== undefined && options.until <= begin) {
    const name = walSegmentName(parent, segmentNumber, segmentSize);
    if (await lookup.has(name)) return absent(`${name} holds what is needed of it`);
  }
  return hole(`it is needed to reach ${formatLsn(options.until)}`);
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

  async segmentSize(): Promise<number | undefined> {
    if (this.#options.segmentSize !== undefined) return this.#options.segmentSize;
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

  async has(name: string): Promise<boolean> {
    return (await readWalHeader(this.#repository, this.#identity, name, this.#options.signal)) !== undefined;
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
