import { type Lsn, lsnOf } from './lsn.ts';
import { type TimelineId, timelineOf } from './timeline.ts';
import { type MajorVersion, VERSION_FACTS } from './version.ts';

/** Bytes of a WAL record's fixed header. Source for this file: `xlogrecord.h`, `xact.h`, `pg_control.h` of PostgreSQL. */
export const RECORD_HEADER_BYTES = 24;

/** The position and header of a WAL record. */
export interface WalRecordPlace {
  /** Where the record starts, after any page header: PostgreSQL's ReadRecPtr, what pg_waldump prints as `lsn`. */
  lsn: Lsn;
  /**
   * PostgreSQL's EndRecPtr: the end rounded up to 8 bytes. It may lie on a page boundary, before the next page's header,
   * while the next record's `lsn` lies behind that header. After a `switch` it is the end of the segment. This is the
   * value `pg_last_wal_replay_lsn()` shows once the record was replayed.
   */
  endLsn: Lsn;
  /** `endLsn` of the record before, yielded or not; for the first record after the start, its own `lsn`. */
  previousEnd: Lsn;
  /** The transaction, 32 bits; 0 for none. For a prepared transaction's end, the prepared one. */
  xid: number;
  /** Resource manager and `xl_info`, as in the record. */
  rmgr: number;
  info: number;
  /** `xl_tot_len`: bytes without padding and page headers. */
  lengthBytes: number;
}

/** The end of a transaction. `time` is in microseconds since 1970-01-01 UTC. */
export interface WalTransactionEnd extends WalRecordPlace {
  kind: 'commit' | 'abort' | 'commit-prepared' | 'abort-prepared';
  time: bigint;
}
/** Takes ends of transactions without an object for each. */
export interface TransactionSink {
  /** Called in the order of the WAL, records yielded included. `time`: microseconds since 1970. */
  ended(kind: WalTransactionEnd['kind'], xid: number, time: number, lsnHigh: number, lsnLow: number): void;
}

/** `pg_create_restore_point()`. */
export interface WalRestorePoint extends WalRecordPlace {
  kind: 'restore-point';
  name: string;
  time: bigint;
}
/** The rest of the segment is unused. */
export interface WalSwitch extends WalRecordPlace {
  kind: 'switch';
}
export interface WalCheckpoint extends WalRecordPlace {
  kind: 'checkpoint';
  shutdown: boolean;
  redo: Lsn;
  timeline: TimelineId;
  previousTimeline: TimelineId;
  /** Whole seconds, in microseconds since 1970. */
  time: bigint;
}
/** Written first on a new timeline, after a promotion without a checkpoint. */
export interface WalEndOfRecovery extends WalRecordPlace {
  kind: 'end-of-recovery';
  time: bigint;
  timeline: TimelineId;
  previousTimeline: TimelineId;
}
export interface WalParameterChange extends WalRecordPlace {
  kind: 'parameter-change';
  walLevel: 'minimal' | 'replica' | 'logical';
}
/** A base backup that began at `backupStart` is consistent from here. */
export interface WalBackupEnd extends WalRecordPlace {
  kind: 'backup-end';
  backupStart: Lsn;
}
export interface WalOther extends WalRecordPlace {
  kind: 'other';
}

export type WalRecord =
  | WalTransactionEnd
  | WalRestorePoint
  | WalSwitch
  | WalCheckpoint
  | WalEndOfRecovery
  | WalParameterChange
  | WalBackupEnd
  | WalOther;
export type WalRecordKind = WalRecord['kind'];

/** Every kind that is decoded; `other` is not among them. */
export const DECODED_KINDS = [
  'commit',
  'abort',
  'commit-prepared',
  'abort-prepared',
  'restore-point',
  'switch',
  'checkpoint',
  'end-of-recovery',
  'parameter-change',
  'backup-end',
] as const satisfies readonly WalRecordKind[];

const RM_XLOG = 0;
const RM_XACT = 1;
const XACT_KINDS: Readonly<Record<number, WalTransactionEnd['kind']>> = {
  0x00: 'commit',
  0x20: 'abort',
  0x30: 'commit-prepared',
  0x40: 'abort-prepared',
};
const XLOG_KINDS: Readonly<Record<number, Exclude<WalRecordKind, WalTransactionEnd['kind'] | 'other'>>> = {
  0x00: 'checkpoint',
  0x10: 'checkpoint',
  0x40: 'switch',
  0x50: 'backup-end',
  0x60: 'parameter-change',
  0x70: 'restore-point',
  0x90: 'end-of-recovery',
};
/** The least main data each kind has. */
const MAIN_DATA_BYTES: Readonly<Record<Exclude<WalRecordKind, 'other' | 'switch'>, number>> = {
  commit: 8,
  abort: 8,
  'commit-prepared': 8,
  'abort-prepared': 8,
  checkpoint: 88,
  'backup-end': 8,
  'parameter-change': 26,
  'restore-point': 72,
  'end-of-recovery': 16,
};
const BLOCK_ID_DATA_SHORT = 255;
const BLOCK_ID_DATA_LONG = 254;
const BLOCK_ID_ORIGIN = 253;
const BLOCK_ID_TOP_XID = 252;
const XACT_HAS_INFO = 0x80;
const WAL_LEVELS = ['minimal', 'replica', 'logical'] as const;
/** 2000-01-01, where PostgreSQL's timestamps start, in microseconds since 1970. */
const POSTGRES_EPOCH = 946_684_800_000_000n;

