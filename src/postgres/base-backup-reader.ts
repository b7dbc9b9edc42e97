import { HoldfastError } from '../errors.ts';
import { type Lsn, parseLsn } from './lsn.ts';
import type { CopySink, WireRow } from './replication-wire.ts';
import { type TarEntry, TarReader, assertSafePath } from './tar-reader.ts';
import { type TimelineId, timelineOf } from './timeline.ts';

/**
 * A file, directory or symlink of the cluster. `path` is relative to the data directory; files of a tablespace come as
 * `pg_tblspc/<oid>/PG_15_…/…`. Paths are "binary" strings, one character for each byte: `Buffer.from(path, 'latin1')`
 * is what the file system wants.
 */
export type BackupEntry = TarEntry;

export interface BackupTablespace {
  oid: number;
  /**
   * Where it lies on the server ("binary" string). Of an in-place tablespace (a directory within `pg_tblspc`) it is
   * relative: `pg_tblspc/<oid>`.
   */
  location: string;
  /** The server's estimate. */
  sizeBytes?: bigint;
}

export interface BackupStart {
  startLsn: Lsn;
  timeline: TimelineId;
  /** Besides the data directory itself. */
  tablespaces: BackupTablespace[];
  /** The server's estimate for the data directory without its tablespaces. */
  sizeBytes?: bigint;
}

/**
 * Takes a base backup, in the server's order: tablespaces first, then the data directory, whose last file is
 * `global/pg_control`, then PostgreSQL's manifest. Any call may return a promise: nothing more comes, and the socket is
 * not read, until it resolves. What a call throws ends the backup.
 */
export interface BaseBackupSink {
  begin(start: BackupStart): void | Promise<void>;
  entry(entry: BackupEntry): void | Promise<void>;
  /** Bytes of the current file, valid only until the call returns or its promise resolves. Never empty. */
  data(chunk: Buffer): void | Promise<void>;
  /** After the last byte of each file (not after directories and symlinks). */
  entryEnd(): void | Promise<void>;
  /** A piece of `backup_manifest`, valid as long as `data`'s. */
  manifest(chunk: Buffer): void | Promise<void>;
  /** The server's count of bytes sent so far. */
  progress(doneBytes: bigint): void;
}

export interface BaseBackupEnd {
  stopLsn: Lsn;
  stopTimeline: TimelineId;
}

/** Archive names, locations and counters: the longest path PostgreSQL knows is 1024 bytes. */
const LONGEST_CONTROL_MESSAGE = 4096;

/** First bytes of the messages within the COPY. */
const NEW_ARCHIVE = 0x6e;
const MANIFEST = 0x6d;
const DATA = 0x64;
const PROGRESS = 0x70;

/** Makes calls of a `BaseBackupSink` out of the answer to BASE_BACKUP. */
export class BaseBackupReader implements CopySink {
  pending: Promise<void> | undefined;

  readonly #sink: BaseBackupSink;
  readonly #resultSets: WireRow[][] = [[]];
  readonly #control = Buffer.alloc(LONGEST_CONTROL_MESSAGE);
  #controlSize = 0;
  /** First byte of the current message; undefined where it was dealt with. */
  #message: number | undefined;
  #archive: TarReader | undefined;
  #tablespaces: BackupTablespace[] = [];
  #sawBase = false;
  #sawManifest = false;

  constructor(sink: BaseBackupSink) {
    this.#sink = sink;
  }

  row(row: WireRow): void {
    this.#resultSets.at(-1)?.push(row);
  }

  /** A result set is complete; the COPY between the second and the third counts as an empty one. */
  resultDone(): void {
    this.#resultSets.push([]);
  }

