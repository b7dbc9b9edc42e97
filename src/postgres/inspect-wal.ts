import { HoldfastError } from '../errors.ts';
import type { Connection } from './connection.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { type TimelineId, timelineOf } from './timeline.ts';

export type SlotWalStatus = 'reserved' | 'extended' | 'unreserved' | 'lost';

/** A replication slot as `pg_replication_slots` shows it. */
export interface SlotFacts {
  name: string;
  type: 'physical' | 'logical';
  temporary: boolean;
  active: boolean;
  activePid: number | undefined;
  /** The oldest WAL the server keeps for it; undefined where it reserves none (any more). */
  restartLsn: Lsn | undefined;
  /** undefined for a slot that never reserved WAL. */
  walStatus: SlotWalStatus | undefined;
  /** Bytes that may still be written before the slot is in danger of being lost; undefined where there is no limit. */
  safeWalSize: bigint | undefined;
  /** From `restartLsn` to the server's end of WAL. */
  heldBytes: bigint | undefined;
  /** Why it was invalidated; told by PostgreSQL 17 and newer. */
  invalidationReason?: string;
}

/** The session that streams from the slot. */
export interface SlotHolder {
  pid: number;
  applicationName: string;
  /** Empty where the role may not see it. */
  user: string;
  /** undefined through a unix socket, and where the role may not see it. */
  clientAddress: string | undefined;
  /** Microseconds since 1970; undefined where the role may not see it. */
  startedAt: bigint | undefined;
}

/** What decides about the WAL of a server: where it is, who holds it, and what the settings allow. */
export interface WalFacts {
  /** The server's clock, microseconds since 1970. */
  now: bigint;
  inRecovery: boolean;
  timeline: TimelineId;
  /** Flushed on a primary, received or replayed (whatever is later) on a standby. */
  position: Lsn;
  /** undefined where there is none of the name asked for. */
  slot: SlotFacts | undefined;
  /** Who streams from the slot; undefined where nobody does. */
  holder: SlotHolder | undefined;
  /** Bytes; undefined without a limit. */
  maxSlotWalKeepSize: bigint | undefined;
  /** A slot that nobody uses for so long is invalidated (PostgreSQL 18); undefined where that is off. */
  idleSlotTimeoutMs: number | undefined;
  synchronousStandbyNames: string;
  synchronousCommit: string;
  /** 0 where it is off. */
  walSenderTimeoutMs: number;
  /** Bytes. */
  maxWalSize: bigint;
  walLevel: 'minimal' | 'replica' | 'logical';
  archiveMode: 'off' | 'on' | 'always';
  /** Size of the files in `pg_wal`; undefined without pg_monitor. */
  walDirectoryBytes: bigint | undefined;
  /** Files that wait for archive_command; undefined without pg_monitor. */
  readyFiles: number | undefined;
  /** undefined without pg_read_all_settings. */
  dataDirectory: string | undefined;
  /**
   * Connected through a unix socket or from the server's own addresses: the data directory may be looked at. A tunnel
   * looks the same, so whoever looks compares the system identifier.
   */
  isLocal: boolean;
}

interface Row {
  now: string;
  in_recovery: boolean;
  timeline: number;
  position: string | null;
  is_local: boolean;
  can_list_wal: boolean;
  can_list_status: boolean;
  settings: Record<string, { value: string; unit: string | null }>;
  slot: SlotRow | null;
  holder: HolderRow | null;
}

/** As JSON, so that a column which a version does not have is merely absent. */
interface SlotRow {
  slot_name: string;
  slot_type: string;
  temporary: boolean;
  active: boolean;
  active_pid: number | null;
  restart_lsn: string | null;
  wal_status: string | null;
  safe_wal_size: string | number | null;
  invalidation_reason?: string | null;
}

interface HolderRow {
  pid: number;
  application_name: string | null;
  usename: string | null;
  client_addr: string | null;
  started: string | null;
}

const SETTINGS = [
  'max_slot_wal_keep_size',
  'idle_replication_slot_timeout',
  'synchronous_standby_names',
  'synchronous_commit',
  'wal_sender_timeout',
  'max_wal_size',
  'wal_level',
  'archive_mode',
  'data_directory',
];

/**
 * After a promotion the control file names the old timeline until the next checkpoint, so a primary is asked for the
 * name of its current segment. Functions that fail during recovery, or outside of it, stand in a CASE branch that is
 * not taken then. Settings and columns that a role may not see are absent or NULL. A bigint goes through text, since
 * JSON numbers lose digits.
 */
const FACTS = `
SELECT trunc(extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text AS now,
       r.recovering AS in_recovery,
       CASE WHEN r.recovering
            THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver),
                          (SELECT timeline_id FROM pg_control_checkpoint()),
                          (SELECT min_recovery_end_timeline FROM pg_control_recovery()))
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int END AS timeline,
       (CASE WHEN r.recovering THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
             ELSE pg_current_wal_flush_lsn() END)::text AS position,
       coalesce(inet_client_addr() = inet_server_addr() OR inet_client_addr() <<= '127.0.0.0/8'
                OR inet_client_addr() = '::1', true) AS is_local,
       has_function_privilege('pg_catalog.pg_ls_waldir()', 'EXECUTE') AS can_list_wal,
       has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE') AS can_list_status,
       (SELECT jsonb_object_agg(name, jsonb_build_object('value', setting, 'unit', unit))
        FROM pg_settings WHERE name = ANY ($2::text[])) AS settings,
       to_jsonb(s) || jsonb_build_object('safe_wal_size', s.safe_wal_size::text) AS slot,
       (SELECT jsonb_build_object('pid', a.pid, 'application_name', a.application_name, 'usename', a.usename,
                                  'client_addr', host(a.client_addr),
                                  'started', trunc(extract(epoch FROM a.backend_start) * 1000000)::bigint::text)
        FROM pg_stat_activity AS a WHERE a.pid = s.active_pid) AS holder
FROM (SELECT pg_is_in_recovery() AS recovering) AS r
LEFT JOIN pg_replication_slots AS s ON s.slot_name = $1`;