/** What kind of record has this resource manager and `xl_info`. */
export function walRecordKind(rmgr: number, info: number): WalRecordKind {
  if (rmgr === RM_XACT) return XACT_KINDS[info & 0x70] ?? 'other';
  if (rmgr === RM_XLOG) return XLOG_KINDS[info & 0xf0] ?? 'other';
  return 'other';
}

/**
 * Decodes the whole record that starts at `from` of `view`, header included, and whose CRC was checked. Returns
 * undefined if its content does not fit its kind, which no server writes.
 */
export function decodeWalRecord(
  view: DataView,
  from: number,
  place: WalRecordPlace,
  major: MajorVersion,
): WalRecord | undefined {
  const kind = walRecordKind(place.rmgr, place.info);
  if (kind === 'other' || kind === 'switch') return { kind, ...place };
  const end = from + place.lengthBytes;
  const at = mainDataStart(view, from + RECORD_HEADER_BYTES, end);
  if (at === undefined || end - at < MAIN_DATA_BYTES[kind]) return undefined;
  switch (kind) {
    case 'commit':
    case 'abort':
      return { kind, ...place, time: timestamp(view, at) };
    case 'commit-prepared':
    case 'abort-prepared': {
      const xid = preparedXid(view, at, end, place.info, major);
      return xid === undefined ? undefined : { kind, ...place, xid, time: timestamp(view, at) };
    }
    case 'restore-point':
      return { kind, ...place, time: timestamp(view, at), name: cString(view, at + 8, 64) };
    case 'checkpoint': {
      const timelines = timelinePair(view, at + 8);
      if (timelines === undefined) return undefined;
      const shutdown = (place.info & 0xf0) === 0;
      const redo = lsnOf(view.getBigUint64(at, true));
      return {
        kind,
        ...place,
        shutdown,
        redo,
        ...timelines,
        time: view.getBigInt64(at + 64, true) * 1_000_000n,
      };
    }
    case 'end-of-recovery': {
      const timelines = timelinePair(view, at + 8);
      return timelines && { kind, ...place, time: timestamp(view, at), ...timelines };
    }
    case 'parameter-change': {
      const walLevel = WAL_LEVELS[view.getInt32(at + 20, true)];
      return walLevel && { kind, ...place, walLevel };
    }
    case 'backup-end':
      return { kind, ...place, backupStart: lsnOf(view.getBigUint64(at, true)) };
  }
}

/**
 * The time in the commit or abort record of `length` bytes at `from`, in microseconds since 1970; undefined where
 * `decodeWalRecord` has to be asked.
 */
export function transactionEndTime(view: DataView, from: number, length: number): number | undefined {
  const end = from + length;
  const at = mainDataStart(view, from + RECORD_HEADER_BYTES, end);
  if (at === undefined || end - at < MAIN_DATA_BYTES.commit) return undefined;
  const time = view.getInt32(at + 4, true) * 0x1_0000_0000 + view.getUint32(at, true);
  const since1970 = time + Number(POSTGRES_EPOCH);
  return Number.isSafeInteger(time) && Number.isSafeInteger(since1970) ? since1970 : undefined;
}

/**
 * Where the record's main data starts (it reaches to the record's end); undefined if it refers to blocks, as no record
 * decoded here does, or if its headers lead beyond the record.
 */
function mainDataStart(view: DataView, from: number, end: number): number | undefined {
  let at = from;
  while (at + 5 <= end) {
    const id = view.getUint8(at);
    if (id === BLOCK_ID_DATA_SHORT) return end - view.getUint8(at + 1) === at + 2 ? at + 2 : undefined;
    if (id === BLOCK_ID_DATA_LONG) return end - view.getUint32(at + 1, true) === at + 5 ? at + 5 : undefined;
    if (id === BLOCK_ID_ORIGIN) at += 3;
    else if (id === BLOCK_ID_TOP_XID) at += 5;
    else return undefined;
  }
  return undefined;
}

/** The xid of a prepared transaction, which stands behind lists of any length. */
function preparedXid(
  view: DataView,
  from: number,
  end: number,
  info: number,
  major: MajorVersion,
): number | undefined {
  if ((info & XACT_HAS_INFO) === 0 || from + 12 > end) return undefined;
  const flags = view.getUint32(from + 8, true);
  const lists = [
    [0x02, 4], // subtransactions
    [0x04, 12], // dropped relation files
    [0x100, VERSION_FACTS[major].droppedStatsItemBytes],
    [0x08, 16], // cache invalidations
  ] as const;
  let at = from + 12;
  if ((flags & 0x01) !== 0) at += 8; // database and tablespace
  for (const [flag, itemBytes] of lists) {
    if ((flags & flag) === 0) continue;
    if (at + 4 > end) return undefined;
    at += 4 + view.getUint32(at, true) * itemBytes;
  }
  return (flags & 0x10) === 0 || at + 4 > end ? undefined : view.getUint32(at, true);
}

function timelinePair(
  view: DataView,
  at: number,
): { timeline: TimelineId; previousTimeline: TimelineId } | undefined {
  const timeline = view.getUint32(at, true);
  const previous = view.getUint32(at + 4, true);
  if (timeline === 0 || previous === 0) return undefined;
  return { timeline: timelineOf(timeline), previousTimeline: timelineOf(previous) };
}

function timestamp(view: DataView, at: number): bigint {
  return view.getBigInt64(at, true) + POSTGRES_EPOCH;
}

function cString(view: DataView, at: number, bytes: number): string {
  const text = Buffer.from(view.buffer, view.byteOffset + at, bytes);
  const end = text.indexOf(0);
  return text.toString('utf8', 0, end < 0 ? bytes : end);
}
