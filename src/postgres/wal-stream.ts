import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn, lsnOf } from './lsn.ts';
import type { CopySink } from './replication-wire.ts';
import type { TimelineId } from './timeline.ts';

/** Takes streamed WAL. What a call throws, or its promise rejects with, ends the stream and is what it rejects with. */
export interface WalStreamSink {
  /** The stream runs; reports may be sent from now on. */
  started?(control: WalStreamControl): void;
  /**
   * Consecutive bytes from `start` on; `at` is the position of the first. Valid during the call and, where it returns a
   * promise, until that resolves (copy what is kept longer). A returned promise pauses the connection.
   */
  write(bytes: Buffer, at: Lsn): Promise<void> | undefined;
  /**
   * The server's end of WAL and its clock, microseconds since 1970. Called for keepalives and for the header of data
   * messages, before their bytes. A reply that is asked for is sent without doing anything here.
   */
  heard?(serverEnd: Lsn, serverTime: bigint, replyRequested: boolean): void;
  /**
   * The server is shutting down: it has sent everything and waits until all of it is reported as flushed, or until the
   * stream is stopped. Whoever cannot report it soon should stop, or the server's shutdown hangs. Called once.
   */
  serverStops?(): void;
}

export interface WalStreamControl {
  /**
   * Standby status update, sent at once and repeated by itself, also while the sink has paused the connection. What is
   * `flushed` the server may remove. Positions never go back; the server is never told of more than it has sent.
   * Nothing where the stream has ended.
   */
  report(status: { written: Lsn; flushed: Lsn; applied?: Lsn; replyRequested?: boolean }): void;
  /** Ends the stream politely; the sink gets no more bytes, and streamWal() resolves with 'stopped'. */
  stop(): void;
}

export type WalStreamEnd =
  /**
   * The server left this timeline at `switchPoint`, where `nextTimeline` begins, and everything up to there was handed
   * over. A promoted standby may have sent some bytes beyond: the beginning of a record that never became whole, and not
   * part of any history.
   */
  { kind: 'timeline-ended'; nextTimeline: TimelineId; switchPoint: Lsn } | { kind: 'stopped' };

/** Microseconds from 1970 to 2000, where PostgreSQL's clock begins. */
const POSTGRES_EPOCH = 946_684_800_000_000n;

const DATA = 0x77;
const KEEPALIVE = 0x6b;
const DATA_HEADER = 25;
const KEEPALIVE_SIZE = 18;

/** What the reader hands on. */
export interface WalMessages {
  write(bytes: Buffer, at: Lsn): Promise<void> | undefined;
  heard(serverEnd: Lsn, serverTime: bigint, replyRequested: boolean): void;
}

/**
 * Makes WAL out of the messages of a stream (PostgreSQL manual, "Streaming Replication Protocol": XLogData, primary
 * keepalive), slice by slice, and holds that nothing is missing or comes twice. Throws `object-damaged`.
 */
export class WalStreamReader implements CopySink {
  pending: Promise<void> | undefined;
  /** Everything before was handed over. */
  position: Lsn;
  /** The rest is read, but not handed over. */
  discards = false;

  readonly #to: WalMessages;
  readonly #head = Buffer.alloc(DATA_HEADER);
  #headFilled = 0;
  #headSize = 0;

  constructor(start: Lsn, to: WalMessages) {
    this.position = start;
    this.#to = to;
  }

  slice(chunk: Buffer, start: number, end: number, first: boolean, last: boolean): number {
    let at = start;
    if (first) {
      if (at === end) {
        if (last) throw damaged('an empty message');
        return at;
      }
      this.#headSize = headerSize(chunk[at] ?? 0);
      this.#headFilled = 0;
    }
    if (this.#headFilled < this.#headSize) {
      const size = Math.min(this.#headSize - this.#headFilled, end - at);
      chunk.copy(this.#head, this.#headFilled, at, at + size);
      this.#headFilled += size;
      at += size;
      if (this.#headFilled < this.#headSize) {
        if (last) throw damaged('a message that is too short');
        return at;
      }
      this.#begin();
    }
    if (at === end) return at;
    if (this.#head[0] !== DATA) throw damaged('a keepalive that is too long');
    if (!this.discards) {
      const from = this.position;
      this.position = lsnOf(from + BigInt(end - at));
      this.pending = this.#to.write(chunk.subarray(at, end), from);
    }
    return end;
  }

  #begin(): void {
    const head = this.#head;
    if (head[0] === KEEPALIVE) {
      this.#to.heard(lsnOf(head.readBigUInt64BE(1)), timeAt(head, 9), head[17] !== 0);
      return;
    }
    const from = lsnOf(head.readBigUInt64BE(1));
    if (!this.discards && from !== this.position) {
      throw damaged(`bytes from ${formatLsn(from)} where those from ${formatLsn(this.position)} follow`);
    }
    this.#to.heard(lsnOf(head.readBigUInt64BE(9)), timeAt(head, 17), false);
  }
}

export interface StandbyStatus {
  written: Lsn;
  /** 0/0: nothing is said of it, and a slot stays where it is. */
  flushed: Lsn;
  applied: Lsn;
  /** Microseconds since 1970. */
  time: bigint;
  replyRequested: boolean;
}

/** The message "Standby status update". */
export function encodeStandbyStatus(status: StandbyStatus): Buffer {
  const body = Buffer.alloc(34);
  body.write('r', 0, 'latin1');
  body.writeBigUInt64BE(status.written, 1);
  body.writeBigUInt64BE(status.flushed, 9);
  body.writeBigUInt64BE(status.applied, 17);
  body.writeBigInt64BE(status.time - POSTGRES_EPOCH, 25);
  body.writeUInt8(status.replyRequested ? 1 : 0, 33);
  return body;
}

function headerSize(type: number): number {
  if (type === DATA) return DATA_HEADER;
  if (type === KEEPALIVE) return KEEPALIVE_SIZE;
  throw damaged(`a message of type ${type}`);
}

function timeAt(head: Buffer, offset: number): bigint {
  return head.readBigInt64BE(offset) + POSTGRES_EPOCH;
}

function damaged(what: string): HoldfastError {
  return new HoldfastError('object-damaged', `the server's stream of wal cannot be used: it sent ${what}`);
}
