import { HoldfastError } from '../../errors.ts';
import type { Connection } from '../../postgres/connection.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import { inspectWal, type WalFacts } from '../../postgres/inspect-wal.ts';
import type { Lsn } from '../../postgres/lsn.ts';
import { quietSince } from '../../postgres/quiet-since.ts';
import { rateOf, type WalSample } from '../../wal/forecast.ts';
import { readWalDisk, type WalDisk } from './wal-disk.ts';

/** The WAL of a server that answered. */
export interface WalSight {
  facts: WalFacts;
  /** Nothing was committed since; undefined where that is not certain. */
  quietSince: Lsn | undefined;
  /** Undefined where the server is not on this host. */
  disk: WalDisk | undefined;
  /** Between two looks; undefined where there was one. */
  bytesPerSecond: number | undefined;
  /** Of the setting; 0: none. */
  archiveTimeoutMs: number;
  /** Since when the oldest file waits to be archived, microseconds since 1970; undefined: none waits, or not known. */
  oldestReadyAt: bigint | undefined;
}

export interface SeeWalOptions {
  slot: string;
  /** How long to wait between two looks at the position. 0: one look. */
  sampleMs: number;
  wait: (ms: number) => Promise<void>;
}

/** Asks a server about its WAL; changes nothing. Throws as `inspectWal`. */
export async function seeWal(
  connection: Connection,
  server: ServerFacts,
  options: SeeWalOptions,
): Promise<WalSight> {
  const facts = await inspectWal(connection, options.slot);
  const first: WalSample = { lsn: facts.position, at: facts.now };
  const quiet = facts.inRecovery ? undefined : await quietSince(connection);
  const disk =
    facts.isLocal && facts.dataDirectory !== undefined
      ? await readWalDisk(facts.dataDirectory, server.systemIdentifier)
      : undefined;
  const [timeout] = await connection.query<{ ms: string }>(
    "SELECT (setting::bigint * 1000)::text AS ms FROM pg_settings WHERE name = 'archive_timeout'",
  );
  const oldestReadyAt = await oldestReady(connection);
  let bytesPerSecond: number | undefined;
  if (options.sampleMs > 0) {
    await options.wait(options.sampleMs);
    const { position, now } = await inspectWal(connection, options.slot);
    bytesPerSecond = rateOf([first, { lsn: position, at: now }]);
  }
  return {
    facts,
    quietSince: quiet,
    disk,
    bytesPerSecond,
    archiveTimeoutMs: Number(timeout?.ms ?? 0),
    oldestReadyAt,
  };
}

/** A role without pg_monitor may not list the directory; nothing is known then. */
async function oldestReady(connection: Connection): Promise<bigint | undefined> {
  try {
    const [row] = await connection.query<{ at: string | null }>(
      `SELECT (extract(epoch FROM min(modification)) * 1000000)::bigint::text AS at
       FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'`,
    );
    return typeof row?.at === 'string' ? BigInt(row.at) : undefined;
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'privilege-missing') return undefined;
    throw error;
  }
}
