import { errorText, HoldfastError } from '../../errors.ts';

export type FindingStatus = 'ok' | 'warn' | 'fail';

/** One thing that was looked at. */
export interface Finding {
  /** What it is about: `cluster app`, `repository local`, `configuration`. */
  subject: string;
  status: FindingStatus;
  message: string;
  /** The next thing to type or to change; for whatever is not ok. */
  fix?: string;
}

/** Findings about one subject. */
export class Findings {
  readonly all: Finding[] = [];
  readonly #subject: string;

  constructor(subject: string) {
    this.#subject = subject;
  }

  ok(message: string): void {
    this.all.push({ subject: this.#subject, status: 'ok', message });
  }

  warn(message: string, fix: string): void {
    this.all.push({ subject: this.#subject, status: 'warn', message, fix });
  }

  fail(message: string, fix: string): void {
    this.all.push({ subject: this.#subject, status: 'fail', message, fix });
  }

  /** What an error says, with its hint as the fix. Anything but a HoldfastError, and a cancellation, is thrown on. */
  failure(error: unknown): void {
    if (!(error instanceof HoldfastError) || error.code === 'cancelled' || error.code === 'assertion')
      throw error;
    this.fail(errorText(error), error.hint ?? `see docs/errors.md, "${error.code}"`);
  }
}

/** `ok    cluster app: …`, the fix indented below. */
export function formatFinding(finding: Finding): string {
  const line = `${finding.status.padEnd(4)}  ${finding.subject}: ${finding.message}`;
  return finding.fix === undefined ? line : `${line}\n      → ${finding.fix}`;
}

/** `12 findings: 9 ok, 2 warnings, 1 failed`. */
export function summarizeFindings(findings: readonly Finding[]): string {
  const count = (status: FindingStatus): number => findings.filter((one) => one.status === status).length;
  const warnings = count('warn');
  return `${findings.length} findings: ${count('ok')} ok, ${warnings} warning${warnings === 1 ? '' : 's'}, ${count('fail')} failed`;
}
