import { writeSync } from 'node:fs';

import { systemErrorCode } from './errors.ts';

/** From the least to the most talkative. */
export const LOG_LEVELS = ['error', 'warn', 'info', 'debug'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Facts beside the message. An `Error` is written with its code, hint, context and causes. Never a secret. */
export type LogFields = Readonly<Record<string, unknown>>;

export interface Logger {
  error(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  /** A logger that adds `fields` to every line. */
  child(fields: LogFields): Logger;
}

export interface LoggerOptions {
  /** The most talkative level that is written. Default `info`. */
  level?: LogLevel;
  /** `json`: one object a line. Default `text`. */
  format?: 'text' | 'json';
  /** Takes one whole line, newline included. Default: stderr. */
  write?: (line: string) => void;
  now?: () => Date;
}

/**
 * Logs one line an event, on stderr by default, at once (nothing is lost when the process exits right after). Logging
 * never throws and never fails the work: a line that stderr does not take is dropped. Text from outside cannot forge
 * lines or move a terminal's cursor: control characters are escaped.
 */
export function createLogger(options: LoggerOptions = {}): Logger {
  const { level = 'info', format = 'text', write = writeToStderr, now = () => new Date() } = options;
  const loudest = LOG_LEVELS.indexOf(level);

  const make = (bound: LogFields): Logger => {
    const at =
      (lineLevel: LogLevel) =>
      (message: string, fields: LogFields = {}): void => {
        if (LOG_LEVELS.indexOf(lineLevel) > loudest) return;
        const line = format === 'json' ? jsonLine : textLine;
        write(line(now(), lineLevel, message, { ...bound, ...fields }));
      };
    return {
      error: at('error'),
      warn: at('warn'),
      info: at('info'),
      debug: at('debug'),
      child: (fields) => make({ ...bound, ...fields }),
    };
  };
  return make({});
}

function jsonLine(time: Date, level: LogLevel, message: string, fields: LogFields): string {
  const plain = Object.fromEntries(Object.entries(fields).map(([name, value]) => [name, toPlain(value)]));
  return `${JSON.stringify({ ...plain, time: time.toISOString(), level, message })}\n`;
}

function textLine(time: Date, level: LogLevel, message: string, fields: LogFields): string {
  let line = `${time.toISOString()} ${level.padEnd(5)} ${escapeControls(message)}`;
  for (const [name, value] of Object.entries(fields)) {
    const plain = value instanceof Error ? errorLine(value) : toPlain(value);
    if (plain !== undefined) line += ` ${name}=${escapeControls(textValue(plain))}`;
  }
  return `${line}\n`;
}

function textValue(plain: unknown): string {
  if (typeof plain !== 'string') return JSON.stringify(plain);
  return /^[^\s"=]+$/.test(plain) ? plain : JSON.stringify(plain);
}

/** What `JSON.stringify` can always write, and nothing deeper than a log line is good for. */
function toPlain(value: unknown, depth = 0): unknown {
  if (depth > 4) return '…';
  if (value instanceof Error) return plainError(value, depth);
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? 'invalid date' : value.toISOString();
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (Array.isArray(value)) return value.map((item) => toPlain(item, depth + 1));
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, toPlain(item, depth + 1)]));
  }
  return ['bigint', 'symbol', 'function'].includes(typeof value) ? String(value) : value;
}

function plainError(error: Error, depth: number): unknown {
  return toPlain(
    {
      message: error.message,
      code: systemErrorCode(error),
      hint: 'hint' in error ? error.hint : undefined,
      context: 'context' in error ? error.context : undefined,
      cause: error.cause,
    },
    depth,
  );
}

/** An error and its causes as a person reads them. */
function errorLine(error: Error, depth = 0): string {
  const code = systemErrorCode(error);
  const hint = 'hint' in error && typeof error.hint === 'string' ? `; hint: ${error.hint}` : '';
  const cause =
    error.cause instanceof Error && depth < 4 ? `; cause: ${errorLine(error.cause, depth + 1)}` : '';
  return `${error.message}${code === undefined ? '' : ` (${code})`}${hint}${cause}`;
}

/** C0, DEL, C1, and the line and direction marks of Unicode. */
// oxlint-disable-next-line eslint/no-control-regex
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

function escapeControls(text: string): string {
  return text.replace(CONTROLS, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** How often, at 1 ms each, a full pipe is tried again before the rest of a line is dropped. */
const FULL_PIPE_ATTEMPTS = 100;

/** Not `process.stderr`: setting up that stream costs milliseconds, and a closed pipe would end the process. */
function writeToStderr(line: string): void {
  const bytes = Buffer.from(line);
  let position = 0;
  for (let attempts = 0; position < bytes.length && attempts < FULL_PIPE_ATTEMPTS;) {
    try {
      position += writeSync(2, bytes, position);
    } catch (error) {
      if (systemErrorCode(error) !== 'EAGAIN') return;
      attempts += 1;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}
