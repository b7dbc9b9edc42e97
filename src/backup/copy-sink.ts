import type { BackupManifestReader, ManifestFile } from '../postgres/backup-manifest.ts';
import type { BackupEntry, BackupStart, BaseBackupSink } from '../postgres/base-backup-reader.ts';
import { HoldfastError } from '../errors.ts';
import type { BlockWriter } from './block-writer.ts';
import type { MapSpool } from './map-spool.ts';

const CONTROL_FILE = 'global/pg_control';

/** Leads what BASE_BACKUP sends to the block writer; keeps pg_control's bytes aside and reads PostgreSQL's manifest. */
export class CopySink implements BaseBackupSink {
  start: BackupStart | undefined;
  /** The content of `global/pg_control`. */
  control: Buffer | undefined;
  readonly #blocks: BlockWriter;
  readonly #manifest: BackupManifestReader;
  readonly #spool: MapSpool;
  readonly #started: (start: BackupStart) => (doneBytes: number) => void;
  #progress: ((doneBytes: number) => void) | undefined;
  #inControl = false;

  constructor(
    blocks: BlockWriter,
    manifest: BackupManifestReader,
    spool: MapSpool,
    started: (start: BackupStart) => (doneBytes: number) => void,
  ) {
    this.#blocks = blocks;
    this.#manifest = manifest;
    this.#spool = spool;
    this.#started = started;
  }

  begin(start: BackupStart): void {
    this.start = start;
    this.#progress = this.#started(start);
  }

  entry(entry: BackupEntry): void | Promise<void> {
    const { path, mode } = entry;
    switch (entry.kind) {
      case 'directory':
        this.#directoryOfInPlace(path, mode);
        this.#blocks.other({ kind: 'directory', path, mode });
        return undefined;
      case 'symlink':
        // With TABLESPACE_MAP the server sends none (PostgreSQL manual, BASE_BACKUP).
        throw new HoldfastError('object-damaged', `the server sent a symbolic link, ${JSON.stringify(path)}`);
      case 'file':
        this.#inControl = path === CONTROL_FILE;
        if (this.#inControl) this.control = Buffer.alloc(0);
        return this.#blocks.beginFile(path, mode);
    }
  }

  /** The directory of a tablespace that lies in `pg_tblspc` itself is in no archive; its content names it. */
  #directoryOfInPlace(path: string, mode: number): void {
    const parent = /^(pg_tblspc\/[0-9]+)\/[^/]+$/.exec(path)?.[1];
    if (
      parent !== undefined &&
      this.start?.tablespaces.some(({ location }) => location === parent) === true
    ) {
      this.#blocks.other({ kind: 'directory', path: parent, mode });
    }
  }

  data(chunk: Buffer): void | Promise<void> {
    if (this.#inControl && this.control !== undefined) this.control = Buffer.concat([this.control, chunk]);
    return this.#blocks.write(chunk);
  }

  entryEnd(): void | Promise<void> {
    return this.#blocks.endFile();
  }

  async manifest(chunk: Buffer): Promise<void> {
    for (const file of this.#manifest.push(chunk)) {
      await this.#spool.addManifestFile({ path: file.path, sizeBytes: file.sizeBytes, crc32c: crcOf(file) });
    }
  }

  progress(doneBytes: bigint): void {
    this.#progress?.(Number(doneBytes));
  }
}

/** A manifest prints the bytes of the little-endian number. */
function crcOf(file: ManifestFile): number {
  if (file.checksum?.algorithm !== 'CRC32C' || file.checksum.hex.length !== 8) {
    throw new HoldfastError(
      'checksum-mismatch',
      `PostgreSQL's manifest has no CRC-32C of ${JSON.stringify(file.path)}`,
    );
  }
  return Buffer.from(file.checksum.hex, 'hex').readUInt32LE(0);
}
