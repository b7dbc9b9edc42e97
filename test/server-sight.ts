/** For tests of judgements: a server with nothing to be said against it, and what differs. */
import type { ArchiverState, ServerSight } from '../src/cli/check/see-server.ts';
import type { WalSight } from '../src/cli/check/see-wal.ts';
import type { ServerFacts } from '../src/postgres/inspect-server.ts';
import type { SlotFacts, WalFacts } from '../src/postgres/inspect-wal.ts';
import { parseLsn } from '../src/postgres/lsn.ts';
import { parseSystemIdentifier } from '../src/postgres/system-identifier.ts';
import { timelineOf } from '../src/postgres/timeline.ts';

export const NOW = new Date('2026-01-02T03:04:05Z');
export const NOW_MICROS = BigInt(NOW.getTime()) * 1000n;
export const COMMAND = '/opt/holdfast/bin/holdfast wal push %p --config /etc/holdfast/holdfast.yaml';
export const GIB = 1024n ** 3n;

const FACTS: ServerFacts = {
  systemIdentifier: parseSystemIdentifier('7711133327898090812'),
  majorVersion: 15,
  timeline: timelineOf(1),
  server: 'db1:5432',
  versionNumber: 150_020,
  versionText: '15.20',
  inRecovery: false,
  walSegmentSize: 16 * 1024 ** 2,
  blockSize: 8192,
  dataChecksums: true,
  archiveMode: 'on',
  archiveCommand: COMMAND,
  archiveLibrary: '',
  walLevel: 'replica',
  fullPageWrites: true,
  maxConnections: 100,
  maxWalSenders: 10,
  maxReplicationSlots: 10,
  maxWorkerProcesses: 8,
  maxPreparedTransactions: 0,
  maxLocksPerTransaction: 64,
  canReplicate: true,
  canSwitchWal: true,
  canMonitor: true,
  isSuperuser: false,
  inPlaceTablespaces: [],
  position: parseLsn('0/5000000'),
  replay: undefined,
  warning: undefined,
};

export const ARCHIVER: ArchiverState = {
  lastArchived: '000000010000000000000004',
  lastArchivedAt: new Date(NOW.getTime() - 30_000),
  lastFailed: undefined,
  lastFailedAt: undefined,
  failedCount: 0,
  current: '000000010000000000000005',
};

export const SLOT: SlotFacts = {
  name: 'holdfast',
  type: 'physical',
  temporary: false,
  active: true,
  activePid: 321,
  restartLsn: parseLsn('0/4000000'),
  walStatus: 'reserved',
  safeWalSize: GIB,
  heldBytes: 16n * 1024n ** 2n,
};

const WAL: WalFacts = {
  now: NOW_MICROS,
  inRecovery: false,
  timeline: timelineOf(1),
  position: parseLsn('0/5000000'),
  slot: SLOT,
  holder: {
    pid: 321,
    applicationName: 'holdfast',
    user: 'holdfast',
    clientAddress: '10.0.0.7',
    startedAt: NOW_MICROS,
  },
  maxSlotWalKeepSize: 10n * GIB,
  idleSlotTimeoutMs: undefined,
  synchronousStandbyNames: '',
  synchronousCommit: 'on',
  walSenderTimeoutMs: 60_000,
  maxWalSize: GIB,
  walLevel: 'replica',
  archiveMode: 'on',
  walDirectoryBytes: GIB,
  readyFiles: 0,
  dataDirectory: '/var/lib/postgresql/15/main',
  isLocal: true,
};

const SIGHT: WalSight = {
  facts: WAL,
  quietSince: undefined,
  disk: { path: '/var/lib/postgresql/15/main/pg_wal', freeBytes: 50n * GIB, totalBytes: 100n * GIB },
  bytesPerSecond: undefined,
  archiveTimeoutMs: 60_000,
  oldestReadyAt: undefined,
};

/** A primary. */
export function sight(facts: Partial<ServerFacts> = {}, rest: Partial<ServerSight> = {}): ServerSight {
  return {
    facts: { ...FACTS, ...facts },
    user: 'holdfast',
    replication: true,
    clockSkewMs: 0,
    toleranceMs: 1,
    archiver: ARCHIVER,
    wal: SIGHT,
    ...rest,
  };
}

/** What is seen of a server's WAL. */
export function walSight(facts: Partial<WalFacts> = {}, rest: Partial<WalSight> = {}): WalSight {
  return { ...SIGHT, ...rest, facts: { ...WAL, ...facts } };
}

export function standby(facts: Partial<ServerFacts> = {}, wal: Partial<WalFacts> = {}): ServerSight {
  const replayed = parseLsn('0/5000000');
  const replay = { replayed, received: replayed, lagBytes: 0n, lastCommitAgeSeconds: 1 };
  return sight(
    { server: 'db2:5432', inRecovery: true, replay, ...facts },
    { archiver: undefined, wal: walSight({ inRecovery: true, slot: undefined, holder: undefined, ...wal }) },
  );
}
