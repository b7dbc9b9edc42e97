import type { Socket } from 'node:net';
import { HoldfastError, errorText } from '../errors.ts';
import { serverError } from './server-errors.ts';

/** One row of a text result; NULL is undefined. Values are "binary" strings: one character for each byte. */
export type WireRow = readonly (string | undefined)[];

/** Takes a COPY stream. A returned promise pauses the connection until it resolves. */
export interface CopySink {
  /**
   * A slice of one CopyData message: `first` for its first slice, `last` for its last (`end` may equal `start` then).
   * Takes bytes from `start` and returns the position up to which it took them. To make the connection wait, it sets
   * `pending`; it is called again from the returned position once that resolves.
   */
  slice(chunk: Buffer, start: number, end: number, first: boolean, last: boolean): number;
  pending: Promise<void> | undefined;
}

export interface QueryHandlers {
  row?(row: WireRow): void;
  /** A command's result set, or the COPY, is complete. */
  done?(what: 'command' | 'copy'): void;
  /** Takes what the server sends in a COPY. */
  copy?: CopySink;
  /** A COPY in both directions began: from now on `sendCopyData` works. Where this is missing, none may begin. */
  copyBoth?(): void;
  notice?(message: string): void;
  /** Instead of the connection's: the longest silence of the server before it is taken for gone. */
  stallMs?: number;
  /** Half of that passed in silence; called once for each silence. */
  quiet?(): void;
}

/** Error, notice and row messages are kept whole; a COPY never is. Timeline histories are the largest of them. */
const LONGEST_MESSAGE = 16 * 1024 * 1024;

/** What may wait in this process for a server that does not read. */
const MOST_UNSENT = 64 * 1024;

const TYPE = {
  copyData: 0x64,
  copyDone: 0x63,
  copyOut: 0x48,
  copyBoth: 0x57,
  commandComplete: 0x43,
  dataRow: 0x44,
  error: 0x45,
  notice: 0x4e,
  ready: 0x5a,
};

/**
 * The simple query protocol over a socket that somebody else authenticated (PostgreSQL manual, "Frontend/Backend
 * Protocol"). One query at a time. Content of a COPY is handed on as slices of what the socket delivered, so that no
 * byte is copied and no buffer made for a message.
 */
export class ReplicationWire {
  readonly #socket: Socket;
  readonly #server: string;
  readonly #stallMs: number;
  #query:
    | { what: string; handlers: QueryHandlers; resolve(): void; reject(error: unknown): void }
    | undefined;
  #failure: HoldfastError | undefined;
  /** What the server complained of; thrown once it is ready again. */
  #complaint: HoldfastError | undefined;
  readonly #waiting: Buffer[] = [];
  #busy = false;
  #lastHeard = performance.now();
  #wasQuiet = false;
  /** The server takes CopyData from us. */
  #canSend = false;

  // The message being read: its type, what of its body is still to come, and its kept part.
  readonly #head = Buffer.alloc(5);
  #headFilled = 0;
  #type = 0;
  #left = 0;
  #first = false;
  #body: Buffer | undefined;
  #bodyFilled = 0;

