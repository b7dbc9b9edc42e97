import { existsSync, readFileSync, statSync } from 'node:fs';
import { homedir, userInfo } from 'node:os';
import { join } from 'node:path';
import { HoldfastError } from '../errors.ts';

export type SslMode = 'disable' | 'prefer' | 'require' | 'verify-ca' | 'verify-full';

/** Where and as whom to connect. Holds a password: never log it; `describeTarget` is for messages. */
export interface ConnectionTarget {
  /** A host name or address, or a socket directory (starts with `/`). */
  host: string;
  port: number;
  user: string;
  /** Default `postgres`: a role for backups rarely has a database of its own name. */
  database: string;
  password: string | undefined;
  sslmode: SslMode;
  sslrootcert: string | undefined;
  sslcert: string | undefined;
  sslkey: string | undefined;
  /** Command-line options for the server process, as in libpq. */
  options: string | undefined;
  applicationName: string | undefined;
}

/** Parameters of libpq that mean nothing here and do no harm. */
const IGNORED = new Set(
  `client_encoding connect_timeout fallback_application_name keepalives keepalives_idle keepalives_interval
  keepalives_count tcp_user_timeout gssencmode krbsrvname channel_binding target_session_attrs load_balance_hosts
  ssl_min_protocol_version ssl_max_protocol_version sslcompression sslsni require_auth`.split(/\s+/),
);
const KNOWN = new Set([
  'host',
  'hostaddr',
  'port',
  'user',
  'password',
  'passfile',
  'dbname',
  'sslmode',
  'sslrootcert',
  'sslcert',
  'sslkey',
  'options',
  'application_name',
  'service',
]);

/**
 * Reads a connection URI of libpq (`postgres://user@host:port/db?…`, also `postgres:///db?host=/socket/dir`), filling
 * in what it leaves open from its service (`~/.pg_service.conf`), then the `PG…` environment, then `~/.pgpass`, then
 * defaults (PostgreSQL manual, "Connection URIs" and after). Throws `usage-invalid`, never quoting a password.
 */
export function parseConnectionTarget(text: string): ConnectionTarget {
  const given = parseUri(text);
  const env = process.env;
  const service = given.get('service') ?? env['PGSERVICE'];
  const fromService = service === undefined ? new Map<string, string>() : readService(service);
  const value = (name: string, variable: string): string | undefined =>
    nonEmpty(given.get(name)) ?? nonEmpty(fromService.get(name)) ?? nonEmpty(env[variable]);

  const host = value('hostaddr', 'PGHOSTADDR') ?? value('host', 'PGHOST') ?? defaultHost();
  const portText = value('port', 'PGPORT') ?? '5432';
  const port = Number(portText);
  if (!/^\d+$/.test(portText) || port < 1 || port > 65_535) {
    throw new HoldfastError(
      'usage-invalid',
      `the port of a connection must be from 1 to 65535, not "${portText}"`,
    );
  }
  if (host.includes(',')) {
    throw new HoldfastError('usage-invalid', `a connection names one host, not several: "${host}"`, {
      hint: 'list each server with a URL of its own',
    });
  }
  const user = value('user', 'PGUSER') ?? userInfo().username;
  const database = value('dbname', 'PGDATABASE') ?? 'postgres';
  const password =
    value('password', 'PGPASSWORD') ??
    findPassword(value('passfile', 'PGPASSFILE') ?? join(homedir(), '.pgpass'), {
      host,
      port,
      user,
      database,
    });
  return {
    host,
    port,
    user,
    database,
    password,
    sslmode: host.startsWith('/') ? 'disable' : readSslMode(value('sslmode', 'PGSSLMODE')),
    sslrootcert: value('sslrootcert', 'PGSSLROOTCERT'),
    sslcert: value('sslcert', 'PGSSLCERT'),
    sslkey: value('sslkey', 'PGSSLKEY'),
    options: value('options', 'PGOPTIONS'),
    applicationName: value('application_name', 'PGAPPNAME'),
  };
}