/**
 * Asks a server for everything about its WAL, in one or two queries. Needs no more than LOGIN: what the role may not see
 * is undefined. Throws as `Connection.query` does.
 */
export async function inspectWal(connection: Connection, slot: string): Promise<WalFacts> {
  const [row] = await connection.query<Row>(FACTS, [slot, SETTINGS]);
  if (row === undefined) {
    throw new HoldfastError('server-error', `${connection.server} says nothing of its wal`);
  }
  const position = parseLsn(row.position ?? '0/0');
  const text = (name: string): string => row.settings[name]?.value ?? '';
  const amount = (name: string): bigint => inBaseUnit(row.settings[name]);
  const keepSize = amount('max_slot_wal_keep_size');
  const idleTimeout = Number(amount('idle_replication_slot_timeout'));
  const walLevel = text('wal_level');
  const archiveMode = text('archive_mode');
  const dataDirectory = text('data_directory');
  return {
    now: BigInt(row.now),
    inRecovery: row.in_recovery,
    timeline: timelineOf(row.timeline),
    position,
    slot: row.slot === null ? undefined : slotFacts(row.slot, position),
    holder: row.slot?.active_pid == null ? undefined : slotHolder(row.slot.active_pid, row.holder),
    maxSlotWalKeepSize: keepSize < 0n ? undefined : keepSize,
    idleSlotTimeoutMs: idleTimeout > 0 ? idleTimeout : undefined,
    synchronousStandbyNames: text('synchronous_standby_names'),
    synchronousCommit: text('synchronous_commit'),
    walSenderTimeoutMs: Number(amount('wal_sender_timeout')),
    maxWalSize: amount('max_wal_size'),
    walLevel: walLevel === 'minimal' || walLevel === 'logical' ? walLevel : 'replica',
    archiveMode: archiveMode === 'on' || archiveMode === 'always' ? archiveMode : 'off',
    ...(await walDirectory(connection, row)),
    dataDirectory: dataDirectory === '' ? undefined : dataDirectory,
    isLocal: row.is_local,
  };
}

/** A query of its own: a function that the role may not call fails even in a branch that is not taken. */
async function walDirectory(
  connection: Connection,
  can: { can_list_wal: boolean; can_list_status: boolean },
): Promise<Pick<WalFacts, 'walDirectoryBytes' | 'readyFiles'>> {
  const bytes = can.can_list_wal ? '(SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())::text' : 'NULL';
  const ready = can.can_list_status
    ? `(SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready')::int`
    : 'NULL';
  if (!can.can_list_wal && !can.can_list_status)
    return { walDirectoryBytes: undefined, readyFiles: undefined };
  const [found] = await connection.query<{ bytes: string | null; ready: number | null }>(
    `SELECT ${bytes} AS bytes, ${ready} AS ready`,
  );
  return {
    walDirectoryBytes: found?.bytes == null ? undefined : BigInt(found.bytes),
    readyFiles: found?.ready ?? undefined,
  };
}

function slotFacts(row: SlotRow, position: Lsn): SlotFacts {
  const restartLsn = row.restart_lsn === null ? undefined : parseLsn(row.restart_lsn);
  const held = restartLsn === undefined ? undefined : position - restartLsn;
  return {
    name: row.slot_name,
    type: row.slot_type === 'logical' ? 'logical' : 'physical',
    temporary: row.temporary,
    active: row.active,
    activePid: row.active_pid ?? undefined,
    restartLsn,
    walStatus: isWalStatus(row.wal_status) ? row.wal_status : undefined,
    safeWalSize: row.safe_wal_size === null ? undefined : BigInt(row.safe_wal_size),
    // On a standby the slot may be ahead of what we asked for a moment earlier.
    heldBytes: held !== undefined && held < 0n ? 0n : held,
    ...(row.invalidation_reason == null ? {} : { invalidationReason: row.invalidation_reason }),
  };
}

function slotHolder(pid: number, row: HolderRow | null): SlotHolder {
  return {
    pid,
    applicationName: row?.application_name ?? '',
    user: row?.usename ?? '',
    clientAddress: row?.client_addr ?? undefined,
    startedAt: row?.started == null ? undefined : BigInt(row.started),
  };
}

function isWalStatus(text: string | null): text is SlotWalStatus {
  return text === 'reserved' || text === 'extended' || text === 'unreserved' || text === 'lost';
}

/** Bytes or milliseconds; 0 for a setting that this version does not have. Negative numbers mean "no limit". */
function inBaseUnit(setting: { value: string; unit: string | null } | undefined): bigint {
  const value = BigInt(setting?.value ?? '0');
  if (value < 0n) return value;
  switch (setting?.unit ?? '') {
    case 's':
      return value * 1000n;
    case 'min':
      return value * 60_000n;
    case 'kB':
      return value * 1024n;
    case '8kB':
      return value * 8192n;
    case 'MB':
      return value * 1024n * 1024n;
    default:
      return value;
  }
}
