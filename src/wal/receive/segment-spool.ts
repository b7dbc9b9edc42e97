import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rm } from 'node:fs/promises';
import { writeSync } from 'node:fs';
import { join } from 'node:path';

import { HoldfastError, errorText, systemErrorCode } from '../../errors.ts';
import type { WalSegmentName } from '../../postgres/wal-segment.ts';
import { classifyWalFile } from '../../postgres/wal-segment.ts';

/** The local copy of one segment while it comes in. */
export interface SpoolFile {
  readonly name: WalSegmentName;
  readonly path: string;
  /** How many bytes were written. */
  readonly sizeBytes: number;
  /** Appends. Blocks the thread for as long as the page cache takes; throws `storage-full` where there is no room. */
  append(bytes: Buffer): void;
  /**
   * Makes what was appended survive a crash of this machine. A failure is final for this file: the kernel may have dropped
   * what it could not write, and say that all is well the next time. So every later `sync` and `read` fails as well.
   */
  sync(): Promise<void>;
  read(from: number, to: number): Promise<Buffer>;
  close(): Promise<void>;
  /** Closes and removes it. */
  discard(): Promise<void>;
}

/** Where a receiver keeps the segments that no repository has whole yet. */
export interface SegmentSpool {
  readonly directory: string;
  /**
   * Begins a segment anew; what was there under its name is gone. Makes the directory again where somebody removed it.
   * Throws `storage-full` or `storage-unavailable`.
   */
  create(name: WalSegmentName): Promise<SpoolFile>;
  /** What an earlier receiver left, in the order of names. */
  leftOver(): Promise<{ name: WalSegmentName; path: string }[]>;
  /** Closes and removes everything. */
  clear(): Promise<void>;
  /** Closes what is still open: Node ends a process that forgets to. The files stay. */
  close(): Promise<void>;
}

/** Opens the spool in a directory of the receiver's own (made, mode 0700, where it is missing). */
export async function openSegmentSpool(directory: string): Promise<SegmentSpool> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const opened = new Set<SpoolFile>();
  const close = async (): Promise<void> => {
    const files = [...opened];
    opened.clear();
    await Promise.all(files.map(async (file) => file.close()));
  };
  return {
    directory,
    close,
    async create(name) {
      const file = await createFile(directory, name, () => opened.delete(file));
      opened.add(file);
      return file;
    },
    async leftOver() {
      const names = (await namesIn(directory)).sort();
      return names.flatMap((name) => {
        const file = classifyWalFile(name);
        return file?.kind === 'segment' ? [{ name: file.name, path: join(directory, name) }] : [];
      });
    },
    async clear() {
      await close();
      for (const name of await namesIn(directory)) {
        if (classifyWalFile(name) !== undefined) await rm(join(directory, name), { force: true });
      }
    },
  };
}

async function createFile(directory: string, name: WalSegmentName, closed: () => void): Promise<SpoolFile> {
  const path = join(directory, name);
  let handle: FileHandle | undefined = await openNew(directory, path);
  let sizeBytes = 0;
  let syncedBytes = 0;
  let broken: HoldfastError | undefined;
  const opened = (): FileHandle => {
    if (broken !== undefined) throw broken;
    if (handle === undefined) throw new HoldfastError('assertion', `${path} is closed`);
    return handle;
  };
  const close = async (): Promise<void> => {
    const closing = handle;
    handle = undefined;
    closed();
    await closing?.close();
  };
  return {
    name,
    path,
    get sizeBytes() {
      return sizeBytes;
    },
    append(bytes) {
      try {
        for (let at = 0; at < bytes.length;) {
          at += writeSync(opened().fd, bytes, at, bytes.length - at, sizeBytes + at);
        }
      } catch (error) {
        throw spoolError(path, error);
      }
      sizeBytes += bytes.length;
    },
    async sync() {
      if (broken === undefined && syncedBytes === sizeBytes) return;
      const reached = sizeBytes;
      try {
        await opened().datasync();
        if (syncedBytes === 0) await syncDirectory(directory);
      } catch (error) {
        broken ??= spoolError(path, error);
        throw broken;
      }
      syncedBytes = reached;
    },
    async read(from, to) {
      const buffer = Buffer.allocUnsafeSlow(to - from);
      for (let filled = 0; filled < buffer.length;) {
        const { bytesRead } = await opened().read(buffer, filled, buffer.length - filled, from + filled);
        if (bytesRead === 0) throw new HoldfastError('assertion', `${path} ends before ${to}`);
        filled += bytesRead;
      }
      return buffer;
    },
    close,
    async discard() {
      await close();
      await rm(path, { force: true });
    },
  };
}

/** The directory may have been removed under us: nothing in it counts. */
async function openNew(directory: string, path: string): Promise<FileHandle> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await rm(path, { force: true });
    return await open(
      path,
      constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
      0o600,
    );
  } catch (error) {
    throw spoolError(path, error);
  }
}

/** Somebody may have removed the directory: what it holds is disposable. */
async function namesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw spoolError(directory, error);
  }
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, constants.O_RDONLY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function spoolError(path: string, error: unknown): HoldfastError {
  if (error instanceof HoldfastError) return error;
  const code = systemErrorCode(error);
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return new HoldfastError(
    full ? 'storage-full' : 'storage-unavailable',
    `cannot write ${path}: ${errorText(error)}`,
    {
      hint: full
        ? 'free some space where the state directory lies; the server keeps the WAL until then'
        : 'check the disk the state directory lies on',
      cause: error,
    },
  );
}