/** Host and port for messages: `db1.internal:5432`, or the socket's path. */
export function describeTarget({ host, port }: { host: string; port: number }): string {
  if (host.startsWith('/')) return `${host}/.s.PGSQL.${port}`;
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function nonEmpty(value: string | undefined): string | undefined {
  return value === '' ? undefined : value;
}

/** The socket of the local server where Debian and the PGDG packages put it, as libpq would; else TCP. */
function defaultHost(): string {
  return existsSync('/var/run/postgresql') ? '/var/run/postgresql' : 'localhost';
}

function parseUri(text: string): Map<string, string> {
  const scheme = /^postgres(?:ql)?:\/\//.exec(text)?.[0];
  if (scheme === undefined) throw notUri(text);
  const [rest, query] = splitOnce(text.slice(scheme.length).replace(/#.*$/s, ''), '?');
  const [authority, path] = splitOnce(rest, '/');
  const at = authority.lastIndexOf('@');
  const [user, password] = splitOnce(at < 0 ? '' : authority.slice(0, at), ':');
  const found = /^(\[[^\]]*\]|[^:]*)(?::(.*))?$/s.exec(authority.slice(at + 1));
  if (found === null)
    throw new HoldfastError('usage-invalid', 'the host of a connection URL is not understood');

  const parts = new Map<string, string>([
    ['user', decode(user)],
    ['password', decode(password)],
    ['host', decode(found[1] ?? '').replace(/^\[(.*)\]$/s, '$1')],
    ['port', found[2] ?? ''],
    ['dbname', decode(path)],
  ]);
  for (const pair of query.split('&')) {
    if (pair === '') continue;
    const [name = '', value = ''] = splitOnce(pair, '=').map(decode);
    if (IGNORED.has(name)) continue;
    if (!KNOWN.has(name)) {
      throw new HoldfastError('usage-invalid', `unknown parameter "${name}" in a connection URL`, {
        hint: 'the parameters are those of libpq, e.g. host, port, sslmode, sslrootcert, application_name',
      });
    }
    if (value !== '') parts.set(name, value);
  }
  return parts;
}

function notUri(text: string): HoldfastError {
  const looksLikePath = /^(?:\.{0,2}\/|~)/.test(text) || (!text.includes('@') && existsSync(text));
  if (looksLikePath) {
    const isDataDirectory = existsSync(join(text, 'PG_VERSION'));
    const what = isDataDirectory ? 'a data directory' : 'a path';
    return new HoldfastError('usage-invalid', `${what} was given where a connection URL is needed: ${text}`, {
      hint: 'give the server: postgres://USER@/postgres?host=/var/run/postgresql&port=5432',
    });
  }
  return new HoldfastError('usage-invalid', 'a connection must be a URL that begins with postgres://', {
    hint: 'for example postgres://holdfast@db1.internal:5432/postgres',
  });
}

function splitOnce(text: string, separator: string): [string, string] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at + separator.length)];
}

function decode(text: string | undefined): string {
  try {
    return decodeURIComponent(text ?? '');
  } catch {
    throw new HoldfastError('usage-invalid', 'a connection URL has a broken %-escape', {
      hint: 'write special characters of a password as %XX, and a percent sign as %25',
    });
  }
}

function readSslMode(text: string | undefined): SslMode {
  switch (text) {
    case undefined:
    case 'allow':
    case 'prefer':
      return 'prefer';
    case 'disable':
    case 'require':
    case 'verify-ca':
    case 'verify-full':
      return text;
    default:
      throw new HoldfastError('usage-invalid', `unknown sslmode "${text}"`, {
        hint: 'one of disable, prefer, require, verify-ca, verify-full',
      });
  }
}

function readService(name: string): Map<string, string> {
  const files = [process.env['PGSERVICEFILE'] ?? join(homedir(), '.pg_service.conf')];
  const system = process.env['PGSYSCONFDIR'] ?? '/etc/postgresql-common';
  files.push(join(system, 'pg_service.conf'));
  for (const file of files) {
    if (!existsSync(file)) continue;
    let section: string | undefined;
    const found = new Map<string, string>();
    for (const line of readFileSync(file, 'utf8')
      .split('\n')
      .map((one) => one.trim())) {
      if (line === '' || line.startsWith('#')) continue;
      if (line.startsWith('[')) {
        if (section === name) return found;
        section = line.slice(1, -1);
      } else if (section === name) {
        const [key, value] = splitOnce(line, '=');
        found.set(key.trim(), value.trim());
      }
    }
    if (section === name) return found;
  }
  throw new HoldfastError('usage-invalid', `the connection service "${name}" is not defined`, {
    hint: `define [${name}] in ${files.join(' or ')}`,
  });
}

/** A password file's first line that fits (PostgreSQL manual, "The Password File"); ignored where others can read it. */
function findPassword(
  file: string,
  target: { host: string; port: number; user: string; database: string },
): string | undefined {
  const mode = statSync(file, { throwIfNoEntry: false })?.mode;
  if (mode === undefined || (mode & 0o077) !== 0) return undefined;
  // Connections through the usual socket are listed under "localhost".
  const hosts = target.host === '/var/run/postgresql' ? [target.host, 'localhost'] : [target.host];
  for (const line of readFileSync(file, 'utf8').split('\n')) {
    if (line.startsWith('#')) continue;
    const fields = [...line.matchAll(/((?:\\.|[^:\\])*)(?::|$)/g)].map((one) =>
      (one[1] ?? '').replace(/\\(.)/g, '$1'),
    );
    const [host = '', port, database, user, password] = fields;
    const fits =
      (host === '*' || hosts.includes(host)) &&
      (port === '*' || port === String(target.port)) &&
      (database === '*' || database === target.database) &&
      (user === '*' || user === target.user);
    if (fits && password !== undefined && password !== '') return password;
  }
  return undefined;
}
