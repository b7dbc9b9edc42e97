import { fitLine, progressLine, RateWindow, timeLeftMs, type ProgressState } from './progress.ts';

/** Where text goes; the process's own streams, or a test's. */
export interface Sink {
  write(text: string): void;
  isTerminal: boolean;
  columns(): number;
}

export interface OutputOptions {
  stdout: Sink;
  stderr: Sink;
  json: boolean;
  quiet: boolean;
  verbose: boolean;
  nowMs: () => number;
}

export interface Progress {
  update(state: ProgressState): void;
  /** Clears the line. Safe to call twice. */
  end(): void;
}

const TERMINAL_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 5000;

/**
 * Data goes to stdout; everything said on the way goes to stderr. With `--json`, stdout carries JSON lines only: any
 * number of events (each with an `event` key), then the result.
 */
export class Output {
  readonly json: boolean;
  readonly verbose: boolean;
  readonly #options: OutputOptions;
  #lineShown = false;

  constructor(options: OutputOptions) {
    this.#options = options;
    this.json = options.json;
    this.verbose = options.verbose;
  }

  /** The result: one JSON object with `--json`, else the text. Called once, last. */
  result(value: object, text: () => string): void {
    this.#clearLine();
    const body = this.json ? jsonLine(value) : text();
    if (body !== '') this.#options.stdout.write(body.endsWith('\n') ? body : `${body}\n`);
  }

  /** Data printed as it comes: a JSON event, or the line of text. */
  event(event: string, value: object, text: string): void {
    this.#clearLine();
    this.#options.stdout.write(this.json ? jsonLine({ event, ...value }) : `${text}\n`);
  }

  /** Said unless `--quiet`. */
  note(text: string): void {
    if (!this.#options.quiet) this.#say(text);
  }

  /** Said always. */
  warn(text: string): void {
    this.#say(`warning: ${text}`);
  }

  /** Said with `--verbose`. */
  debug(text: string): void {
    if (this.verbose) this.#say(text);
  }

  #say(text: string): void {
    this.#clearLine();
    this.#options.stderr.write(`${text}\n`);
  }

  /** A terminal gets one line that is written over; anything else a line, or a JSON event, at most every five seconds. */
  progress(title: string): Progress {
    const { stderr, stdout, quiet, nowMs } = this.#options;
    const live = stderr.isTerminal && !this.json && !quiet;
    const interval = live ? TERMINAL_INTERVAL_MS : PLAIN_INTERVAL_MS;
    const window = new RateWindow();
    let shownAt = live ? Number.NEGATIVE_INFINITY : nowMs();
    return {
      update: (state) => {
        const now = nowMs();
        window.add(now, state.doneBytes);
        if (now - shownAt < interval) return;
        shownAt = now;
        const rate = window.rate();
        if (this.json) stdout.write(jsonLine({ event: 'progress', title, ...progressEvent(state, rate) }));
        else if (live) {
          stderr.write(`\r\u001B[2K${fitLine(progressLine(title, state, rate), stderr.columns())}`);
          this.#lineShown = true;
        } else if (!quiet) stderr.write(`${fitLine(progressLine(title, state, rate), 200)}\n`);
      },
      end: () => this.#clearLine(),
    };
  }

  #clearLine(): void {
    if (!this.#lineShown) return;
    this.#lineShown = false;
    this.#options.stderr.write('\r\u001B[2K');
  }
}

function progressEvent(state: ProgressState, rate: number | undefined): object {
  const left = timeLeftMs(state, rate);
  return {
    doneBytes: state.doneBytes,
    totalBytes: state.totalBytes ?? null,
    bytesPerSecond: rate === undefined ? null : Math.round(rate),
    secondsLeft: left === undefined ? null : Math.round(left / 1000),
    detail: state.detail ?? null,
  };
}

/** Times become RFC 3339 in UTC; 64-bit numbers stay exact as text. */
export function jsonLine(value: object): string {
  const body = JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === 'bigint' ? inner.toString() : inner,
  );
  return `${body}\n`;
}
