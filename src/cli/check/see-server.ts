import { HoldfastError } from '../../errors.ts';
import { connect, type Connection } from '../../postgres/connection.ts';
import { inspectServer } from '../../postgres/inspect-server.ts';
import { connectReplication } from '../../postgres/replication.ts';
import { seeWal, type SeeWalOptions, type WalSight } from './see-wal.ts';
import type { SeenServer } from './server-findings.ts';

/** What `pg_stat_archiver` says of a server. */
export interface ArchiverState {
  lastArchived: string | undefined;
  lastArchivedAt: Date | undefined;
  lastFailed: string | undefined;
  lastFailedAt: Date | undefined;
  failedCount: number;
  /** The segment being written now. */
  current: string | undefined;
}

export interface ServerSight extends SeenServer {
  archiver: ArchiverState | undefined;
  wal: WalSight;
}

export interface SeeServerOptions extends SeeWalOptions {
  signal: AbortSignal;
  /** What the sessions call themselves. */
  applicationName: string;
  /** Whether to open a replication session as well; without that one counts as possible. */
  tryReplication: boolean;
}

interface ArchiverRow {
  last_archived_wal: string | null;
  last_archived_time: Date | null;
  last_failed_wal: string | null;
  last_failed_time: Date | null;
  failed_count: string;
  current: string | null;
}

/** Looks at one server: two connections, nothing changed. Errors as `connect`, `inspectServer` and `inspectWal`. */
export async function seeServer(url: string, options: SeeServerOptions): Promise<ServerSight> {
  const { signal, applicationName } = options;
  await using connection = await connect(url, { signal, applicationName });
  const facts = await inspectServer(connection);
  const clock = await clockOf(connection);
  return {
    facts,
    user: connection.user,
    replication: options.tryReplication ? await tryReplication(url, { signal, applicationName }) : true,
    ...clock,
    archiver: facts.inRecovery ? undefined : await archiverOf(connection),
    wal: await seeWal(connection, facts, options),
  };
}

async function tryReplication(
  url: string,
  options: { signal: AbortSignal; applicationName: string },
): Promise<SeenServer['replication']> {
  try {
    await using connection = await connectReplication(url, options);
    await connection.identifySystem();
    return true;
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
    return {
      reason: error.message,
      fix: error.hint ?? 'GRANT the role REPLICATION and let it in in pg_hba.conf',
    };
  }
}

/** Compares the server's clock with the middle of the question's round trip. */
async function clockOf(connection: Connection): Promise<{ clockSkewMs: number; toleranceMs: number }> {
  const asked = Date.now();
  const [row] = await connection.query<{ ms: string }>(
    'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint::text AS ms',
  );
  const answered = Date.now();
  const middle = (asked + answered) / 2;
  return { clockSkewMs: Number(row?.ms) - middle, toleranceMs: (answered - asked) / 2 };
}

async function archiverOf(connection: Connection): Promise<ArchiverState> {
  const [row] = await connection.query<ArchiverRow>(
    `SELECT last_archived_wal, last_archived_time, last_failed_wal, last_failed_time, failed_count::text,
            pg_walfile_name(pg_current_wal_lsn()) AS current
     FROM pg_stat_archiver`,
  );
  return {
    lastArchived: row?.last_archived_wal ?? undefined,
    lastArchivedAt: row?.last_archived_time ?? undefined,
    lastFailed: row?.last_failed_wal ?? undefined,
    lastFailedAt: row?.last_failed_time ?? undefined,
    failedCount: Number(row?.failed_count ?? 0),
    current: row?.current ?? undefined,
  };
}