  constructor(socket: Socket, server: string, stallMs: number) {
    this.#socket = socket;
    this.#server = server;
    this.#stallMs = stallMs;
    // The client that authenticated must not see what comes from here on.
    socket.removeAllListeners('data');
    socket.on('data', (chunk: Buffer) => {
      this.#heard();
      // What comes although we paused must outlive this event.
      this.#waiting.push(this.#busy ? Buffer.from(chunk) : chunk);
      this.#drain();
    });
    socket.on('error', (error) => {
      this.#fail(
        new HoldfastError('connection-lost', `${server} broke the connection: ${errorText(error)}`, {
          cause: error,
        }),
      );
    });
    socket.on('close', () => {
      this.#fail(new HoldfastError('connection-lost', `${server} closed the connection`));
    });
    socket.resume();
  }

  /** Runs one command; `what` names it in messages. Rejects with the server's complaint when it is ready again. */
  async query(what: string, text: string, handlers: QueryHandlers): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#query !== undefined)
      throw new HoldfastError('assertion', 'a replication command is running already');
    this.#complaint = undefined;
    this.#canSend = false;
    const stalled = this.#watch(handlers.stallMs ?? this.#stallMs);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#query = { what, handlers, resolve, reject };
        this.#heard();
        this.#socket.write(message('Q', Buffer.from(`${text}\0`)));
      });
    } finally {
      clearInterval(stalled);
      this.#query = undefined;
      this.#canSend = false;
    }
  }

  /**
   * Sends a message into a COPY in both directions, also while a sink makes the reading side wait. False where it was
   * not sent: outside of such a COPY, and where the server has not taken what was sent before.
   */
  sendCopyData(body: Buffer): boolean {
    if (!this.#canSend || this.#socket.destroyed || this.#socket.writableLength > MOST_UNSENT) return false;
    this.#socket.write(message('d', body));
    return true;
  }

  /** Ends our side of a COPY in both directions; the server ends its own in answer. */
  endCopy(): void {
    if (!this.#canSend) return;
    this.#canSend = false;
    if (!this.#socket.destroyed) this.#socket.write(message('c', Buffer.alloc(0)));
  }

  /** Breaks the connection; a running query rejects with `reason`. */
  abort(reason: HoldfastError): void {
    this.#fail(reason);
  }

  /** Ends the session; resolves when the server has hung up. */
  async close(): Promise<void> {
    this.#failure ??= new HoldfastError('connection-lost', `the connection to ${this.#server} was closed`);
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      const forced = setTimeout(() => this.#socket.destroy(), 2000);
      this.#socket.once('close', () => {
        clearTimeout(forced);
        resolve();
      });
      this.#socket.end(message('X', Buffer.alloc(0)));
      this.#socket.resume();
    });
  }

  #heard(): void {
    this.#lastHeard = performance.now();
    this.#wasQuiet = false;
  }

  /** A server that sends nothing for too long while we are ready to read is taken for gone. */
  #watch(stallMs: number): NodeJS.Timeout | undefined {
    if (stallMs === 0) return undefined;
    const look = (): void => {
      if (this.#busy) {
        this.#heard();
        return;
      }
      const silent = performance.now() - this.#lastHeard;
      if (silent > stallMs) {
        this.#fail(
          new HoldfastError('connection-lost', `${this.#server} sent nothing for ${stallMs} ms`, {
            hint: 'look at the server, and at firewalls that forget idle connections',
          }),
        );
      } else if (silent > stallMs / 2 && !this.#wasQuiet) {
        this.#wasQuiet = true;
        this.#query?.handlers.quiet?.();
      }
    };
    return setInterval(look, Math.min(stallMs / 4, 1000)).unref();
  }

  #fail(error: HoldfastError): void {
    this.#failure ??= error;
    this.#waiting.length = 0;
    this.#socket.destroy();
    this.#query?.reject(this.#complaint ?? error);
  }

  #drain(): void {
    if (this.#busy) return;
    for (let chunk = this.#waiting.shift(); chunk !== undefined; chunk = this.#waiting.shift()) {
      if (!this.#take(chunk, 0)) return;
    }
  }

  /** Reads from `start`; false where a sink made us wait, after which it goes on by itself. */
  #take(chunk: Buffer, start: number): boolean {
    try {
      const at = this.#read(chunk, start);
      const copy = this.#query?.handlers.copy;
      if (copy?.pending === undefined) return true;
      this.#busy = true;
      this.#socket.pause();
      void this.#goOn(copy, chunk, at);
      return false;
    } catch (error) {
      this.#broken(error);
      return false;
    }
  }

  async #goOn(copy: CopySink, chunk: Buffer, at: number): Promise<void> {
    try {
      await copy.pending;
    } catch (error) {
      this.#broken(error);
      return;
    }
    copy.pending = undefined;
    this.#busy = false;
    if (this.#failure !== undefined || !this.#take(chunk, at)) return;
    this.#drain();
    if (!this.#isBusy()) this.#socket.resume();
  }

  #isBusy(): boolean {
    return this.#busy;
  }

  /** A sink failed, or the stream makes no sense: nothing more can be read from this connection. */
  #broken(error: unknown): void {
    this.#query?.reject(error);
    this.#fail(
      new HoldfastError('connection-lost', `the connection to ${this.#server} was given up`, {
        cause: error,
      }),
    );
  }

  #read(chunk: Buffer, start: number): number {
    let at = start;
    for (;;) {
      if (this.#headFilled < 5) {
        if (at >= chunk.length) return at;
        const size = Math.min(5 - this.#headFilled, chunk.length - at);
        if (this.#headFilled === 0 && size === 5) {
          this.#begin(chunk[at] ?? 0, chunk.readUInt32BE(at + 1));
        } else {
          chunk.copy(this.#head, this.#headFilled, at, at + size);
          if (this.#headFilled + size === 5) this.#begin(this.#head[0] ?? 0, this.#head.readUInt32BE(1));
        }
        this.#headFilled += size;
        at += size;
        if (this.#headFilled < 5) return at;
      }
      if (this.#type === TYPE.copyData) {
        const copy = this.#query?.handlers.copy;
        if (copy === undefined) throw this.#nonsense('data that nobody asked for');
        const end = Math.min(at + this.#left, chunk.length);
        if (at === end && this.#left > 0) return at;
        const next = copy.slice(chunk, at, end, this.#first, end - at === this.#left);
        this.#first = false;
        this.#left -= next - at;
        at = next;
        // Also with nothing left: the sink may have something to do after its last byte.
        if (copy.pending !== undefined) return at;
        if (this.#left > 0) continue;
      } else {
        const size = Math.min(this.#left, chunk.length - at);
        if (this.#left > size || this.#body !== undefined) {
          this.#body ??= Buffer.allocUnsafe(this.#left);
          chunk.copy(this.#body, this.#bodyFilled, at, at + size);
          this.#bodyFilled += size;
        }
        const body = this.#body ?? chunk.subarray(at, at + size);
        this.#left -= size;
        at += size;
        if (this.#left > 0) return at;
        this.#body = undefined;
        this.#bodyFilled = 0;
        this.#takeMessage(this.#type, body);
      }
      this.#headFilled = 0;
    }
  }

  #begin(type: number, length: number): void {
    const isCopy = type === TYPE.copyData;
    if (length < 4 || (!isCopy && length > LONGEST_MESSAGE))
      throw this.#nonsense(`a message of ${length} bytes`);
    this.#type = type;
    this.#left = length - 4;
    this.#first = true;
  }

  #takeMessage(type: number, body: Buffer): void {
    const query = this.#query;
    switch (type) {
      case TYPE.dataRow:
        query?.handlers.row?.(parseRow(body));
        break;
      case TYPE.commandComplete:
        query?.handlers.done?.('command');
        break;
      case TYPE.copyDone:
        this.endCopy();
        query?.handlers.done?.('copy');
        break;
      case TYPE.notice:
        query?.handlers.notice?.(parseReport(body).message);
        break;
      case TYPE.error:
        this.#canSend = false;
        this.#complaint ??= serverError(`${query?.what ?? 'session'} on ${this.#server}`, parseReport(body));
        break;
      case TYPE.ready:
        if (this.#complaint === undefined) query?.resolve();
        else query?.reject(this.#complaint);
        break;
      case TYPE.copyBoth:
        if (query?.handlers.copyBoth === undefined) throw this.#nonsense('a stream in both directions');
        this.#canSend = true;
        query.handlers.copyBoth();
        break;
      default:
        // RowDescription, CopyOutResponse, ParameterStatus and the like carry nothing that is needed.
        break;
    }
  }

  #nonsense(what: string): HoldfastError {
    return new HoldfastError(
      'server-error',
      `${this.#server} does not keep to the protocol: it sent ${what}`,
    );
  }
}

function message(type: string, body: Buffer): Buffer {
  const bytes = Buffer.allocUnsafe(5 + body.length);
  bytes.write(type, 0, 'latin1');
  bytes.writeUInt32BE(bytes.length - 1, 1);
  body.copy(bytes, 5);
  return bytes;
}

function parseRow(body: Buffer): WireRow {
  const row: (string | undefined)[] = [];
  let at = 2;
  for (let column = body.readUInt16BE(0); column > 0; column--) {
    const size = body.readInt32BE(at);
    at += 4;
    row.push(size < 0 ? undefined : body.toString('latin1', at, at + size));
    at += Math.max(size, 0);
  }
  return row;
}

function parseReport(body: Buffer): { message: string; sqlState: string; hint: string | undefined } {
  const fields = new Map<string, string>();
  for (const field of body.toString('utf8').split('\0'))
    if (field !== '') fields.set(field.charAt(0), field.slice(1));
  const detail = fields.get('D');
  const text = fields.get('M') ?? 'unknown error';
  return {
    message: detail === undefined ? text : `${text} (${detail})`,
    sqlState: fields.get('C') ?? 'XX000',
    hint: fields.get('H'),
  };
}
