import { constants, link, lstat, mkdir, open, opendir, realpath, rename, unlink } from 'node:fs/promises';

import { errorText, HoldfastError, systemErrorCode } from '../errors.ts';

/** What local storage uses of the file system, so that tests can fail or stop it at any single call. */
export interface LocalFiles {
  link: typeof link;
  lstat: typeof lstat;
  mkdir: typeof mkdir;
  open: typeof open;
  opendir: typeof opendir;
  realpath: (path: string) => Promise<string>;
  rename: typeof rename;
  unlink: typeof unlink;
}

export const nodeFiles: LocalFiles = { link, lstat, mkdir, open, opendir, realpath, rename, unlink };

export const FILE_MODE = 0o640;
export const DIRECTORY_MODE = 0o750;

/** Translates an error of the file system; anything else (a defect, the caller's own error) is returned as it is. */
export function localFailure(error: unknown, doing: string): unknown {
  const code = systemErrorCode(error);
  if (error instanceof HoldfastError || code === undefined) return error;
  const details = { context: { reason: code }, cause: error };
  const message = `cannot ${doing}: ${errorText(error)}`;
  switch (code) {
    case 'ENOSPC':
    case 'EDQUOT':
    case 'EFBIG':
      return new HoldfastError('storage-full', message, {
        ...details,
        hint: 'free or add space there (quotas and file size limits count too), then try again',
      });
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return new HoldfastError('storage-denied', message, {
        ...details,
        hint: 'let the user that runs Holdfast read and write there, on a file system mounted for writing',
      });
    case 'ELOOP':
    case 'EISDIR':
    case 'ENOTDIR':
    case 'EEXIST':
      return new HoldfastError('storage-denied', message, {
        ...details,
        hint: 'something that Holdfast did not put there is in the way: move it out of the repository',
      });
    default:
      return new HoldfastError('storage-unavailable', message, {
        ...details,
        hint: 'look for errors of the disk or the network behind it in the system log',
      });
  }
}

/** Runs one step on the file system and throws its failure translated. */
export async function attempt<T>(doing: string, step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (error) {
    throw localFailure(error, doing);
  }
}

/**
 * fsync of a directory, which makes the names in it durable. EINVAL and EBADF mean that this file system has no such
 * call for directories (some network file systems); every other failure is one.
 */
export async function syncDirectory(files: LocalFiles, directory: string): Promise<void> {
  await attempt(`sync the directory ${directory}`, async () => {
    const handle = await files.open(directory, constants.O_RDONLY | constants.O_DIRECTORY);
    try {
      await handle.sync();
    } catch (error) {
      if (!['EINVAL', 'EBADF'].includes(systemErrorCode(error) ?? '')) throw error;
    } finally {
      await handle.close();
    }
  });
}
