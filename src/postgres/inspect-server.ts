import { HoldfastError } from '../errors.ts';
import type { Connection } from './connection.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { quoteIdentifier } from './server-errors.ts';
import { type SystemIdentifier, parseSystemIdentifier } from './system-identifier.ts';
import { type TimelineId, timelineOf } from './timeline.ts';
import { NEWEST_MAJOR, OLDEST_MAJOR } from './version.ts';

/** What a server is: three things that must not change under a running operation. */
export interface ServerIdentity {
  systemIdentifier: SystemIdentifier;
  majorVersion: number;
  timeline: TimelineId;
}

export interface ServerFacts extends ServerIdentity {
  /** `host:port`. */
  server: string;
  /** As `server_version_num`: 150018. */
  versionNumber: number;
  versionText: string;
  inRecovery: boolean;
  /** Bytes. */
  walSegmentSize: number;
  blockSize: number;
  dataChecksums: boolean;
  archiveMode: 'off' | 'on' | 'always';
  /** Empty where none is set. */
  archiveCommand: string;
  archiveLibrary: string;
  walLevel: 'minimal' | 'replica' | 'logical';
  fullPageWrites: boolean;
  maxConnections: number;
  maxWalSenders: number;
  maxReplicationSlots: number;
  maxWorkerProcesses: number;
  maxPreparedTransactions: number;
  maxLocksPerTransaction: number;
  /** The role may open replication sessions and the server has room for any. */
  canReplicate: boolean;
  /** The role may end the current WAL segment. */
  canSwitchWal: boolean;
  /** The role may read every setting and all statistics. */
  canMonitor: boolean;
  isSuperuser: boolean;
  /** Oids of tablespaces that are directories within the data directory (a developer's option of PostgreSQL). */
  inPlaceTablespaces: number[];
  /** Written on a primary, replayed on a standby. */
  position: Lsn;
  /** Of a standby only. */
  replay: ReplayState | undefined;
  /** What the user should know though it stops nothing. */
  warning: string | undefined;
}

export interface ReplayState {
  replayed: Lsn;
  /** Flushed by the WAL receiver; undefined where WAL comes from an archive only. */
  received: Lsn | undefined;
  /** From the primary's last reported position, or what was received, to what is replayed. */
  lagBytes: bigint;
  /** Age of the last replayed commit; large as well where the primary is idle. undefined before the first. */
  lastCommitAgeSeconds: number | undefined;
}

interface Row {
  version_number: number;
  version_text: string;
  system_identifier: string;
  timeline: number;
  in_recovery: boolean;
  segment_size: string;
  block_size: string;
  checksums: string;
  archive_mode: string;
  archive_command: string | null;
  archive_library: string | null;
  wal_level: string;
  full_page_writes: string;
  max_connections: string;
  max_wal_senders: string;
  max_replication_slots: string;
  max_worker_processes: string;
  max_prepared_transactions: string;
  max_locks_per_transaction: string;
  is_superuser: boolean;
  is_replication: boolean;
  can_switch: boolean;
  can_monitor: boolean;
  in_place: number[];
  position: string | null;
  received: string | null;
  announced: string | null;
  commit_age: number | null;
}

/**
 * Some notes on the SQL: after a promotion the control file names the old timeline until the next checkpoint, so a
 * primary is asked for the name of its current segment; functions that fail during recovery stand in a CASE branch
 * that is not taken then; the receiver's columns are NULL for a role without pg_monitor.
 */
