import { createHash } from 'node:crypto';
import { HoldfastError } from '../errors.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import { type SystemIdentifier, parseSystemIdentifier } from './system-identifier.ts';
import { assertSafePath } from './tar-reader.ts';
import { type TimelineId, timelineOf } from './timeline.ts';

/** One file of a base backup as PostgreSQL saw it when sending. */
export interface ManifestFile {
  /** Relative to the data directory, a "binary" string as in `BackupEntry`. */
  path: string;
  sizeBytes: number;
  modified: Date;
  checksum?: { algorithm: string; hex: string };
}

/** WAL that the backup needs to become consistent. */
export interface WalRange {
  timeline: TimelineId;
  start: Lsn;
  end: Lsn;
}

export interface ManifestEnd {
  version: 1 | 2;
  /** Since version 2, which PostgreSQL 17 brought. */
  systemIdentifier: SystemIdentifier | undefined;
  walRanges: WalRange[];
  fileCount: number;
}

/** A path is at most a few KiB, even in hexadecimal. */
const LONGEST_TOKEN = 64 * 1024;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN = new Set([0x7b, 0x5b]);
const CLOSE = new Set([0x7d, 0x5d]);
const COMMA = 0x2c;
const COLON = 0x3a;
const SPACE = new Set([0x20, 0x0a, 0x0d, 0x09]);

/** A CRC-32C the way a manifest prints it: the bytes of the little-endian number. */
export function manifestCrc32c(value: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes.toString('hex');
}

/**
 * Incremental reader of PostgreSQL's `backup_manifest` (PostgreSQL manual, "Backup Manifest Format"), in memory for one
 * entry. Each `push` yields the files that became whole; they count only once `finish` has verified the manifest's own
 * SHA-256. Throws `object-damaged`, `checksum-mismatch`, or `version-unsupported`.
 */
export class BackupManifestReader {
  readonly #hash = createHash('sha256');
  #hashing = true;
  #depth = 0;
  #inString = false;
  #escaped = false;
  #atKey = false;
  #key = '';
  /** Bytes of the token being read that came in earlier chunks. */
  #carried: Buffer[] = [];
  #carriedSize = 0;
  #inToken = false;
  #closed = false;

  #version: 1 | 2 | undefined;
  #systemIdentifier: SystemIdentifier | undefined;
  #checksum: string | undefined;
  readonly #walRanges: WalRange[] = [];
  #fileCount = 0;

