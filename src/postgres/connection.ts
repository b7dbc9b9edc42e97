import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { Socket } from 'node:net';
import type { ConnectionOptions } from 'node:tls';
import { Client, type ClientConfig } from 'pg';
import { HoldfastError, errorText } from '../errors.ts';
import { type ConnectionTarget, describeTarget, parseConnectionTarget } from './connection-target.ts';
import { connectFailure, queryFailure, sqlStateOf } from './server-errors.ts';

export interface ConnectOptions {
  /** Cancels the attempt and, later, whatever runs on the connection. */
  signal?: AbortSignal | undefined;
  /** For the whole attempt. Default 10 s. */
  deadlineMs?: number;
  applicationName?: string;
  /** Longest run of one statement. Default 60 s; 0 for no limit. */
  statementTimeoutMs?: number;
}

/** One SQL session. Not for concurrent use: statements run one after the other. */
export interface Connection extends AsyncDisposable {
  /** `host:port`, for messages. */
  readonly server: string;
  readonly user: string;
  /**
   * Runs one statement and returns its rows. Throws `privilege-missing` or `server-error` with the server's words,
   * `connection-lost`, `cancelled`.
   */
  query<Row extends object>(text: string, values?: readonly unknown[]): Promise<Row[]>;
  close(): Promise<void>;
}

/**
 * Opens a session. `url` is a connection URI (see `parseConnectionTarget`). Throws `usage-invalid`, `connection-failed`
 * or `cancelled`; messages name host and port, never the password.
 */
export async function connect(url: string, options: ConnectOptions = {}): Promise<Connection> {
  const target = parseConnectionTarget(url);
  const server = describeTarget(target);
  const client = await openClient(target, options, {});
  const { signal } = options;
  const onAbort = (): void => {
    socketOf(client).destroy();
  };
  signal?.addEventListener('abort', onAbort, { once: true });
  const close = async (): Promise<void> => {
    signal?.removeEventListener('abort', onAbort);
    const forced = setTimeout(() => socketOf(client).destroy(), 2000);
    await client.end().catch(() => undefined);
    clearTimeout(forced);
  };
  return {
    server,
    user: target.user,
    async query<Row extends object>(text: string, values: readonly unknown[] = []) {
      try {
        return (await client.query<Row>(text, [...values])).rows;
      } catch (error) {
        if (signal?.aborted === true) {
          throw new HoldfastError('cancelled', `a query on ${server} was cancelled`, { cause: error });
        }
        throw queryFailure(`query on ${server}`, error);
      }
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

/**
 * An authenticated client of the `pg` package; `extra` goes to it as it is. Without an `sslmode`, TLS is tried first
 * and a plain connection where the server has none, as libpq does.
 */
export async function openClient(
  target: ConnectionTarget,
  options: ConnectOptions,
  extra: ClientConfig & { replication?: string },
): Promise<Client> {
  const { signal, deadlineMs = 10_000, statementTimeoutMs = 60_000 } = options;
  const deadline = performance.now() + deadlineMs;
  const attempt = async (ssl: ConnectionOptions | false): Promise<Client> => {
    const { host, port, user, database, password } = target;
    const client = new Client({
      host,
      port,
      user,
      database,
      // A function: the package then looks for no password elsewhere.
      password: () => password ?? '',
      ssl,
      application_name: target.applicationName ?? options.applicationName ?? 'holdfast',
      ...(target.options === undefined ? {} : { options: target.options }),
      connectionTimeoutMillis: Math.max(1, Math.ceil(deadline - performance.now())),
      ...(statementTimeoutMs === 0
        ? {}
        : // The client's own limit is for a server that went away without a word.
          { statement_timeout: statementTimeoutMs, query_timeout: statementTimeoutMs + 5000 }),
      keepAlive: true,
      keepAliveInitialDelayMillis: 10_000,
      ...extra,
    });
    // A session that breaks while idle: the next query tells.
    client.on('error', () => undefined);
    const onAbort = (): void => {
      socketOf(client).destroy(new Error('cancelled'));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      await client.connect();
      return client;
    } catch (error) {
      socketOf(client).destroy();
      throw error;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  };
  try {
    signal?.throwIfAborted();
    const ssl = await tlsOptions(target);
    try {
      return await attempt(ssl);
    } catch (error) {
      const mayBePlain = ssl !== false && target.sslmode === 'prefer' && isRefusedTls(error);
      if (!mayBePlain || signal?.aborted === true) throw error;
      return await attempt(false);
    }
  } catch (error) {
    if (signal?.aborted === true) {
      throw new HoldfastError('cancelled', `connecting to ${describeTarget(target)} was cancelled`, {
        cause: error,
      });
    }
    const timedOut = performance.now() >= deadline - 1;
    throw connectFailure(
      describeTarget(target),
      target.user,
      timedOut && sqlStateOf(error) === undefined
        ? new Error(`no answer within ${deadlineMs} ms`, { cause: error })
        : error,
    );
  }
}

/** The socket under a client (plain or TLS): the package offers no public way to it. */
export function socketOf(client: Client): Socket {
  return (client as unknown as { connection: { stream: Socket } }).connection.stream;
}

function isRefusedTls(error: unknown): boolean {
  return sqlStateOf(error) === '28000' || /does not support SSL/.test(errorText(error));
}

/** libpq's meaning of `sslmode` (PostgreSQL manual, "SSL Support") in terms of Node's TLS. */
async function tlsOptions(target: ConnectionTarget): Promise<ConnectionOptions | false> {
  if (target.sslmode === 'disable') return false;
  const defaultRoot = join(homedir(), '.postgresql', 'root.crt');
  const root = target.sslrootcert ?? (existsSync(defaultRoot) ? defaultRoot : undefined);
  const identity: ConnectionOptions = {
    ...(target.sslcert === undefined ? {} : { cert: await readFile(target.sslcert) }),
    ...(target.sslkey === undefined ? {} : { key: await readFile(target.sslkey) }),
    ...(root === undefined || root === 'system' || target.sslmode === 'prefer'
      ? {}
      : { ca: await readFile(root) }),
  };
  const trusting = target.sslmode === 'prefer' || (target.sslmode === 'require' && identity.ca === undefined);
  if (trusting) return { ...identity, rejectUnauthorized: false };
  return target.sslmode === 'verify-full' ? identity : { ...identity, checkServerIdentity: () => undefined };
}