const FACTS = `
SELECT current_setting('server_version_num')::int AS version_number,
       current_setting('server_version') AS version_text,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       CASE WHEN r.recovering
            THEN greatest(w.received_tli, (SELECT timeline_id FROM pg_control_checkpoint()),
                          (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END AS timeline,
       r.recovering AS in_recovery,
       (SELECT setting::bigint * CASE unit WHEN '8kB' THEN 8192 ELSE 1 END FROM pg_settings
        WHERE name = 'wal_segment_size')::text AS segment_size,
       current_setting('block_size') AS block_size,
       current_setting('data_checksums') AS checksums,
       current_setting('archive_mode') AS archive_mode,
       current_setting('archive_command', true) AS archive_command,
       current_setting('archive_library', true) AS archive_library,
       current_setting('wal_level') AS wal_level,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('max_connections') AS max_connections,
       current_setting('max_wal_senders') AS max_wal_senders,
       current_setting('max_replication_slots') AS max_replication_slots,
       current_setting('max_worker_processes') AS max_worker_processes,
       current_setting('max_prepared_transactions') AS max_prepared_transactions,
       current_setting('max_locks_per_transaction') AS max_locks_per_transaction,
       u.rolsuper AS is_superuser,
       u.rolreplication AS is_replication,
       has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE') AS can_switch,
       pg_has_role('pg_read_all_settings', 'USAGE') AND pg_has_role('pg_read_all_stats', 'USAGE') AS can_monitor,
       ARRAY(SELECT oid::int8::int FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE 'pg_tblspc/%') AS in_place,
       (CASE WHEN r.recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)::text AS position,
       w.flushed_lsn::text AS received,
       w.latest_end_lsn::text AS announced,
       extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float8 AS commit_age
FROM (SELECT pg_is_in_recovery() AS recovering) AS r
CROSS JOIN (SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user) AS u
LEFT JOIN pg_stat_wal_receiver AS w ON true`;

/**
 * Asks a server what it is and how it is set up. Needs no more than LOGIN; what else the role lacks is told by the
 * `can…` fields. Throws `version-unsupported` for servers older than Holdfast knows; newer ones give a `warning`.
 */
export async function inspectServer(connection: Connection): Promise<ServerFacts> {
  const { server } = connection;
  const [version] = await connection.query<{ server_version_num: string }>('SHOW server_version_num');
  const versionNumber = Number(version?.server_version_num);
  const majorVersion = Math.floor(versionNumber / 10_000);
  if (!(majorVersion >= OLDEST_MAJOR)) {
    throw new HoldfastError(
      'version-unsupported',
      `${server} runs PostgreSQL ${majorVersion}, which is too old`,
      {
        hint: `holdfast backs up PostgreSQL ${OLDEST_MAJOR} to ${NEWEST_MAJOR}`,
        context: { server, versionNumber },
      },
    );
  }
  const [row] = await connection.query<Row>(FACTS);
  if (row === undefined) throw new HoldfastError('server-error', `${server} says nothing of the role in use`);
  const position = parseLsn(row.position ?? '0/0');
  return {
    server,
    versionNumber,
    versionText: row.version_text,
    majorVersion,
    systemIdentifier: parseSystemIdentifier(row.system_identifier),
    timeline: timelineOf(row.timeline),
    inRecovery: row.in_recovery,
    walSegmentSize: Number(row.segment_size),
    blockSize: Number(row.block_size),
    dataChecksums: row.checksums === 'on',
    archiveMode: row.archive_mode === 'on' || row.archive_mode === 'always' ? row.archive_mode : 'off',
    // Shown in place of an empty command where archiving is off.
    archiveCommand: row.archive_command === '(disabled)' ? '' : (row.archive_command ?? ''),
    archiveLibrary: row.archive_library ?? '',
    walLevel: row.wal_level === 'minimal' || row.wal_level === 'logical' ? row.wal_level : 'replica',
    fullPageWrites: row.full_page_writes === 'on',
    maxConnections: Number(row.max_connections),
    maxWalSenders: Number(row.max_wal_senders),
    maxReplicationSlots: Number(row.max_replication_slots),
    maxWorkerProcesses: Number(row.max_worker_processes),
    maxPreparedTransactions: Number(row.max_prepared_transactions),
    maxLocksPerTransaction: Number(row.max_locks_per_transaction),
    canReplicate:
      (row.is_superuser || row.is_replication) &&
      Number(row.max_wal_senders) > 0 &&
      row.wal_level !== 'minimal',
    canSwitchWal: row.can_switch,
    canMonitor: row.can_monitor,
    isSuperuser: row.is_superuser,
    inPlaceTablespaces: row.in_place,
    position,
    replay: row.in_recovery ? replayState(row, position) : undefined,
    warning:
      majorVersion > NEWEST_MAJOR
        ? `PostgreSQL ${majorVersion} is newer than this Holdfast, which was tested up to ${NEWEST_MAJOR}`
        : undefined,
  };
}

