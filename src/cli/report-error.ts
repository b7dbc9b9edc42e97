import { HoldfastError, errorText } from '../errors.ts';
import { exitStatus, isAbort } from './exit.ts';

export interface ErrorStyle {
  json: boolean;
  verbose: boolean;
}

/** An error as it goes to stderr: `holdfast: …` and `hint: …`, or one JSON object. Ends with a newline. */
export function formatError(error: unknown, style: ErrorStyle, status = exitStatus(error)): string {
  return style.json
    ? `${JSON.stringify({ error: errorObject(error, status) })}\n`
    : asText(error, style.verbose);
}

function errorObject(error: unknown, exitCode: number): Record<string, unknown> {
  const known = error instanceof HoldfastError ? error : undefined;
  return {
    code: known?.code ?? (isAbort(error) ? 'cancelled' : 'assertion'),
    message: messageOf(error),
    hint: known?.hint ?? null,
    exitCode,
    context: known?.context ?? {},
  };
}

function messageOf(error: unknown): string {
  if (isAbort(error)) return 'cancelled';
  return errorText(error) || 'failed without saying why';
}

function asText(error: unknown, verbose: boolean): string {
  const lines = [`holdfast: ${messageOf(error)}`];
  const expected = error instanceof HoldfastError || isAbort(error);
  if (error instanceof HoldfastError && error.hint !== undefined) lines.push(`hint: ${error.hint}`);
  if (!expected) {
    lines.push(
      verbose
        ? 'hint: this is a defect of Holdfast; please report it with the lines below'
        : 'hint: this is a defect of Holdfast; run it again with --verbose and report what it prints',
    );
  }
  if (verbose) lines.push(...traceOf(error));
  return `${lines.join('\n')}\n`;
}

/** The stack, and what each error was caused by. */
function traceOf(error: unknown): string[] {
  const lines: string[] = [];
  let current: unknown = error;
  for (let depth = 0; current instanceof Error && depth < 8; depth += 1) {
    lines.push(`${depth === 0 ? '' : 'caused by '}${current.stack ?? current.message}`);
    current = current.cause;
  }
  return lines;
}
