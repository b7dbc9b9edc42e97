/**
 * Every way Holdfast can fail, by a stable code. `docs/errors.md` lists the same codes; a test holds the two together.
 *
 * Exit statuses are a contract (scripts depend on them): 1 a defect · 2 usage or configuration · 3 done in part ·
 * 10 repository missing · 11 locked · 12 key wrong or missing · 13 format too new · 20 PostgreSQL · 30 storage ·
 * 40 WAL gap or conflict · 50 integrity or drill failed · 60 recovery target unreachable or directory not empty ·
 * 130 cancelled.
 */
export const ERRORS = {
  assertion: { exit: 1, retryable: false },
  'usage-invalid': { exit: 2, retryable: false },
  'option-conflict': { exit: 2, retryable: false },
  'config-missing': { exit: 2, retryable: false },
  'config-invalid': { exit: 2, retryable: false },
  'cluster-unknown': { exit: 2, retryable: false },
  'backup-unknown': { exit: 2, retryable: false },
  'time-ambiguous': { exit: 2, retryable: false },
  'check-failed': { exit: 3, retryable: false },
  'repository-behind': { exit: 3, retryable: true },
  'wal-behind': { exit: 3, retryable: true },
  'repository-missing': { exit: 10, retryable: false },
  'repository-mismatch': { exit: 10, retryable: false },
  'repository-locked': { exit: 11, retryable: true },
  'receiver-running': { exit: 11, retryable: false },
  'key-missing': { exit: 12, retryable: false },
  'key-wrong': { exit: 12, retryable: false },
  'format-too-new': { exit: 13, retryable: false },
  'connection-failed': { exit: 20, retryable: true },
  'connection-lost': { exit: 20, retryable: true },
  'privilege-missing': { exit: 20, retryable: false },
  'version-unsupported': { exit: 20, retryable: false },
  'cluster-mismatch': { exit: 20, retryable: false },
  'server-setting': { exit: 20, retryable: false },
  'server-error': { exit: 20, retryable: false },
  'server-start-failed': { exit: 20, retryable: false },
  'postgres-missing': { exit: 20, retryable: false },
  'object-missing': { exit: 30, retryable: false },
  'storage-denied': { exit: 30, retryable: false },
  'storage-full': { exit: 30, retryable: false },
  'storage-unavailable': { exit: 30, retryable: true },
  'wal-gap': { exit: 40, retryable: false },
  'wal-conflict': { exit: 40, retryable: false },
  'wal-invalid': { exit: 40, retryable: false },
  'wal-not-archived': { exit: 40, retryable: true },
  'checksum-mismatch': { exit: 50, retryable: false },
  'object-damaged': { exit: 50, retryable: false },
  'restore-incomplete': { exit: 50, retryable: false },
  'target-unreachable': { exit: 60, retryable: false },
  'target-ambiguous': { exit: 60, retryable: false },
  'data-directory-not-empty': { exit: 60, retryable: false },
  'data-directory-in-use': { exit: 60, retryable: false },
  cancelled: { exit: 130, retryable: false },
} as const satisfies Record<string, { exit: number; retryable: boolean }>;

export type ErrorCode = keyof typeof ERRORS;

export interface ErrorDetails {
  /** The next thing to type, or what to change. One sentence or a command. */
  hint?: string;
  /** Facts for the log and `--json`. Never a secret. */
  context?: Record<string, string | number | boolean | null>;
  cause?: unknown;
}

/** A failure with a stable code. `message` says what happened and why, in lower case and without a full stop. */
export class HoldfastError extends Error {
  override readonly name = 'HoldfastError';
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly context: Record<string, string | number | boolean | null>;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.hint = details.hint;
    this.context = details.context ?? {};
  }

  get exitCode(): number {
    return ERRORS[this.code].exit;
  }

  get retryable(): boolean {
    return ERRORS[this.code].retryable;
  }
}

/** Holds a fact the code relies on; its failure is a defect of Holdfast (exit 1), never the user's. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new HoldfastError('assertion', message);
}

/** For the end of an exhaustive switch: the compiler holds that it is never reached. */
export function assertNever(value: never): never {
  throw new HoldfastError('assertion', `unexpected value ${JSON.stringify(value)}`);
}

/** The `code` of a Node system error (`ENOENT` …), or undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code;
  return undefined;
}

/** A one-line text for any thrown value. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
