import type { Stats } from 'node:fs';
import { constants, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

import { throwIfCancelled } from '../cancellation.ts';
import { HoldfastError, systemErrorCode } from '../errors.ts';
import { splitKey, TEMPORARY_PREFIX } from './key.ts';
import type { LocalDirectories } from './local-directories.ts';
import { attempt, FILE_MODE, localFailure, syncDirectory, type LocalFiles } from './local-files.ts';
import type { PutOptions, PutResult } from './storage.ts';

/**
 * `Storage.put` on a local file system: write under a temporary name beside the target, fsync, publish under the key
 * (`link` refuses an existing name, `rename` replaces it, both atomically), fsync the directory.
 *
 * A failed fsync ends the put and is not repeated: the kernel may have dropped the pages and report success next time.
 * Before publication the file is removed. After it (a directory that cannot be synced) the object stays: another writer
 * may already have seen and confirmed it.
 */
export async function putLocal(
  files: LocalFiles,
  directories: LocalDirectories,
  key: string,
  source: Buffer | AsyncIterable<Buffer>,
  options: PutOptions,
): Promise<PutResult> {
  const { directory: relative, name } = splitKey(key);
  const directory = await directories.create(relative);
  const target = join(directory, name);
  const temporary = join(directory, temporaryName());
  try {
    const sizeBytes = await writeWhole(files, temporary, source, options.signal);
    await directories.syncPathTo(directory);
    throwIfCancelled(options.signal);
    const created = await publish(files, temporary, target, options.ifAbsent === true);
    await syncDirectory(files, directory);
    return { created, sizeBytes };
  } catch (error) {
    await files.unlink(temporary).catch(() => undefined);
    throw error;
  }
}

/** Uniqueness needs no cryptography here (and its module costs 6 ms to load): `O_EXCL` refuses a name in use. */
function temporaryName(): string {
  const random = (): string => Math.random().toString(36).slice(2, 12);
  return `${TEMPORARY_PREFIX}${process.pid}-${random()}${random()}`;
}

async function writeWhole(
  files: LocalFiles,
  path: string,
  source: Buffer | AsyncIterable<Buffer>,
  signal: AbortSignal | undefined,
): Promise<number> {
  const doing = `write ${path}`;
  const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW;
  const handle = await attempt(`create ${path}`, () => files.open(path, flags, FILE_MODE));
  let sizeBytes = 0;
  try {
    if (Buffer.isBuffer(source)) {
      sizeBytes = await writeChunk(handle, source, doing);
    } else {
      for await (const chunk of source) {
        throwIfCancelled(signal);
        sizeBytes += await writeChunk(handle, chunk, doing);
      }
    }
    throwIfCancelled(signal);
    await attempt(`sync ${path}`, () => handle.sync());
    const stored = await attempt(doing, () => handle.stat());
    if (stored.size !== sizeBytes) {
      throw new HoldfastError(
        'storage-unavailable',
        `${path} has ${stored.size} bytes after ${sizeBytes} were written`,
      );
    }
  } catch (error) {
    await handle.close().catch(() => undefined);
    throw error;
  }
  // Network file systems may report a lost write only here.
  await attempt(`close ${path}`, () => handle.close());
  return sizeBytes;
}

async function writeChunk(handle: FileHandle, chunk: Buffer, doing: string): Promise<number> {
  for (let position = 0; position < chunk.length;) {
    const { bytesWritten } = await attempt(doing, () =>
      handle.write(chunk, position, chunk.length - position),
    );
    position += bytesWritten;
  }
  return chunk.length;
}

/** Gives the finished file its name; false where the name was taken (`ifAbsent`). The temporary name is gone after it. */
async function publish(
  files: LocalFiles,
  temporary: string,
  target: string,
  ifAbsent: boolean,
): Promise<boolean> {
  const doing = `publish ${target}`;
  if (!ifAbsent) {
    await attempt(doing, () => files.rename(temporary, target));
    return true;
  }
  let created = true;
  try {
    await files.link(temporary, target);
  } catch (error) {
    if (systemErrorCode(error) !== 'EEXIST') throw linkFailure(error, target);
    created = await attempt(doing, () => isSameFile(files, temporary, target));
  }
  await attempt(`remove ${temporary}`, () => files.unlink(temporary));
  return created;
}

/** NFS may answer a repeated request with EEXIST although the first one made the link: then both names are one file. */
async function isSameFile(files: LocalFiles, temporary: string, target: string): Promise<boolean> {
  const [ours, theirs] = await Promise.all([
    files.lstat(temporary, { bigint: true }),
    files.lstat(target, { bigint: true }),
  ]);
  if (!theirs.isFile()) throw notAnObject(target, theirs);
  return ours.dev === theirs.dev && ours.ino === theirs.ino;
}

/** For something under a key's name that is neither a file nor absent. */
export function notAnObject(
  path: string,
  stats: Pick<Stats, 'isDirectory' | 'isSymbolicLink'>,
): HoldfastError {
  const kind = stats.isSymbolicLink()
    ? 'a symbolic link'
    : stats.isDirectory()
      ? 'a directory'
      : 'not a file';
  return new HoldfastError('storage-denied', `${path} is ${kind} where an object was expected`, {
    hint: 'Holdfast did not put it there: move it out of the repository',
    context: { path },
  });
}

function linkFailure(error: unknown, target: string): unknown {
  const code = systemErrorCode(error) ?? '';
  if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS'].includes(code)) {
    return localFailure(error, `publish ${target}`);
  }
  return new HoldfastError(
    'storage-denied',
    `cannot publish ${target}: hard links are refused here (${code})`,
    {
      hint: 'put the repository on a file system that has hard links (ext4, xfs, btrfs, zfs, NFS)',
      context: { path: target, reason: code },
      cause: error,
    },
  );
}