function replayState(row: Row, replayed: Lsn): ReplayState {
  const received = row.received === null ? undefined : parseLsn(row.received);
  const announced = row.announced === null ? undefined : parseLsn(row.announced);
  const ahead = [received, announced].reduce<bigint>(
    (highest, lsn) => (lsn !== undefined && lsn > highest ? lsn : highest),
    replayed,
  );
  return {
    replayed,
    received,
    lagBytes: ahead - replayed,
    lastCommitAgeSeconds: row.commit_age ?? undefined,
  };
}

/**
 * Throws where a base backup of this server cannot succeed or would not be whole: `privilege-missing`, or
 * `server-setting` for settings that forbid it. To be called before each backup.
 */
export function assertCanBaseBackup(facts: ServerFacts, role: string): void {
  const { server } = facts;
  if (facts.maxWalSenders === 0 || facts.walLevel === 'minimal') {
    throw new HoldfastError('server-setting', `${server} does not allow replication connections`, {
      hint: `ALTER SYSTEM SET wal_level = 'replica'; ALTER SYSTEM SET max_wal_senders = 10; then restart the server`,
    });
  }
  if (!facts.canReplicate) {
    throw new HoldfastError(
      'privilege-missing',
      `the role ${role} may not open replication sessions on ${server}`,
      {
        hint: `ALTER ROLE ${quoteIdentifier(role)} REPLICATION`,
      },
    );
  }
  // PostgreSQL 15 leaves them out of a base backup without a word, and the restored cluster would lack their tables.
  if (facts.majorVersion === 15 && facts.inPlaceTablespaces.length > 0) {
    throw new HoldfastError(
      'server-setting',
      `PostgreSQL 15 cannot back up the in-place tablespaces of ${server}`,
      {
        hint: 'move their tables (ALTER TABLE … SET TABLESPACE pg_default) and drop them, or upgrade to PostgreSQL 16',
        context: { oids: facts.inPlaceTablespaces.join(', ') },
      },
    );
  }
}

/** The part of the facts that an operation holds fast from its first connection on. */
export function pinIdentity(facts: ServerIdentity): ServerIdentity {
  const { systemIdentifier, majorVersion, timeline } = facts;
  return { systemIdentifier, majorVersion, timeline };
}

/**
 * Compares what another connection found with the pinned identity (each of what `other` has); `cluster-mismatch` where
 * an address now leads to another cluster, another version, or a server that was promoted since.
 */
export function assertSameServer(pinned: ServerIdentity, other: Partial<ServerIdentity>): void {
  const differences: string[] = [];
  if (other.systemIdentifier !== undefined && other.systemIdentifier !== pinned.systemIdentifier) {
    differences.push(`system identifier ${other.systemIdentifier} instead of ${pinned.systemIdentifier}`);
  }
  if (other.majorVersion !== undefined && other.majorVersion !== pinned.majorVersion) {
    differences.push(`PostgreSQL ${other.majorVersion} instead of ${pinned.majorVersion}`);
  }
  if (other.timeline !== undefined && other.timeline !== pinned.timeline) {
    differences.push(`timeline ${other.timeline} instead of ${pinned.timeline}`);
  }
  if (differences.length === 0) return;
  throw new HoldfastError(
    'cluster-mismatch',
    `this is not the server it was before: ${differences.join(', ')}`,
    {
      hint: 'check where the address leads: a failover, a clone or an upgrade may have taken it over',
      context: {
        expected: pinned.systemIdentifier,
        found: other.systemIdentifier ?? null,
        expectedTimeline: pinned.timeline,
        foundTimeline: other.timeline ?? null,
      },
    },
  );
}

/**
 * SQL that makes a role fit for Holdfast. To be run by a superuser in the database Holdfast connects to, since rights
 * on functions hold for one database. LOGIN and REPLICATION carry base backups; pg_monitor shows a standby's lag; the
 * functions let a check prove that WAL arrives and let a user name a point to come back to.
 */
export function requiredGrantsSql(role: string): string {
  const name = quoteIdentifier(role);
  return [
    `CREATE ROLE ${name} LOGIN REPLICATION;`,
    `GRANT pg_monitor TO ${name};`,
    `GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO ${name};`,
    `GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text) TO ${name};`,
    '',
  ].join('\n');
}
