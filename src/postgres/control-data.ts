import { HoldfastError } from '../errors.ts';
import { crc32c } from '../stream/crc32c.ts';
import { type Lsn, lsnOf } from './lsn.ts';
import { type SystemIdentifier, formatSystemIdentifier } from './system-identifier.ts';
import { type TimelineId, timelineOf } from './timeline.ts';
import { type MajorVersion, SUPPORTED_MAJORS, VERSION_FACTS, majorOfCatalogVersion } from './version.ts';
import { isWalSegmentSize } from './wal-segment.ts';

/** What pg_controldata calls "Database cluster state". */
export type ClusterState =
  | 'starting up'
  | 'shut down'
  | 'shut down in recovery'
  | 'shutting down'
  | 'in crash recovery'
  | 'in archive recovery'
  | 'in production';

/** The settings a standby or a restored server must not have lower than they were. */
export interface RecoverySettings {
  walLevel: 'minimal' | 'replica' | 'logical';
  walLogHints: boolean;
  maxConnections: number;
  maxWorkerProcesses: number;
  maxWalSenders: number;
  maxPreparedTransactions: number;
  maxLocksPerTransaction: number;
  trackCommitTimestamp: boolean;
}

/** The content of `global/pg_control`. LSNs that are not set are 0. */
export interface ControlData {
  majorVersion: MajorVersion;
  controlVersion: number;
  catalogVersion: number;
  systemIdentifier: SystemIdentifier;
  state: ClusterState;
  /** When the file was last written. Whole seconds, as PostgreSQL keeps it. */
  modified: Date;
  /** Where the latest checkpoint record stands. */
  checkpoint: Lsn;
  redo: Lsn;
  timeline: TimelineId;
  previousTimeline: TimelineId;
  checkpointTime: Date;
  fullPageWrites: boolean;
  /** 64 bits: epoch and xid. */
  nextXid: bigint;
  minRecoveryPoint: Lsn;
  /** 0 if not set. */
  minRecoveryPointTimeline: number;
  backupStartPoint: Lsn;
  backupEndPoint: Lsn;
  backupEndRequired: boolean;
  settings: RecoverySettings;
  blockSize: number;
  /** Blocks in one segment file of a relation. */
  relationSegmentBlocks: number;
  walBlockSize: number;
  walSegmentSize: number;
  /** 0: the cluster has no data checksums. */
  dataChecksumVersion: number;
}

/** Bytes from the start of the file that hold everything, CRC included, in every supported major. */
export const CONTROL_DATA_BYTES = 296;

const STATES: readonly ClusterState[] = [
  'starting up',
  'shut down',
  'shut down in recovery',
  'shutting down',
  'in crash recovery',
  'in archive recovery',
  'in production',
];
const WAL_LEVELS = ['minimal', 'replica', 'logical'] as const;

/**
 * Reads `global/pg_control`, whose CRC-32C must be right. Throws `version-unsupported` for other majors (and for the
 * other byte order) and `checksum-mismatch` for damage or a copy torn by a concurrent write: read it again then.
 * Source: `pg_control.h`; the layout up to the CRC is the same in 15 to 18 except for the fields named in
 * `VERSION_FACTS`.
 */
export function readControlData(bytes: Buffer): ControlData {
  if (bytes.length < CONTROL_DATA_BYTES) {
    throw new HoldfastError('checksum-mismatch', `pg_control has only ${bytes.length} bytes`);
  }
  const controlVersion = bytes.readUInt32LE(8);
  const catalogVersion = bytes.readUInt32LE(12);
  const known = SUPPORTED_MAJORS.find((major) => VERSION_FACTS[major].controlVersion === controlVersion);
  if (known === undefined) {
    throw new HoldfastError(
      'version-unsupported',
      `pg_control of version ${controlVersion} is not supported`,
    );
  }
  const crcAt = VERSION_FACTS[known].controlCrcOffset;
  if (crc32c(bytes.subarray(0, crcAt)) !== bytes.readUInt32LE(crcAt)) {
    throw new HoldfastError('checksum-mismatch', 'the checksum of pg_control is wrong');
  }
  const majorVersion = majorOfCatalogVersion(catalogVersion);
  const state = STATES[bytes.readUInt32LE(16)];
  const walLevel = WAL_LEVELS[bytes.readUInt32LE(172)];
  const walSegmentSize = bytes.readUInt32LE(228);
  if (state === undefined || walLevel === undefined || !isWalSegmentSize(walSegmentSize)) {
    throw new HoldfastError('version-unsupported', 'pg_control holds values no supported version writes');
  }
  return {
    majorVersion,
    controlVersion,
    catalogVersion,
    systemIdentifier: formatSystemIdentifier(bytes.readBigUInt64LE(0)),
    state,
    modified: unixSeconds(bytes, 24),
    checkpoint: lsnAt(bytes, 32),
    redo: lsnAt(bytes, 40),
    timeline: timelineOf(bytes.readUInt32LE(48)),
    previousTimeline: timelineOf(bytes.readUInt32LE(52)),
    fullPageWrites: bytes[56] !== 0,
    nextXid: bytes.readBigUInt64LE(64),
    checkpointTime: unixSeconds(bytes, 104),
    minRecoveryPoint: lsnAt(bytes, 136),
    minRecoveryPointTimeline: bytes.readUInt32LE(144),
    backupStartPoint: lsnAt(bytes, 152),
    backupEndPoint: lsnAt(bytes, 160),
    backupEndRequired: bytes[168] !== 0,
    settings: {
      walLevel,
      walLogHints: bytes[176] !== 0,
      maxConnections: bytes.readInt32LE(180),
      maxWorkerProcesses: bytes.readInt32LE(184),
      maxWalSenders: bytes.readInt32LE(188),
      maxPreparedTransactions: bytes.readInt32LE(192),
      maxLocksPerTransaction: bytes.readInt32LE(196),
      trackCommitTimestamp: bytes[200] !== 0,
    },
    blockSize: bytes.readUInt32LE(216),
    relationSegmentBlocks: bytes.readUInt32LE(220),
    walBlockSize: bytes.readUInt32LE(224),
    walSegmentSize,
    dataChecksumVersion: bytes.readUInt32LE(252),
  };
}

function lsnAt(bytes: Buffer, at: number): Lsn {
  return lsnOf(bytes.readBigUInt64LE(at));
}

function unixSeconds(bytes: Buffer, at: number): Date {
  return new Date(Number(bytes.readBigInt64LE(at)) * 1000);
}
