import { HoldfastError } from '../errors.ts';

/**
 * One member of an archive. Names are "binary" strings: one character (U+0000 to U+00FF) for each byte, so that any
 * file name survives; `Buffer.from(path, 'latin1')` gives the bytes that the file system wants.
 */
export interface TarEntry {
  /** Relative, `/`-separated, without `.`, `..`, empty components or a slash at the end. */
  path: string;
  kind: 'file' | 'directory' | 'symlink';
  /** Bytes of content; 0 unless a file. */
  sizeBytes: number;
  /** Permission bits. */
  mode: number;
  modified: Date;
  /** Of a symlink, as it stands in the archive: absolute as a rule. */
  linkTarget?: string;
}

/** Takes what an archive holds. A returned promise is back-pressure: nothing more comes before it resolves. */
export interface TarSink {
  entry(entry: TarEntry): void | Promise<void>;
  /** Bytes of the current file, valid only until the call returns or its promise resolves. */
  data(chunk: Buffer): void | Promise<void>;
  /** After the last byte of each file (not after directories and symlinks). */
  entryEnd(): void | Promise<void>;
}

const BLOCK = 512;

/**
 * Incremental reader of the ustar dialect that PostgreSQL writes: regular files, directories and symlinks, names up to
 * 99 bytes, sizes in octal or (over 8 GiB) base 256, two zero blocks at the end. Copies no content: `data` gets slices
 * of what `read` was given. Anything else in the archive, and any name that would leave its directory, is
 * `object-damaged`.
 *
 * Call `read` with ever more bytes. Where it stops early, `pending` holds the sink's promise: await it, clear it, and
 * call `read` again from the returned position, even if no bytes are left there.
 */
export class TarReader {
  pending: Promise<void> | undefined;

  readonly #sink: TarSink;
  readonly #header = Buffer.alloc(BLOCK);
  #state: 'header' | 'body' | 'body-end' | 'padding' | 'end' = 'header';
  #filled = 0;
  #left = 0;
  #padding = 0;

  constructor(sink: TarSink) {
    this.#sink = sink;
  }

  /** Takes the bytes from `start` to `end`; returns the position up to which they were taken. */
  read(chunk: Buffer, start: number, end: number): number {
    let at = start;
    while (this.pending === undefined && (at < end || this.#state === 'body-end')) {
      switch (this.#state) {
        case 'header': {
          const size = Math.min(BLOCK - this.#filled, end - at);
          chunk.copy(this.#header, this.#filled, at, at + size);
          this.#filled += size;
          at += size;
          if (this.#filled === BLOCK) this.#takeHeader();
          break;
        }
        case 'body': {
          const size = Math.min(this.#left, end - at);
          this.#wait(this.#sink.data(chunk.subarray(at, at + size)));
          this.#left -= size;
          at += size;
          if (this.#left === 0) this.#state = 'body-end';
          break;
        }
        case 'body-end':
          this.#state = this.#padding > 0 ? 'padding' : 'header';
          this.#wait(this.#sink.entryEnd());
          break;
        case 'padding': {
          const size = Math.min(this.#padding, end - at);
          this.#padding -= size;
          at += size;
          if (this.#padding === 0) this.#state = 'header';
          break;
        }
        case 'end':
          // Zero blocks fill the archive up.
          for (; at < end; at++) if (chunk[at] !== 0) throw damaged('bytes after the end of the archive');
          break;
      }
    }
    return at;
  }

  /** To be called after the last byte: throws `object-damaged` where the archive was cut short. */
  finish(): void {
    // PostgreSQL 15 and later end archives properly; a bare end after a whole entry is tolerated by every tar.
    const whole = this.#state === 'end' || (this.#state === 'header' && this.#filled === 0);
    if (!whole) throw damaged('the archive ends within an entry');
  }

  #wait(result: void | Promise<void>): void {
    if (result !== undefined) this.pending = result;
  }

  #takeHeader(): void {
    this.#filled = 0;
    if (isZero(this.#header)) {
      this.#state = 'end';
      return;
    }
    const entry = parseHeader(this.#header);
    if (entry.kind === 'file') {
      this.#left = entry.sizeBytes;
      this.#padding = (BLOCK - (entry.sizeBytes % BLOCK)) % BLOCK;
      this.#state = entry.sizeBytes > 0 ? 'body' : 'body-end';
    }
    this.#wait(this.#sink.entry(entry));
  }
}

/**
 * Checks a relative path from outside: throws `object-damaged` for one that is absolute, empty, or has an empty, `.` or
 * `..` component or a NUL.
 */
export function assertSafePath(path: string): void {
  const safe =
    path !== '' &&
    !path.includes('\0') &&
    path.split('/').every((part) => part !== '' && part !== '.' && part !== '..');
  if (!safe) throw damaged(`the name ${JSON.stringify(path)} would leave its directory`);
}

function parseHeader(header: Buffer): TarEntry {
  let sum = 8 * 0x20;
  for (let at = 0; at < BLOCK; at++) if (at < 148 || at >= 156) sum += header[at] ?? 0;
  if (readNumber(header, 148, 8) !== sum) throw damaged('the checksum of a header is wrong');
  if (header.toString('latin1', 257, 262) !== 'ustar') throw damaged('a header is not of the ustar format');

  const name = readText(header, 0, 100);
  const prefix = readText(header, 345, 155);
  const kind = kindOf(header.toString('latin1', 156, 157));
  const full = prefix === '' ? name : `${prefix}/${name}`;
  // PostgreSQL ends the names of directories and of symlinks with a slash, and begins a few with `./`.
  const bare = full.startsWith('./') ? full.slice(2) : full;
  const path = kind === 'file' || !bare.endsWith('/') ? bare : bare.slice(0, -1);
  assertSafePath(path);
  const size = readNumber(header, 124, 12);
  return {
    path,
    kind,
    sizeBytes: kind === 'file' ? size : 0,
    mode: readNumber(header, 100, 8) & 0o7777,
    modified: new Date(readNumber(header, 136, 12) * 1000),
    ...(kind === 'symlink' ? { linkTarget: readText(header, 157, 100) } : {}),
  };
}

function kindOf(type: string): TarEntry['kind'] {
  switch (type) {
    case '0':
    case '\0':
      return 'file';
    case '2':
      return 'symlink';
    case '5':
      return 'directory';
    default:
      throw damaged(`an entry has the unknown type ${JSON.stringify(type)}`);
  }
}

function readText(header: Buffer, start: number, size: number): string {
  const text = header.toString('latin1', start, start + size);
  const end = text.indexOf('\0');
  return end < 0 ? text : text.slice(0, end);
}

/** An octal number, or a big-endian one of base 256 whose first byte is 0x80. */
function readNumber(header: Buffer, start: number, size: number): number {
  const first = header[start] ?? 0;
  let value: number;
  if (first === 0x80) {
    value = 0;
    for (let at = start + 1; at < start + size; at++) value = value * 256 + (header[at] ?? 0);
  } else {
    const text = readText(header, start, size).trim();
    value = /^[0-7]+$/.test(text) ? Number.parseInt(text, 8) : Number.NaN;
  }
  if (!Number.isSafeInteger(value)) throw damaged('a header holds a number that is none');
  return value;
}

function isZero(block: Buffer): boolean {
  return block.every((byte) => byte === 0);
}

function damaged(why: string): HoldfastError {
  return new HoldfastError('object-damaged', `the server's base backup is not a valid archive: ${why}`);
}
