import { type Lsn, formatLsn, lsnOf, lsnOfHalves } from './lsn.ts';
import { type SystemIdentifier } from './system-identifier.ts';
import { type TimelineId } from './timeline.ts';
import { formatMicroseconds } from './timestamp.ts';
import { WalDecoder } from './wal-decoder.ts';
import { DECODED_KINDS, type TransactionSink, type WalRecord, type WalTransactionEnd } from './wal-record.ts';

/**
 * What a WAL segment holds, as JSON. LSNs are PostgreSQL's text form; times RFC 3339 in UTC with microseconds. Only
 * records that lie wholly in the segment are counted: one over the border to the next is in neither summary. So a
 * summary is for finding the segments to look at; exact answers come from decoding across them.
 */
export interface WalSummary {
  /** The segment's first byte. */
  startLsn: string;
  /** `endLsn` of the last whole record; `startLsn` if there is none. */
  endLsn: string;
  /** Ends of transactions, prepared ones included. */
  commits: number;
  aborts: number;
  /** The earliest and the latest time of a commit; clocks may step, so not always those of the first and last commit. */
  firstCommitTime?: string;
  lastCommitTime?: string;
  /** Of the last commit in the order of the WAL. */
  lastCommitLsn?: string;
  /** The lowest and highest transaction that ended, in the circular order of xids. */
  minXid?: number;
  maxXid?: number;
  restorePoints: { name: string; time: string; lsn: string }[];
  /** The last record continues in the next segment. */
  endsInPartialRecord: boolean;
  /** The segment was given up early (`pg_switch_wal()`, `archive_timeout`). */
  switched: boolean;
  /** From some record on, `wal_level` was `minimal`: no base backup from before can be recovered beyond it. */
  walLevelMinimal: boolean;
  /** The record from which on it was: recovery refuses it, and reaches the end of the one before it. */
  walLevelMinimalAt?: string;
  /** Where a segment that should be complete cannot be read on, and why. Recovery would end there. */
  damagedAt?: string;
  damage?: string;
}

export interface WalSummaryOptions {
  /** The LSN of the segment's first byte. */
  start: Lsn;
  segmentSize: number;
  /** The timeline of the segment's name. */
  timeline?: TimelineId;
  systemIdentifier?: SystemIdentifier;
  /** The WAL may end anywhere, as in a `.partial` file: an end is no damage then. */
  partial?: boolean;
}

/** Takes a segment in pieces, for segments that are not to be held in memory. */
export interface WalSummarizer {
  push(bytes: Uint8Array): void;
  /** Of what was pushed so far: the latest commit's time in microseconds since 1970, undefined where there was none. */
  lastCommitTime(): bigint | undefined;
  finish(): WalSummary;
}

/** The summary of a segment in memory. Never throws for what the bytes hold. */
export function summarizeWalSegment(bytes: Uint8Array, options: WalSummaryOptions): WalSummary {
  const summarizer = createWalSummarizer(options);
  summarizer.push(bytes);
  return summarizer.finish();
}

export function createWalSummarizer(options: WalSummaryOptions): WalSummarizer {
  const { start, segmentSize, timeline, systemIdentifier, partial = false } = options;
  const seen = new Sightings();
  const decoder = new WalDecoder({
    start,
    segmentSize,
    kinds: DECODED_KINDS,
    transactions: seen,
    ...(timeline === undefined ? {} : { timeline }),
    ...(systemIdentifier === undefined ? {} : { systemIdentifier }),
  });
  let length = 0;
  return {
    push(bytes) {
      length += bytes.byteLength;
      for (const record of decoder.push(bytes)) seen.add(record);
    },
    lastCommitTime: () => seen.lastCommitTime,
    finish() {
      const { end } = decoder;
      const summary: WalSummary = {
        startLsn: formatLsn(start),
        endLsn: formatLsn(end.lsn),
        ...seen.summary(),
        endsInPartialRecord: end.inRecord,
      };
      if (partial) return summary;
      if (end.reason !== 'needs-more') {
        summary.damagedAt = formatLsn(end.at);
        summary.damage = end.detail ?? 'the wal ends before the segment does';
      } else if (length !== segmentSize) {
        summary.damagedAt = formatLsn(lsnOf(start + BigInt(Math.min(length, segmentSize))));
        summary.damage = `the segment has ${length} bytes instead of ${segmentSize}`;
      }
      return summary;
    },
  };
}

