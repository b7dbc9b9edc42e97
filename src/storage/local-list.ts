import type { BigIntStats } from 'node:fs';
import { join } from 'node:path';

import { throwIfCancelled } from '../cancellation.ts';
import { HoldfastError } from '../errors.ts';
import { isKeyComponent, TEMPORARY_PREFIX } from './key.ts';
import { isAbsence, type LocalDirectories } from './local-directories.ts';
import { attempt, localFailure, type LocalFiles } from './local-files.ts';
import { notAnObject } from './local-put.ts';
import type { ListOptions, ObjectInfo } from './storage.ts';

/** How many files are asked for their size at once. */
const STAT_BATCH = 32;

/**
 * `Storage.list` on a local file system. Holds the names of one directory per level, sorted so that whole keys come in
 * byte order. Names that cannot be part of a key (`lost+found`, temporary files) are passed over; a symbolic link or a
 * device under a name that can is refused, because what it hides cannot be known.
 */
export async function* listLocal(
  files: LocalFiles,
  directories: LocalDirectories,
  prefix: string,
  options: ListOptions,
): AsyncGenerator<ObjectInfo> {
  throwIfCancelled(options.signal);
  const slash = prefix.lastIndexOf('/');
  const directory = await directories.find(prefix.slice(0, Math.max(slash, 0)));
  if (directory === undefined) return;
  const keyPrefix = prefix.slice(0, slash + 1);
  const stats = await attempt(`list ${directory}`, () => files.lstat(directory, { bigint: true }));
  // An object under the name the prefix takes for a directory: nothing can lie below it.
  if (stats.isFile()) return;
  yield* walk(files, directory, keyPrefix, prefix.slice(slash + 1), options);
}

async function* walk(
  files: LocalFiles,
  directory: string,
  keyPrefix: string,
  namePrefix: string,
  options: ListOptions,
): AsyncGenerator<ObjectInfo> {
  const { after = '', signal } = options;
  const identity = await attempt(`list ${directory}`, () => files.lstat(directory, { bigint: true }));
  const names = await attempt(`list ${directory}`, () => readNames(files, directory, namePrefix));
  const wanted = names.filter((name) => {
    const key = keyPrefix + name;
    return key > after || (name.endsWith('/') && after.startsWith(key));
  });
  for (let position = 0; position < wanted.length;) {
    throwIfCancelled(signal);
    const name = wanted[position] ?? '';
    if (name.endsWith('/')) {
      yield* walk(files, join(directory, name), keyPrefix + name, '', options);
      position += 1;
      continue;
    }
    const batch: string[] = [];
    for (const next of wanted.slice(position, position + STAT_BATCH)) {
      if (next.endsWith('/')) break;
      batch.push(next);
    }
    position += batch.length;
    const infos = await Promise.all(
      batch.map((file) => describe(files, directory, file, keyPrefix, identity)),
    );
    for (const info of infos) {
      throwIfCancelled(signal);
      if (info !== undefined) yield info;
    }
  }
}

/**
 * The names in a directory that can be part of a key, a directory's ending in `/`. With that ending they sort as the
 * whole keys do: `a.b` before `a/b` before `a0`.
 */
async function readNames(files: LocalFiles, directory: string, namePrefix: string): Promise<string[]> {
  const names: string[] = [];
  for await (const entry of await files.opendir(directory, { bufferSize: 512 })) {
    const { name } = entry;
    if (name.startsWith(TEMPORARY_PREFIX) || !name.startsWith(namePrefix) || !isKeyComponent(name)) continue;
    if (!entry.isFile() && !entry.isDirectory()) throw notAnObject(join(directory, name), entry);
    names.push(entry.isDirectory() ? `${name}/` : name);
  }
  return names.sort();
}

/** Undefined for a file that was deleted after its name was read: allowed only while its directory is still the same. */
async function describe(
  files: LocalFiles,
  directory: string,
  name: string,
  keyPrefix: string,
  identity: BigIntStats,
): Promise<ObjectInfo | undefined> {
  const path = join(directory, name);
  try {
    const stats = await files.lstat(path);
    if (!stats.isFile()) throw notAnObject(path, stats);
    return { key: keyPrefix + name, sizeBytes: stats.size };
  } catch (error) {
    if (!isAbsence(error)) throw localFailure(error, `list ${path}`);
  }
  const now = await attempt(`list ${directory}`, () => files.lstat(directory, { bigint: true }));
  if (now.dev !== identity.dev || now.ino !== identity.ino) {
    throw new HoldfastError('storage-unavailable', `${directory} was replaced while it was listed`);
  }
  return undefined;
}
