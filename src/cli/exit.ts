import { HoldfastError } from '../errors.ts';

/** Exit statuses that PostgreSQL gives a meaning. */
const PUSH_MAX = 125;
const FETCH_ABSENT = 1;
const FETCH_FAILED = 126;

/**
 * The launcher sets this variable to the status it wants for a proven absence and turns it back into 1, because Node
 * itself ends with 1 where it cannot even start a program: that must never look like "there is no such WAL".
 */
export const ABSENT_STATUS_VARIABLE = 'HOLDFAST_ABSENT_STATUS';

/** How a run ended, for commands that people and scripts call. Anything but a HoldfastError is a defect: 1. */
export function exitStatus(error: unknown): number {
  if (error instanceof HoldfastError) return error.exitCode;
  if (isAbort(error)) return 130;
  return 1;
}

/**
 * For `wal push`: every failure, cancellation too, ends within 1..125. PostgreSQL's archiver process dies of a status
 * above 125 and does not count it in `pg_stat_archiver` (manual, "Setting Up WAL Archiving").
 */
export function pushExitStatus(error: unknown): number {
  return Math.min(Math.max(exitStatus(error), 1), PUSH_MAX);
}

/**
 * For `wal fetch`: any status of 1..125 tells PostgreSQL that the file does not exist, which it may take for the end of
 * the archive; a status above 125 makes recovery stop with an error. So only a proven absence is 1.
 */
export function fetchExitStatus(
  outcome: 'fetched' | 'absent' | 'failed',
  environment: Readonly<Record<string, string | undefined>>,
): number {
  switch (outcome) {
    case 'fetched':
      return 0;
    case 'absent': {
      const asked = Number(environment[ABSENT_STATUS_VARIABLE]);
      return Number.isInteger(asked) && asked > FETCH_ABSENT && asked < FETCH_FAILED ? asked : FETCH_ABSENT;
    }
    case 'failed':
      return FETCH_FAILED;
    default:
      return outcome satisfies never;
  }
}

export function isAbort(error: unknown): boolean {
  return error instanceof Error && (error.name === 'AbortError' || error.name === 'TimeoutError');
}
