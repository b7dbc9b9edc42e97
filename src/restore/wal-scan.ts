import { throwIfCancelled } from '../cancellation.ts';
import { errorText } from '../errors.ts';
import { type Lsn, formatLsn } from '../postgres/lsn.ts';
import { type RecoveryStop, RecoveryStopFinder, type RecoveryTarget } from '../postgres/recovery-stop.ts';
import { parseSystemIdentifier } from '../postgres/system-identifier.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { WalDecoder } from '../postgres/wal-decoder.ts';
import type { WalRecord } from '../postgres/wal-record.ts';
import { segmentOfLsn, segmentStart } from '../postgres/wal-segment.ts';
import type { Coverage } from './coverage.ts';
import type { Instant } from './instant.ts';
import { mayDecide, readNote } from './segment-note.ts';
import type { Commit } from './stop-point.ts';
import {
  type SegmentFacts,
  type UnusableSegment,
  type WalArchive,
  isDamage,
  isUnusable,
} from './wal-archive.ts';

export interface ScanOptions {
  archive: WalArchive;
  coverage: Coverage;
  /** A backup's start LSN. */
  from: Lsn;
  /** The same backup's stop LSN. */
  consistentFrom: Lsn;
  target: RecoveryTarget;
  /** Open every segment from this one on, whatever the summaries say. */
  openFrom: bigint | undefined;
  signal?: AbortSignal | undefined;
  /** Called with the number of segments looked at so far. */
  progress?: ((segments: number) => void) | undefined;
}

export interface ScanResult {
  /** The record that decides about the target, and the stop it makes. */
  hit: { record: WalRecord; timeline: TimelineId; stop: RecoveryStop } | undefined;
  /** The last record that was read; the last of the coverage where nothing was hit. */
  lastRecord: { record: WalRecord; timeline: TimelineId } | undefined;
  lastCommit: Commit | undefined;
  /**
   * Of the last end of a transaction, as PostgreSQL shows it: where it is told to stop at the last record by that one's
   * LSN, and the record ends a transaction, of the one before. Undefined where it is not known exactly.
   */
  lastTransactionTime: Instant | undefined;
  /** The latest time stated by any record: what committed up to then is in the archive. */
  newestTime: Instant | undefined;
  /** The time of the checkpoint that the backup began with, and of the first end of a transaction behind it. */
  startCheckpointTime: Instant | undefined;
  firstTransactionTime: Instant | undefined;
  /** The last segment before the hit, or of all, that a commit is known to end in. */
  lastCommitSegment: bigint | undefined;
  /** A segment turned out to be unusable: the coverage is shorter than it was thought to be. */
  unusable: (UnusableSegment & { timeline: TimelineId; segment: bigint }) | undefined;
  /** Set where the WAL itself breaks off before the end of the coverage. */
  broken: { at: Lsn; detail: string; timeline: TimelineId; segment: bigint } | undefined;
}

interface ScannedSegment {
  timeline: TimelineId;
  segment: bigint;
  facts: SegmentFacts | UnusableSegment;
  open: boolean;
}

const AHEAD = 16;

/**
 * Follows the archived WAL along a coverage until a record decides about the target. Segments whose summary rules them
 * out are passed over; a record that reaches from one segment into the next is read whole. Every segment on the way is
 * examined. Memory: one frame of a segment.
 */
export async function scanWal(options: ScanOptions): Promise<ScanResult> {
  const { archive, from, signal } = options;
  const size = archive.segmentSize;
  const state = new ScanState(options);
  let decoder: WalDecoder | undefined;
  let seen = 0;
  for await (const { timeline, segment, facts, open } of segmentsToScan(options)) {
    throwIfCancelled(signal);
    if (isUnusable(facts)) return state.result({ unusable: { ...facts, timeline, segment } });
    options.progress?.((seen += 1));
    state.segment = segment;
    const begin = segmentStart(segment, size);
    const continues = decoder?.end.inRecord === true;
    if (!open && !continues) {
      decoder = undefined;
      state.passOver(facts);
      continue;
    }
    if (decoder === undefined) {
      const start = from > begin ? from : begin;
      const systemIdentifier = parseSystemIdentifier(archive.identity.systemIdentifier);
      decoder = new WalDecoder({ start, segmentSize: size, systemIdentifier });
    }
    try {
      for await (const chunk of archive.open(timeline, segment)) {
        for (const record of decoder.push(chunk)) state.take(record, timeline);
        if (state.isDone || decoder.end.reason !== 'needs-more') break;
        // Only the end of the record from the segment before was wanted.
        if (!open && decoder.end.lsn > begin) break;
      }
    } catch (error) {
      if (!isDamage(error)) throw error;
      return state.result({ unusable: { name: facts.name, reason: errorText(error), timeline, segment } });
    }
    if (state.isDone) break;
    const { reason, at, detail } = decoder.end;
    if (reason !== 'needs-more') {
      const what = detail ?? `nothing was written from ${formatLsn(at)} on`;
      return state.result({ broken: { at, detail: what, timeline, segment } });
    }
    if (!open) {
      decoder = undefined;
      state.passOver(facts);
    }
  }
  return state.result({});
}