  /** Run it to its end: bytes are only taken as it goes on. */
  *push(chunk: Buffer): Generator<ManifestFile, void, void> {
    let tokenStart = 0;
    let hashFrom = 0;
    for (let at = 0; at < chunk.length; at++) {
      const byte = chunk[at] ?? 0;
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (byte === BACKSLASH) this.#escaped = true;
        else if (byte === QUOTE) {
          this.#inString = false;
          if (this.#depth === 1) {
            const bytes = this.#endToken(chunk, tokenStart, at + 1);
            if (this.#atKey) {
              this.#key = String(parseJson(bytes));
              // The checksum covers everything before its own key.
              if (this.#key === 'Manifest-Checksum') this.#hashing = false;
              if (this.#hashing) this.#hash.update(bytes);
              hashFrom = at + 1;
            } else {
              this.#scalar(bytes);
            }
          }
        }
      } else if (byte === QUOTE) {
        this.#inString = true;
        if (this.#depth === 1) {
          this.#inToken = true;
          tokenStart = at;
          if (this.#atKey && this.#hashing) this.#hash.update(chunk.subarray(hashFrom, at));
        }
      } else if (SPACE.has(byte) || byte === COMMA || byte === COLON) {
        if (this.#depth === 1) {
          if (this.#inToken) this.#scalar(this.#endToken(chunk, tokenStart, at));
          if (byte !== COLON && byte !== COMMA) continue;
          this.#atKey = byte === COMMA;
        }
      } else if (OPEN.has(byte)) {
        if (this.#closed || this.#depth === 3) throw damaged('it is nested in an unknown way');
        this.#depth += 1;
        this.#atKey = this.#depth === 1;
        if (this.#depth === 3) {
          this.#inToken = true;
          tokenStart = at;
        }
      } else if (CLOSE.has(byte)) {
        if (this.#depth === 1 && this.#inToken) this.#scalar(this.#endToken(chunk, tokenStart, at));
        if (this.#depth === 3) {
          const file = this.#object(this.#endToken(chunk, tokenStart, at + 1));
          if (file !== undefined) yield file;
        }
        this.#depth -= 1;
        if (this.#depth < 0) throw damaged('it closes more than it opens');
        this.#closed = this.#depth === 0;
      } else if (this.#depth === 1 && !this.#inToken) {
        this.#inToken = true;
        tokenStart = at;
      } else if (this.#depth === 0) {
        throw damaged('it is not JSON');
      }
    }
    if (this.#inToken) this.#carry(chunk, tokenStart, chunk.length);
    const keyIsOpen = this.#inToken && this.#depth === 1 && this.#atKey;
    if (this.#hashing && !keyIsOpen) this.#hash.update(chunk.subarray(hashFrom));
  }

  /** Verifies that the manifest was whole. */
  finish(): ManifestEnd {
    if (!this.#closed || this.#version === undefined) throw damaged('it was cut short');
    if (this.#checksum === undefined) throw damaged('it has no checksum');
    const actual = this.#hash.digest('hex');
    if (actual !== this.#checksum.toLowerCase()) {
      throw new HoldfastError('checksum-mismatch', 'the backup manifest does not match its own checksum', {
        context: { expected: this.#checksum, actual },
      });
    }
    return {
      version: this.#version,
      systemIdentifier: this.#systemIdentifier,
      walRanges: this.#walRanges,
      fileCount: this.#fileCount,
    };
  }

  #carry(chunk: Buffer, start: number, end: number): void {
    this.#carriedSize += end - start;
    if (this.#carriedSize > LONGEST_TOKEN) throw damaged('an entry is too long');
    this.#carried.push(Buffer.from(chunk.subarray(start, end)));
  }

  /** The token's bytes; `start` counts only where it began in this chunk. */
  #endToken(chunk: Buffer, start: number, end: number): Buffer {
    this.#inToken = false;
    if (this.#carried.length === 0) return chunk.subarray(start, end);
    this.#carry(chunk, 0, end);
    const whole = Buffer.concat(this.#carried);
    this.#carried = [];
    this.#carriedSize = 0;
    return whole;
  }

  #scalar(bytes: Buffer): void {
    const text = bytes.toString('latin1');
    switch (this.#key) {
      case 'PostgreSQL-Backup-Manifest-Version': {
        const version = Number(text);
        if (version !== 1 && version !== 2) {
          throw new HoldfastError('version-unsupported', `backup manifests of version ${text} are not known`);
        }
        this.#version = version;
        break;
      }
      case 'System-Identifier':
        // A 64-bit number: as a JSON number it would lose its last digits.
        this.#systemIdentifier = parseSystemIdentifier(text);
        break;
      case 'Manifest-Checksum':
        this.#checksum = String(parseJson(bytes));
        break;
      default:
        break;
    }
  }

  #object(bytes: Buffer): ManifestFile | undefined {
    const object = parseJson(bytes);
    if (typeof object !== 'object' || object === null) throw damaged('an entry is no object');
    const fields = new Map<string, unknown>(Object.entries(object));
    if (this.#key === 'WAL-Ranges') {
      this.#walRanges.push({
        timeline: timelineOf(Number(fields.get('Timeline'))),
        start: parseLsn(textOf(fields, 'Start-LSN')),
        end: parseLsn(textOf(fields, 'End-LSN')),
      });
      return undefined;
    }
    if (this.#key !== 'Files') return undefined;
    this.#fileCount += 1;
    return readFileEntry(fields);
  }
}

function readFileEntry(fields: Map<string, unknown>): ManifestFile {
  // A name that is not UTF-8 comes in hexadecimal.
  const path = fields.has('Path')
    ? Buffer.from(textOf(fields, 'Path'), 'utf8').toString('latin1')
    : Buffer.from(textOf(fields, 'Encoded-Path'), 'hex').toString('latin1');
  assertSafePath(path);
  const sizeBytes = fields.get('Size');
  if (typeof sizeBytes !== 'number' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0) {
    throw damaged(`the size of ${JSON.stringify(path)} is not a number`);
  }
  return {
    path,
    sizeBytes,
    modified: new Date(textOf(fields, 'Last-Modified')),
    ...(fields.has('Checksum')
      ? { checksum: { algorithm: textOf(fields, 'Checksum-Algorithm'), hex: textOf(fields, 'Checksum') } }
      : {}),
  };
}

function textOf(fields: Map<string, unknown>, name: string): string {
  const value = fields.get(name);
  if (typeof value !== 'string') throw damaged(`an entry has no "${name}"`);
  return value;
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8')) as unknown;
  } catch (error) {
    throw new HoldfastError('object-damaged', 'the backup manifest cannot be read: a part is not JSON', {
      cause: error,
    });
  }
}

function damaged(why: string): HoldfastError {
  return new HoldfastError('object-damaged', `the backup manifest cannot be read: ${why}`);
}