class Sightings implements TransactionSink {
  #commits = 0;
  #aborts = 0;
  // Microseconds since 1970 stay exact in a number until the year 2255; a time beyond loses some of them.
  #firstTime = Infinity;
  #lastTime = -Infinity;
  #lastCommitHigh = 0;
  #lastCommitLow = 0;
  #minXid: number | undefined;
  #maxXid: number | undefined;
  #switched = false;
  #minimalAt: Lsn | undefined;
  readonly #restorePoints: WalSummary['restorePoints'] = [];

  get lastCommitTime(): bigint | undefined {
    return this.#commits === 0 ? undefined : BigInt(this.#lastTime);
  }

  ended(kind: WalTransactionEnd['kind'], xid: number, time: number, lsnHigh: number, lsnLow: number): void {
    this.#addXid(xid);
    if (kind === 'abort' || kind === 'abort-prepared') {
      this.#aborts++;
      return;
    }
    this.#commits++;
    this.#lastCommitHigh = lsnHigh;
    this.#lastCommitLow = lsnLow;
    if (time < this.#firstTime) this.#firstTime = time;
    if (time > this.#lastTime) this.#lastTime = time;
  }

  add(record: WalRecord): void {
    switch (record.kind) {
      case 'commit':
      case 'commit-prepared':
      case 'abort':
      case 'abort-prepared': {
        const { kind, xid, time, lsn } = record;
        this.ended(kind, xid, Number(time), Number(lsn >> 32n), Number(lsn & 0xffff_ffffn));
        break;
      }
      case 'restore-point':
        this.#restorePoints.push({
          name: record.name,
          time: formatMicroseconds(record.time),
          lsn: formatLsn(record.lsn),
        });
        break;
      case 'switch':
        this.#switched = true;
        break;
      case 'parameter-change':
        if (record.walLevel === 'minimal') this.#minimalAt ??= record.lsn;
        break;
      case 'checkpoint':
      case 'end-of-recovery':
      case 'backup-end':
      case 'other':
        break;
    }
  }

  summary(): Omit<WalSummary, 'startLsn' | 'endLsn' | 'endsInPartialRecord'> {
    return {
      commits: this.#commits,
      aborts: this.#aborts,
      ...(this.#commits > 0 && {
        firstCommitTime: formatMicroseconds(BigInt(this.#firstTime)),
        lastCommitTime: formatMicroseconds(BigInt(this.#lastTime)),
        lastCommitLsn: formatLsn(lsnOfHalves(this.#lastCommitHigh, this.#lastCommitLow)),
      }),
      ...(this.#minXid === undefined ? {} : { minXid: this.#minXid }),
      ...(this.#maxXid === undefined ? {} : { maxXid: this.#maxXid }),
      restorePoints: this.#restorePoints,
      switched: this.#switched,
      walLevelMinimal: this.#minimalAt !== undefined,
      ...(this.#minimalAt === undefined ? {} : { walLevelMinimalAt: formatLsn(this.#minimalAt) }),
    };
  }

  #addXid(xid: number): void {
    if (xid === 0) return;
    if (this.#minXid === undefined || precedes(xid, this.#minXid)) this.#minXid = xid;
    if (this.#maxXid === undefined || precedes(this.#maxXid, xid)) this.#maxXid = xid;
  }
}

/** Whether one xid is older than another, which may have wrapped around. */
function precedes(a: number, b: number): boolean {
  return ((a - b) | 0) < 0;
}
