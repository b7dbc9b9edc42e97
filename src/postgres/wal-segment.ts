import { HoldfastError } from '../errors.ts';
import { type Lsn, lsnOf } from './lsn.ts';
import { type TimelineId, formatTimeline, parseTimeline } from './timeline.ts';

/**
 * The name of a WAL segment file: 24 upper-case hexadecimal digits, timeline · high part · low part. What the parts mean
 * depends on the segment size (1 MiB to 1 GiB, fixed at initdb), so every conversion takes it.
 */
export type WalSegmentName = string & { readonly __brand: 'WalSegmentName' };

export interface WalSegmentPosition {
  timeline: TimelineId;
  /** Counts segments from 0 at LSN 0/0, whatever their size. */
  segmentNumber: bigint;
}

/** A file that PostgreSQL archives or asks for, by its name alone. */
export type WalFile =
  | { kind: 'segment'; name: WalSegmentName; timeline: TimelineId; segment: WalSegmentName }
  /** The last, incomplete segment of a timeline that ended (`.partial`). */
  | { kind: 'partial'; name: string; timeline: TimelineId; segment: WalSegmentName }
  | { kind: 'history'; name: string; timeline: TimelineId }
  /** A backup history file: where a base backup began (`offset` bytes into `segment`). */
  | { kind: 'backup-label'; name: string; timeline: TimelineId; segment: WalSegmentName; offset: number };

const MIN_SEGMENT_SIZE = 2 ** 20;
const MAX_SEGMENT_SIZE = 2 ** 30;
const SEGMENT_NAME = /^[0-9A-F]{24}$/;
const WAL_FILE = /^([0-9A-F]{24})(?:\.(?:(partial)|([0-9A-F]{8})\.backup))?$/;
const HISTORY_FILE = /^([0-9A-F]{8})\.history$/;

/** Whether initdb could have made a cluster with this segment size: a power of two from 1 MiB to 1 GiB. */
export function isWalSegmentSize(size: number): boolean {
  return Number.isInteger(Math.log2(size)) && size >= MIN_SEGMENT_SIZE && size <= MAX_SEGMENT_SIZE;
}

/** Whether the text has the form of a segment name (which part values are possible depends on the segment size). */
export function isWalSegmentName(text: string): text is WalSegmentName {
  return SEGMENT_NAME.test(text) && !text.startsWith('00000000');
}

/** Reads a segment name; `wal-invalid` if it is none or cannot occur with this segment size. */
export function parseWalSegmentName(text: string, segmentSize: number): WalSegmentPosition {
  const perFile = segmentsPerHighPart(segmentSize);
  if (!isWalSegmentName(text)) {
    throw new HoldfastError('wal-invalid', `"${text}" is not the name of a wal segment`);
  }
  const low = BigInt(`0x${text.slice(16)}`);
  if (low >= perFile) {
    throw new HoldfastError('wal-invalid', `no segment of ${segmentSize} bytes can be called ${text}`, {
      hint: 'check the segment size: show wal_segment_size',
    });
  }
  return {
    timeline: parseTimeline(text.slice(0, 8)),
    segmentNumber: BigInt(`0x${text.slice(8, 16)}`) * perFile + low,
  };
}

/** The name of a segment. Throws `assertion` for numbers beyond the last LSN. */
export function walSegmentName(
  timeline: TimelineId,
  segmentNumber: bigint,
  segmentSize: number,
): WalSegmentName {
  const perFile = segmentsPerHighPart(segmentSize);
  lsnOf(segmentNumber * BigInt(segmentSize));
  const high = (segmentNumber / perFile).toString(16).toUpperCase().padStart(8, '0');
  const low = (segmentNumber % perFile).toString(16).toUpperCase().padStart(8, '0');
  return `${formatTimeline(timeline)}${high}${low}` as WalSegmentName;
}

/** The number of the segment that holds the byte at `lsn`. The end of a segment lies in the next one. */
export function segmentOfLsn(lsn: Lsn, segmentSize: number): bigint {
  segmentsPerHighPart(segmentSize);
  return lsn / BigInt(segmentSize);
}

/**
 * The number of the segment that holds the byte *before* `lsn`: the last one needed to replay up to an end position,
 * as PostgreSQL's XLByteToPrevSeg.
 */
export function lastSegmentBefore(lsn: Lsn, segmentSize: number): bigint {
  segmentsPerHighPart(segmentSize);
  return lsn === 0n ? 0n : (lsn - 1n) / BigInt(segmentSize);
}

/** The LSN of a segment's first byte. */
export function segmentStart(segmentNumber: bigint, segmentSize: number): Lsn {
  segmentsPerHighPart(segmentSize);
  return lsnOf(segmentNumber * BigInt(segmentSize));
}

/** The name of the segment that follows on the same timeline. */
export function nextSegmentName(name: WalSegmentName, segmentSize: number): WalSegmentName {
  const { timeline, segmentNumber } = parseWalSegmentName(name, segmentSize);
  return walSegmentName(timeline, segmentNumber + 1n, segmentSize);
}

/**
 * Says what a file name means to PostgreSQL's archiver and recovery; undefined for every other name, so a name that
 * passes is safe as a path component.
 */
export function classifyWalFile(name: string): WalFile | undefined {
  const history = HISTORY_FILE.exec(name)?.[1];
  if (history !== undefined) {
    return history === '00000000' ? undefined : { kind: 'history', name, timeline: parseTimeline(history) };
  }
  const match = WAL_FILE.exec(name);
  const segment = match?.[1];
  if (segment === undefined || !isWalSegmentName(segment)) return undefined;
  const timeline = parseTimeline(segment.slice(0, 8));
  if (match?.[2] !== undefined) return { kind: 'partial', name, timeline, segment };
  const offset = match?.[3];
  if (offset !== undefined) {
    return { kind: 'backup-label', name, timeline, segment, offset: Number.parseInt(offset, 16) };
  }
  return { kind: 'segment', name: segment, timeline, segment };
}

function segmentsPerHighPart(segmentSize: number): bigint {
  if (!isWalSegmentSize(segmentSize)) {
    throw new HoldfastError('wal-invalid', `${segmentSize} bytes is not a wal segment size`, {
      hint: 'segment sizes are powers of two from 1 MiB to 1 GiB: show wal_segment_size',
    });
  }
  return 0x1_0000_0000n / BigInt(segmentSize);
}
