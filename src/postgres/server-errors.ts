import { type ErrorCode, type ErrorDetails, HoldfastError, errorText, systemErrorCode } from '../errors.ts';

/** SQLSTATEs (PostgreSQL manual, "PostgreSQL Error Codes") that say more than "the server refused". */
function codeOfSqlState(state: string): ErrorCode {
  if (state === '42501') return 'privilege-missing';
  // Administrator shutdown, crash shutdown, connection exceptions.
  if (state === '57P01' || state === '57P02' || state.startsWith('08')) return 'connection-lost';
  return 'server-error';
}

/** An error that the server reported in answer to `what`. */
export function serverError(
  what: string,
  report: { message: string; sqlState: string; hint?: string | undefined },
  details: ErrorDetails = {},
): HoldfastError {
  return new HoldfastError(codeOfSqlState(report.sqlState), `${what}: ${report.message}`, {
    ...(report.hint === undefined ? {} : { hint: report.hint }),
    ...details,
    context: { ...details.context, sqlState: report.sqlState, serverMessage: report.message },
  });
}

/** Turns whatever a query failed with into an error of ours: an SQL error keeps the server's words. */
export function queryFailure(what: string, error: unknown): HoldfastError {
  if (error instanceof HoldfastError) return error;
  const state = sqlStateOf(error);
  if (state === undefined) {
    return new HoldfastError('connection-lost', `${what}: the connection broke: ${errorText(error)}`, {
      cause: error,
    });
  }
  return serverError(what, { message: errorText(error), sqlState: state }, { cause: error });
}

/** Turns whatever a connection attempt failed with into `connection-failed` or `privilege-missing`. */
export function connectFailure(server: string, user: string, error: unknown): HoldfastError {
  if (error instanceof HoldfastError) return error;
  const state = sqlStateOf(error);
  const context = { server, user, sqlState: state ?? null };
  if (state === '42501') {
    return new HoldfastError('privilege-missing', `${server} refused the connection: ${errorText(error)}`, {
      hint: `ALTER ROLE ${quoteIdentifier(user)} REPLICATION`,
      context,
      cause: error,
    });
  }
  const details: ErrorDetails = { context, cause: error };
  const text = errorText(error);
  if (state === '28P01' || /password must be a (?:non-empty )?string/i.test(text)) {
    details.hint = `put the password of ${user} into ~/.pgpass (mode 0600) or PGPASSWORD`;
  } else if (state === '28000') {
    details.hint = 'add a line for this host, user and database (or "replication") to pg_hba.conf and reload';
  } else if (state === undefined) {
    details.hint = 'check host, port, listen_addresses and that the server runs';
  }
  const reason = reasons(error).join('; ');
  return new HoldfastError('connection-failed', `cannot connect to ${server}: ${reason}`, details);
}

/** A name quoted for SQL. */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** The five characters of a server's error, undefined for errors of the network. */
export function sqlStateOf(error: unknown): string | undefined {
  const code = systemErrorCode(error);
  // `severity` tells an SQL error from a system one: EPERM looks like a SQLSTATE, too.
  return code !== undefined && error instanceof Error && 'severity' in error ? code : undefined;
}

/** An attempt over several addresses fails with one error for each. */
function reasons(error: unknown): string[] {
  if (error instanceof AggregateError && error.errors.length > 0) return error.errors.flatMap(reasons);
  return [errorText(error)];
}
