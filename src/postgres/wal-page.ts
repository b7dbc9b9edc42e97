import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn, lsnOf } from './lsn.ts';
import { type SystemIdentifier, formatSystemIdentifier } from './system-identifier.ts';
import { type TimelineId, timelineOf } from './timeline.ts';
import { type MajorVersion, majorOfWalMagic } from './version.ts';
import { isWalSegmentSize, parseWalSegmentName, segmentStart } from './wal-segment.ts';

/** Bytes of a WAL page unless the server was built otherwise (`--with-wal-blocksize`). */
export const DEFAULT_WAL_BLOCK_SIZE = 8192;
/** Bytes of the header of every WAL page but the first of a segment. Source: `xlog_internal.h`. */
export const SHORT_HEADER_BYTES = 24;
/** Bytes of the header of the first page of a segment. */
export const LONG_HEADER_BYTES = 40;

/** The bits of `xlp_info`. */
export const PAGE_FIRST_IS_CONTINUATION = 0x0001;
export const PAGE_HAS_LONG_HEADER = 0x0002;
export const PAGE_FIRST_IS_OVERWRITE = 0x0008;
export const PAGE_ALL_FLAGS = 0x000f;

/** The header of the first page of a WAL segment. */
export interface WalLongHeader {
  magic: number;
  majorVersion: MajorVersion;
  /**
   * The timeline the page was first written on. In the first segment of a new timeline, which starts as a copy of its
   * parent's, this is still the parent's.
   */
  timeline: TimelineId;
  pageAddress: Lsn;
  systemIdentifier: SystemIdentifier;
  segmentSize: number;
  blockSize: number;
}

/** What a segment must be to be accepted. */
export interface WalSegmentExpectation {
  /** The name it is to be stored or replayed under. */
  name: string;
  /** Bytes of the file. */
  sizeBytes: number;
  /** Left out: any cluster's. */
  systemIdentifier?: SystemIdentifier;
  /** Left out: what the header says. */
  segmentSize?: number;
  /** Left out: any supported one. */
  majorVersion?: MajorVersion;
}

/**
 * Reads the header of a segment's first page. Throws `wal-invalid` if the bytes are no such header and
 * `version-unsupported` if its magic looks like that of a major Holdfast does not know.
 */
export function readWalLongHeader(bytes: Uint8Array): WalLongHeader {
  if (bytes.byteLength < LONG_HEADER_BYTES)
    throw invalid(`a wal segment of ${bytes.byteLength} bytes has no header`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = view.getUint16(0, true);
  const majorVersion = majorOfWalMagic(magic);
  if (majorVersion === undefined) {
    const shown = magic.toString(16).padStart(4, '0').toUpperCase();
    if (magic >>> 8 !== 0xd0 && magic >>> 8 !== 0xd1)
      throw invalid(`not a wal segment: its magic number is ${shown}`);
    throw new HoldfastError(
      'version-unsupported',
      `wal with magic number ${shown} is of an unsupported version`,
    );
  }
  const info = view.getUint16(2, true);
  const segmentSize = view.getUint32(32, true);
  const blockSize = view.getUint32(36, true);
  const systemIdentifier = view.getBigUint64(24, true);
  const timeline = view.getUint32(4, true);
  if ((info & ~PAGE_ALL_FLAGS) !== 0 || (info & PAGE_HAS_LONG_HEADER) === 0) {
    throw invalid(`the first page of the wal segment has invalid info bits ${info.toString(16)}`);
  }
  if (!isWalSegmentSize(segmentSize) || systemIdentifier === 0n || timeline === 0) {
    throw invalid('the first page of the wal segment has an impossible header');
  }
  return {
    magic,
    majorVersion,
    timeline: timelineOf(timeline),
    pageAddress: lsnOf(view.getBigUint64(8, true)),
    systemIdentifier: formatSystemIdentifier(systemIdentifier),
    segmentSize,
    blockSize,
  };
}

/**
 * Holds a segment (its first page is enough) to the name and cluster it claims: system identifier, segment size, file
 * size, page address, version, and a timeline not above the name's. Returns the header. Throws `cluster-mismatch` for
 * another cluster's WAL and `wal-invalid` for everything else that does not fit. Records are not looked at.
 */
export function checkWalSegment(bytes: Uint8Array, expected: WalSegmentExpectation): WalLongHeader {
  const header = readWalLongHeader(bytes);
  const { name } = expected;
  if (expected.systemIdentifier !== undefined && header.systemIdentifier !== expected.systemIdentifier) {
    throw new HoldfastError(
      'cluster-mismatch',
      `${name} belongs to system identifier ${header.systemIdentifier}, not ${expected.systemIdentifier}`,
      { hint: 'check which server this archive command runs on; a new cluster needs its own first backup' },
    );
  }
  if (expected.majorVersion !== undefined && header.majorVersion !== expected.majorVersion) {
    throw new HoldfastError(
      'cluster-mismatch',
      `${name} was written by PostgreSQL ${header.majorVersion}, not ${expected.majorVersion}`,
    );
  }
  if (expected.segmentSize !== undefined && header.segmentSize !== expected.segmentSize) {
    throw invalid(
      `${name} is of a cluster with segments of ${header.segmentSize} bytes, not ${expected.segmentSize}`,
    );
  }
  if (expected.sizeBytes !== header.segmentSize) {
    throw invalid(`${name} has ${expected.sizeBytes} bytes instead of ${header.segmentSize}`);
  }
  const { timeline, segmentNumber } = parseWalSegmentName(name.slice(0, 24), header.segmentSize);
  const start = segmentStart(segmentNumber, header.segmentSize);
  if (header.pageAddress !== start) {
    throw invalid(`${name} holds wal from ${formatLsn(header.pageAddress)} instead of ${formatLsn(start)}`);
  }
  if (header.timeline > timeline) {
    throw invalid(`${name} holds wal of timeline ${header.timeline}, above the ${timeline} of its name`);
  }
  return header;
}

function invalid(message: string): HoldfastError {
  return new HoldfastError('wal-invalid', message);
}