  slice(chunk: Buffer, start: number, end: number, first: boolean, last: boolean): number {
    let at = start;
    if (first) {
      if (at === end) {
        if (last) throw damaged('an empty message');
        return at;
      }
      this.#message = chunk[at];
      at += 1;
      this.#controlSize = 0;
    }
    switch (this.#message) {
      case DATA:
        return this.#data(chunk, at, end);
      case NEW_ARCHIVE:
      case PROGRESS:
      case MANIFEST:
        if (this.#controlSize + end - at > LONGEST_CONTROL_MESSAGE)
          throw damaged('a message that is too long');
        this.#controlSize += chunk.copy(this.#control, this.#controlSize, at, end);
        if (last) this.#controlDone();
        return end;
      case undefined:
        return end;
      default:
        throw damaged(`a message of type ${this.#message}`);
    }
  }

  /** Where the backup stopped. Throws `object-damaged` where the server ended without having sent everything. */
  end(): BaseBackupEnd {
    const end = this.endIfReached();
    if (end === undefined || !this.#sawBase || !this.#sawManifest)
      throw damaged('an end before everything was sent');
    return end;
  }

  endIfReached(): BaseBackupEnd | undefined {
    // Start point, tablespaces, (COPY done, COPY complete,) stop point: the first and the last hold a position.
    const [row] = this.#resultSets.findLast((rows, index) => index >= 2 && rows.length > 0) ?? [];
    if (row === undefined) return undefined;
    return { stopLsn: parseLsn(row[0] ?? ''), stopTimeline: timelineOf(Number(row[1] ?? '')) };
  }

  #data(chunk: Buffer, start: number, end: number): number {
    if (this.#sawManifest) {
      if (start < end) this.#wait(this.#sink.manifest(chunk.subarray(start, end)));
      return end;
    }
    const archive = this.#archive;
    if (archive === undefined) throw damaged('data of no archive');
    const at = archive.read(chunk, start, end);
    this.pending = archive.pending;
    archive.pending = undefined;
    return at;
  }

  #controlDone(): void {
    const body = this.#control.subarray(0, this.#controlSize);
    const message = this.#message;
    this.#message = undefined;
    if (message === PROGRESS) {
      this.#sink.progress(body.readBigInt64BE(0));
      return;
    }
    this.#archive?.finish();
    if (message === MANIFEST) {
      this.#sawManifest = true;
      return;
    }
    const begun = this.#archive === undefined ? this.#begin() : undefined;
    const [name = ''] = body.toString('latin1').split('\0');
    this.#archive = this.#openArchive(name);
    if (begun !== undefined) this.#wait(begun);
  }

  #begin(): void | Promise<void> {
    const [positions, spaces] = this.#resultSets;
    const [startLsn = '', timeline = ''] = positions?.[0] ?? [];
    // One row has no oid: the data directory itself.
    const rows = (spaces ?? []).map(([oid, location, size]) => ({
      oid: Number(oid ?? 0),
      location: location ?? '',
      ...(size === undefined ? {} : { sizeBytes: BigInt(size) * 1024n }),
    }));
    this.#tablespaces = rows.filter(({ oid }) => oid !== 0);
    const base = rows.find(({ oid }) => oid === 0);
    return this.#sink.begin({
      startLsn: parseLsn(startLsn),
      timeline: timelineOf(Number(timeline)),
      tablespaces: this.#tablespaces,
      ...(base?.sizeBytes === undefined ? {} : { sizeBytes: base.sizeBytes }),
    });
  }

  /** `base.tar`, or `<oid>.tar` of a tablespace, whose members are named from the tablespace's directory. */
  #openArchive(name: string): TarReader {
    if (name === 'base.tar') {
      this.#sawBase = true;
      return new TarReader(this.#sink);
    }
    const oid = /^(\d+)\.tar$/.exec(name)?.[1];
    if (oid === undefined || !this.#tablespaces.some((space) => space.oid === Number(oid))) {
      throw damaged(`an archive named ${JSON.stringify(name)}`);
    }
    const prefix = `pg_tblspc/${oid}/`;
    const sink = this.#sink;
    return new TarReader({
      entry: (entry) => {
        const path = prefix + entry.path;
        assertSafePath(path);
        return sink.entry({ ...entry, path });
      },
      data: (chunk) => sink.data(chunk),
      entryEnd: () => sink.entryEnd(),
    });
  }

  #wait(result: void | Promise<void>): void {
    if (result !== undefined) this.pending = result;
  }
}

function damaged(what: string): HoldfastError {
  return new HoldfastError('object-damaged', `the server's base backup cannot be read: it sent ${what}`);
}
