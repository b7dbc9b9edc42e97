import { constants } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

import { throwIfCancelled } from '../cancellation.ts';
import { systemErrorCode } from '../errors.ts';
import { checkKey, checkPrefix, splitKey } from './key.ts';
import { isAbsence, LocalDirectories } from './local-directories.ts';
import { attempt, localFailure, nodeFiles, syncDirectory, type LocalFiles } from './local-files.ts';
import { listLocal } from './local-list.ts';
import { notAnObject, putLocal } from './local-put.ts';
import { checkRange, objectMissing, objectTooShort, READ_CHUNK_BYTES, readSpan } from './read-span.ts';
import type { GetOptions, ListOptions, ObjectInfo, PutOptions, Storage } from './storage.ts';

/**
 * Objects as files below `rootDir`, one per key, mode 0640 in directories of mode 0750 (less what the umask takes).
 * Nothing is touched before the first operation. The first operation of an instance, if it is a `put`, creates a missing
 * root; every other one throws `repository-missing` there, so that an unmounted disk is never taken for an empty one.
 *
 * The file system must have hard links and directories that can be synced. Deleting leaves directories behind, also
 * empty ones: removing them could race with a writer that is about to use them, and they are few.
 *
 * Beyond the errors of `Storage`: `repository-missing`.
 */
export function createLocalStorage(rootDir: string, files: LocalFiles = nodeFiles): Storage {
  const rootPath = resolve(rootDir);
  const description = pathToFileURL(rootPath).href;
  const directories = new LocalDirectories(rootPath, files);

  async function head(key: string): Promise<ObjectInfo | undefined> {
    const { directory: relative, name } = splitKey(key);
    const directory = await directories.find(relative);
    if (directory === undefined) return undefined;
    const path = join(directory, name);
    try {
      const stats = await files.lstat(path);
      if (stats.isFile()) return { key, sizeBytes: stats.size };
      // Other keys may lie below one that has no object itself.
      if (stats.isDirectory()) return undefined;
      throw notAnObject(path, stats);
    } catch (error) {
      if (!isAbsence(error)) throw localFailure(error, `look at ${path}`);
      await directories.proveRoot();
      return undefined;
    }
  }

  async function existingPath(key: string): Promise<{ directory: string; path: string }> {
    const { directory: relative, name } = splitKey(key);
    const directory = await directories.find(relative);
    if (directory === undefined) throw objectMissing(key, description);
    return { directory, path: join(directory, name) };
  }

  async function openObject(key: string): Promise<Awaited<ReturnType<LocalFiles['open']>>> {
    const { path } = await existingPath(key);
    // Without O_NONBLOCK, opening a FIFO waits for a writer that never comes.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    try {
      return await files.open(path, flags);
    } catch (error) {
      if (!isAbsence(error)) throw localFailure(error, `read ${path}`);
      await directories.proveRoot();
      throw objectMissing(key, description);
    }
  }

  async function* get(key: string, options: GetOptions): AsyncGenerator<Buffer> {
    throwIfCancelled(options.signal);
    const handle = await openObject(key);
    try {
      const doing = `read ${key} in ${description}`;
      const stats = await attempt(doing, () => handle.stat());
      if (stats.isDirectory()) throw objectMissing(key, description);
      if (!stats.isFile()) throw notAnObject(key, stats);
      const { start, end } = readSpan(key, stats.size, options.range);
      for (let position = start; position < end;) {
        throwIfCancelled(options.signal);
        const buffer = Buffer.allocUnsafeSlow(Math.min(READ_CHUNK_BYTES, end - position));
        const from = position;
        const { bytesRead } = await attempt(doing, () => handle.read(buffer, 0, buffer.length, from));
        if (bytesRead === 0) throw objectTooShort(key, end, position);
        position += bytesRead;
        yield buffer.subarray(0, bytesRead);
      }
    } finally {
      await handle.close();
    }
  }

  return {
    description,
    features: { conditionalPut: true, rangedGet: true },

    async put(key: string, source: Buffer | AsyncIterable<Buffer>, options: PutOptions = {}) {
      checkKey(key);
      throwIfCancelled(options.signal);
      return await putLocal(files, directories, key, source, options);
    },

    get(key: string, options: GetOptions = {}): AsyncIterable<Buffer> {
      checkKey(key);
      checkRange(options.range);
      return get(key, options);
    },

    async head(key: string, options: { signal?: AbortSignal } = {}) {
      checkKey(key);
      throwIfCancelled(options.signal);
      return await head(key);
    },

    list(prefix: string, options: ListOptions = {}): AsyncIterable<ObjectInfo> {
      checkPrefix(prefix);
      return listLocal(files, directories, prefix, options);
    },

    async delete(key: string, options: { signal?: AbortSignal } = {}): Promise<void> {
      checkKey(key);
      throwIfCancelled(options.signal);
      const { directory: relative, name } = splitKey(key);
      const directory = await directories.find(relative);
      if (directory === undefined) return;
      const path = join(directory, name);
      try {
        await files.unlink(path);
      } catch (error) {
        const code = systemErrorCode(error);
        // An object where the key has a directory, or keys below the key that is to go: it has no object either way.
        if (code === 'ENOTDIR' || code === 'EISDIR') return;
        if (code !== 'ENOENT') throw localFailure(error, `delete ${path}`);
      }
      // Also where the file was gone already: whoever deleted it may have died before syncing.
      await syncDirectory(files, directory);
    },

    async confirm(key: string): Promise<void> {
      checkKey(key);
      const handle = await openObject(key);
      try {
        const stats = await attempt(`look at ${key}`, () => handle.stat());
        if (stats.isDirectory()) throw objectMissing(key, description);
        await attempt(`sync ${key} in ${description}`, () => handle.sync());
      } finally {
        await handle.close();
      }
      const { directory } = await existingPath(key);
      await directories.syncPathTo(directory);
      await syncDirectory(files, directory);
    },

    async removeStale(olderThanMs: number, options: { signal?: AbortSignal } = {}) {
      // Loaded only here: archiving a segment has no use for it.
      const { removeStaleTemporaries } = await import('./local-temporaries.ts');
      return await removeStaleTemporaries(rootPath, olderThanMs, { ...options, files });
    },
  };
}
