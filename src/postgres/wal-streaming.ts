import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn, lsnOf, parseLsn } from './lsn.ts';
import type { ReplicationWire, WireRow } from './replication-wire.ts';
import { type TimelineId, timelineOf } from './timeline.ts';
import {
  type WalStreamControl,
  type WalStreamEnd,
  type WalStreamSink,
  WalStreamReader,
  encodeStandbyStatus,
} from './wal-stream.ts';

export interface WalStreamOptions {
  /** A physical slot. Its `restart_lsn` follows what is reported as flushed. */
  slot?: string;
  timeline: TimelineId;
  /** Any position of the timeline up to the server's end of WAL; the beginning of a segment is usual. */
  start: Lsn;
  signal?: AbortSignal;
  /**
   * A server that sends nothing for so long although it was asked to is taken for gone. Default 60 s; 0 for no limit.
   * The time during which the sink pauses the connection does not count.
   */
  stallMs?: number;
}

/** While the sink pauses the connection a request for a reply cannot be seen, so replies are sent unasked. */
const PAUSED_STATUS_MS = 250;
const STATUS_MS = 10_000;
/** A server that shuts down asks again as soon as it is answered. */
const REPLY_MS = 100;
/** Two requests for a reply this close, by the server's clock, are not due to wal_sender_timeout. */
const HASTY_US = 600_000n;
const HASTY_COUNT = 4;

/** Runs START_REPLICATION to its end; see `ReplicationConnection.streamWal`. */
export async function runWalStream(
  wire: ReplicationWire,
  server: string,
  options: WalStreamOptions,
  sink: WalStreamSink,
): Promise<WalStreamEnd> {
  const { timeline, start, signal, stallMs = 60_000 } = options;
  const session = new WalStreamSession(wire, start, sink);
  const rows: WireRow[] = [];
  const onAbort = (): void => {
    wire.abort(new HoldfastError('cancelled', `streaming wal from ${server} was cancelled`));
  };
  signal?.addEventListener('abort', onAbort, { once: true });
  if (signal?.aborted === true) onAbort();
  try {
    await wire.query('START_REPLICATION', startCommand(options), {
      stallMs,
      copy: session.reader,
      copyBoth: () => {
        session.begin();
      },
      row: (row) => rows.push(row),
      done: (what) => {
        session.done(what);
      },
      quiet: () => {
        session.askForReply();
      },
    });
  } catch (error) {
    const isLost = error instanceof HoldfastError && error.code === 'connection-lost';
    // Nothing was owed to us any more.
    if (isLost && session.stopped) return { kind: 'stopped' };
    if (isLost && session.serverIsDown) {
      throw new HoldfastError('connection-lost', `${server} shut down`, { cause: error });
    }
    throw error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    session.end();
  }
  if (session.stopped) return { kind: 'stopped' };
  const [next, switchText] = rows[0] ?? [];
  if (next === undefined || switchText === undefined) {
    throw new HoldfastError(
      'server-error',
      `${server} ended the stream of timeline ${timeline} without a word`,
    );
  }
  const switchPoint = parseLsn(switchText);
  if (session.reader.position < switchPoint) {
    throw new HoldfastError(
      'object-damaged',
      `${server} ended timeline ${timeline} at ${formatLsn(switchPoint)}, but sent it only up to ${formatLsn(session.reader.position)}`,
    );
  }
  return { kind: 'timeline-ended', nextTimeline: timelineOf(Number(next)), switchPoint };
}

function startCommand({ slot, timeline, start }: WalStreamOptions): string {
  const from = slot === undefined ? '' : `SLOT ${slotIdentifier(slot)} `;
  return `START_REPLICATION ${from}PHYSICAL ${formatLsn(start)} TIMELINE ${timeline}`;
}

