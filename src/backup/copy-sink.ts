import type { FileHandle } from 'node:fs/promises';

import type { BackupEntry, BackupStart, BaseBackupSink } from '../postgres/base-backup-reader.ts';
import type { BlockWriter } from './block-writer.ts';

const CONTROL_FILE = 'global/pg_control';

/** Leads what BASE_BACKUP sends to the block writer; keeps pg_control's bytes and PostgreSQL's manifest aside. */
export class CopySink implements BaseBackupSink {
  start: BackupStart | undefined;
  /** The content of `global/pg_control`. */
  control: Buffer | undefined;
  readonly #blocks: BlockWriter;
  readonly #manifest: FileHandle;
  readonly #started: (start: BackupStart) => (doneBytes: number) => void;
  #progress: ((doneBytes: number) => void) | undefined;
  #inControl = false;

  constructor(
    blocks: BlockWriter,
    manifest: FileHandle,
    started: (start: BackupStart) => (doneBytes: number) => void,
  ) {
    this.#blocks = blocks;
    this.#manifest = manifest;
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
        this.#blocks.other({ kind: 'directory', path, mode });
        return undefined;
      case 'symlink':
        this.#blocks.other({ kind: 'link', path, target: entry.linkTarget ?? '' });
        return undefined;
      case 'file':
        this.#inControl = path === CONTROL_FILE;
        if (this.#inControl) this.control = Buffer.alloc(0);
        return this.#blocks.beginFile(path, mode);
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
    for (let done = 0; done < chunk.length;) {
      done += (await this.#manifest.write(chunk, done, chunk.length - done)).bytesWritten;
    }
  }

  progress(doneBytes: bigint): void {
    this.#progress?.(Number(doneBytes));
  }
}