/** The covered segments in order, each with the judgement whether to open it, looked up some way ahead. */
async function* segmentsToScan(options: ScanOptions): AsyncGenerator<ScannedSegment> {
  const { archive, coverage, from, target, openFrom } = options;
  const size = archive.segmentSize;
  const places = placesOf(coverage, segmentOfLsn(from, size));
  const lastSegment = coverage.pieces.at(-1)?.last;
  const judge = (facts: SegmentFacts | UnusableSegment, segment: bigint): boolean => {
    if (isUnusable(facts) || segment === lastSegment) return true;
    if (openFrom !== undefined && segment >= openFrom) return true;
    return mayDecide(readNote(facts.wal), target, segmentStart(segment + 1n, size));
  };
  const queue: { timeline: TimelineId; segment: bigint; facts: Promise<SegmentFacts | UnusableSegment> }[] =
    [];
  const fill = (): void => {
    while (queue.length < AHEAD) {
      const next = places.next();
      if (next.done === true) return;
      const { timeline, segment } = next.value;
      const facts = archive.examine(timeline, segment);
      // It is awaited in its turn; until then, or if that never comes, nobody else looks at it.
      facts.catch(() => undefined);
      queue.push({ timeline, segment, facts });
    }
  };
  fill();
  let first = true;
  for (let one = queue.shift(); one !== undefined; one = queue.shift()) {
    fill();
    const facts = await one.facts;
    const next = queue[0];
    // The first segment tells where the backup began in time; the one before a candidate may end with its record.
    const open: boolean =
      first || judge(facts, one.segment) || (next !== undefined && judge(await next.facts, next.segment));
    first = false;
    yield { timeline: one.timeline, segment: one.segment, facts, open };
  }
}

function* placesOf(
  coverage: Coverage,
  from: bigint,
): Generator<{ timeline: TimelineId; segment: bigint }, undefined> {
  for (const { timeline, first, last } of coverage.pieces) {
    for (let segment = first > from ? first : from; segment <= last; segment += 1n)
      yield { timeline, segment };
  }
  return undefined;
}

class ScanState {
  /** Where the scan is. */
  segment = 0n;
  readonly #finder: RecoveryStopFinder;
  readonly #limit: Lsn | undefined;
  readonly #from: Lsn;
  readonly #consistentFrom: Lsn;
  #hit: ScanResult['hit'];
  #broken: ScanResult['broken'];
  #atLimit = false;
  #last: ScanResult['lastRecord'];
  #commit: Commit | undefined;
  #commitSegment: bigint | undefined;
  #transaction: Instant | undefined;
  /** What `#transaction` was before the last record. */
  #transactionBefore: Instant | undefined;
  #newest: Instant | undefined;
  #checkpoint: Instant | undefined;
  #firstTransaction: Instant | undefined;

  constructor({ coverage, from, consistentFrom, target }: ScanOptions) {
    this.#finder = new RecoveryStopFinder({ target, consistentFrom });
    this.#limit = coverage.limit;
    this.#from = from;
    this.#consistentFrom = consistentFrom;
  }

  get isDone(): boolean {
    return this.#hit !== undefined || this.#atLimit || this.#broken !== undefined;
  }

  take(record: WalRecord, timeline: TimelineId): void {
    if (this.isDone) return;
    if (this.#limit !== undefined && record.lsn >= this.#limit) {
      this.#atLimit = true;
      return;
    }
    if ('time' in record && (this.#newest === undefined || record.time > this.#newest)) {
      this.#newest = record.time;
    }
    if (record.kind === 'checkpoint' && record.redo === this.#from) this.#checkpoint ??= record.time;
    if (record.kind === 'parameter-change' && record.walLevel === 'minimal') {
      // PostgreSQL refuses to replay this record, whatever follows.
      const detail = 'wal_level was minimal from here on';
      this.#broken = { at: record.lsn, detail, timeline, segment: this.segment };
      return;
    }
    const stop = this.#finder.feed(record);
    if (stop !== undefined) {
      this.#hit = { record, timeline, stop };
      this.#commit = stop.lastCommit ?? this.#commit;
      this.#transaction = stop.lastTransactionTime ?? this.#transaction;
      return;
    }
    this.#last = { record, timeline };
    this.#transactionBefore = this.#transaction;
    switch (record.kind) {
      case 'commit':
      case 'commit-prepared':
        this.#commit = { time: record.time, xid: record.xid, lsn: record.lsn };
        this.#commitSegment = this.segment;
        this.#sawTransaction(record);
        break;
      case 'abort':
      case 'abort-prepared':
        this.#sawTransaction(record);
        break;
      case 'restore-point':
      case 'switch':
      case 'checkpoint':
      case 'end-of-recovery':
      case 'parameter-change':
      case 'backup-end':
      case 'other':
        break;
    }
  }

  #sawTransaction(record: { time: Instant; lsn: Lsn }): void {
    this.#transaction = record.time;
    if (record.lsn < this.#consistentFrom) this.#firstTransaction ??= record.time;
  }

  /** A segment that was passed over still tells its last commit. */
  passOver(facts: SegmentFacts): void {
    const note = readNote(facts.wal);
    if (note === undefined || note.commits + note.aborts === 0) return;
    const { lastCommitTime: time, lastCommitLsn: lsn } = note;
    if (time !== undefined && (this.#newest === undefined || time > this.#newest)) this.#newest = time;
    if (time !== undefined && lsn !== undefined) {
      this.#commit = { time, xid: undefined, lsn };
      this.#commitSegment = this.segment;
    }
    this.#transaction = undefined;
    this.#transactionBefore = undefined;
  }

  result(more: Partial<Pick<ScanResult, 'unusable' | 'broken'>>): ScanResult {
    return {
      hit: this.#hit,
      lastRecord: this.#last,
      lastCommit: this.#commit,
      lastTransactionTime: this.#hit === undefined ? this.#transactionBefore : this.#transaction,
      lastCommitSegment: this.#commitSegment,
      newestTime: this.#newest,
      startCheckpointTime: this.#checkpoint,
      firstTransactionTime: this.#firstTransaction,
      unusable: more.unusable,
      broken: more.broken ?? this.#broken,
    };
  }
}