/** A slot's name in a replication command. Throws `usage-invalid` where no slot can have it. */
export function slotIdentifier(name: string): string {
  if (!/^[a-z0-9_]{1,63}$/.test(name)) {
    throw new HoldfastError('usage-invalid', `no replication slot can have the name "${name}"`, {
      hint: 'use up to 63 lower-case letters, digits and underscores',
    });
  }
  return `"${name}"`;
}

/** One stream: what was reported, when, and whether it is at its end. */
class WalStreamSession {
  readonly reader: WalStreamReader;
  stopped = false;
  /** It said so and then went. */
  serverIsDown = false;

  readonly #wire: ReplicationWire;
  readonly #sink: WalStreamSink;
  #written: Lsn;
  #flushed = lsnOf(0n);
  #applied = lsnOf(0n);
  #lastSent = 0;
  #unsent = false;
  #timer: NodeJS.Timeout | undefined;
  #reply: NodeJS.Timeout | undefined;
  #copyEnded = false;
  #lastRequest = 0n;
  #hasty = 0;

  constructor(wire: ReplicationWire, start: Lsn, sink: WalStreamSink) {
    this.#wire = wire;
    this.#sink = sink;
    this.#written = start;
    this.reader = new WalStreamReader(start, {
      write: (bytes, at) => sink.write(bytes, at),
      heard: (serverEnd, serverTime, replyRequested) => {
        this.#heard(serverEnd, serverTime, replyRequested);
      },
    });
  }

  begin(): void {
    this.#timer = setInterval(() => {
      const silentMs = performance.now() - this.#lastSent;
      const isPaused = this.reader.pending !== undefined;
      if (isPaused || silentMs >= STATUS_MS || this.#unsent) this.#send(false);
    }, PAUSED_STATUS_MS);
    const control: WalStreamControl = {
      report: ({ written, flushed, applied, replyRequested = false }) => {
        this.#written = later(this.#written, later(written, flushed));
        this.#flushed = later(this.#flushed, flushed);
        if (applied !== undefined) this.#applied = later(this.#applied, applied);
        this.#send(replyRequested);
      },
      stop: () => {
        if (this.#copyEnded || this.stopped) return;
        this.stopped = true;
        this.reader.discards = true;
        this.#wire.endCopy();
      },
    };
    this.#sink.started?.(control);
  }

  done(what: 'command' | 'copy'): void {
    if (what === 'copy') this.#copyEnded = true;
    else if (!this.#copyEnded) this.serverIsDown = true;
  }

  askForReply(): void {
    this.#send(true);
  }

  end(): void {
    clearInterval(this.#timer);
    clearTimeout(this.#reply);
    this.#copyEnded = true;
  }

  #heard(serverEnd: Lsn, serverTime: bigint, replyRequested: boolean): void {
    this.#sink.heard?.(serverEnd, serverTime, replyRequested);
    if (!replyRequested) {
      this.#hasty = 0;
      return;
    }
    this.#hasty = serverTime - this.#lastRequest < HASTY_US ? this.#hasty + 1 : 0;
    this.#lastRequest = serverTime;
    if (this.#hasty === HASTY_COUNT && !this.stopped) this.#sink.serverStops?.();
    const waitMs = this.#lastSent + REPLY_MS - performance.now();
    if (waitMs <= 0) {
      this.#send(false);
    } else {
      this.#reply ??= setTimeout(() => {
        this.#reply = undefined;
        this.#send(false);
      }, waitMs).unref();
    }
  }

  #send(replyRequested: boolean): void {
    const { position } = this.reader;
    this.#unsent = !this.#wire.sendCopyData(
      encodeStandbyStatus({
        written: earlier(this.#written, position),
        flushed: earlier(this.#flushed, position),
        applied: earlier(this.#applied, position),
        time: BigInt(Date.now()) * 1000n,
        replyRequested,
      }),
    );
    if (!this.#unsent) this.#lastSent = performance.now();
  }
}

function later(a: Lsn, b: Lsn): Lsn {
  return a > b ? a : b;
}

function earlier(a: Lsn, b: Lsn): Lsn {
  return a < b ? a : b;
}
