import { constants } from 'node:fs';
import { chmod, chown, lstat, mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { DataFile } from './data-file.ts';

export interface FileOwner {
  uid: number;
  gid: number;
}

export interface DataTreeOptions {
  /** The data directory; exists. */
  root: string;
  /** Tablespace locations by oid, already mapped to where they shall lie now. */
  tablespaces: ReadonlyMap<number, string>;
  owner?: FileOwner;
  /** Whether something may be there already (`--delta`). */
  delta: boolean;
}

/**
 * `pg_control` gets its name last: a directory without it is refused by PostgreSQL, so a restore that ended half-way is
 * never started by accident.
 */
export const CONTROL_FILE = 'global/pg_control';
export const PENDING_CONTROL_FILE = 'global/pg_control.holdfast-restoring';

const TABLESPACE = /^pg_tblspc\/([0-9]+)(?:\/(.*))?$/s;

/**
 * The directory tree of a restored cluster. Paths come from a repository and are hostile until checked: nothing is ever
 * written outside the data directory and the tablespace locations the user agreed to, and no symbolic link is followed.
 */
export class DataTree {
  readonly #options: DataTreeOptions;
  readonly #root: Buffer;

  constructor(options: DataTreeOptions) {
    this.#options = options;
    this.#root = Buffer.from(options.root);
  }

  /** Where a path of the map lies. Throws `object-damaged` for a path that would leave the tree. */
  resolve(path: string): Buffer {
    const parts = path.split('/');
    if (
      path === '' ||
      path.includes('\0') ||
      parts.some((part) => part === '' || part === '.' || part === '..')
    ) {
      throw new HoldfastError(
        'object-damaged',
        `the backup names an impossible path: ${JSON.stringify(path)}`,
      );
    }
    const inTablespace = TABLESPACE.exec(path);
    const location =
      inTablespace === null ? undefined : this.#options.tablespaces.get(Number(inTablespace[1]));
    if (inTablespace !== null && location !== undefined && inTablespace[2] !== undefined) {
      return below(Buffer.from(location), inTablespace[2]);
    }
    return below(this.#root, path === CONTROL_FILE ? PENDING_CONTROL_FILE : path);
  }

  async directory(path: string, mode: number): Promise<void> {
    const place = this.resolve(path);
    try {
      await mkdir(place, { mode });
    } catch (error) {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
      const isDirectory = (await lstat(place)).isDirectory();
      if (!isDirectory && this.#options.delta) {
        await rm(place);
        await mkdir(place, { mode });
      } else if (!isDirectory) {
        throw new HoldfastError(
          'data-directory-not-empty',
          `${place.toString()} is in the way: it is no directory`,
        );
      }
    }
    await chmod(place, mode);
    await this.#own(place);
  }

  /** Opens a file of the map for reading and writing, made if it is not there (and must not be, unless `delta`). */
  async createFile(path: string, mode: number): Promise<DataFile> {
    const place = this.resolve(path);
    const { delta, owner } = this.#options;
    let file: DataFile;
    try {
      file = DataFile.create(place, mode, delta);
    } catch (error) {
      if (!delta || !['ELOOP', 'EISDIR', 'ENXIO'].includes(systemErrorCode(error) ?? '')) throw error;
      await rm(place, { recursive: true });
      file = DataFile.create(place, mode, false);
    }
    try {
      file.own(mode, owner);
    } catch (error) {
      file.close();
      throw error;
    }
    return file;
  }

  /** Opens a file that `createFile` made. */
  openFile(path: string): DataFile {
    return DataFile.open(this.resolve(path));
  }

  async #own(place: Buffer): Promise<void> {
    if (this.#options.owner !== undefined)
      await chown(place, this.#options.owner.uid, this.#options.owner.gid);
  }
}

function below(root: Buffer, path: string): Buffer {
  return Buffer.concat([root, Buffer.from(`/${path}`, 'latin1')]);
}

/** Durably puts a directory's names on disk. */
export async function syncDirectory(place: Buffer | string): Promise<void> {
  await using directory = await open(place, constants.O_RDONLY | constants.O_DIRECTORY);
  await directory.sync();
}

/**
 * Makes the control file's name withdrawn, if there is one: from here to `commitDataDirectory` the directory cannot be
 * started. For a directory that is restored over.
 */
export async function withdrawControlFile(root: string): Promise<void> {
  try {
    await rename(join(root, CONTROL_FILE), join(root, PENDING_CONTROL_FILE));
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return;
    throw error;
  }
  await syncDirectory(dirname(join(root, CONTROL_FILE)));
}

/** Gives `pg_control` its name: the data directory is whole. Durable when it resolves. */
export async function commitDataDirectory(root: string): Promise<void> {
  await rename(join(root, PENDING_CONTROL_FILE), join(root, CONTROL_FILE));
  await syncDirectory(dirname(join(root, CONTROL_FILE)));
  await syncDirectory(root);
}

/** Every path below a root that is no directory, and every directory, deepest first; latin1 paths relative to it. */
export async function* walkTree(
  root: Buffer,
  prefix = '',
): AsyncGenerator<{ path: string; directory: boolean }> {
  const names = await readdir(root, { withFileTypes: true, encoding: 'buffer' });
  for (const name of names) {
    const path = prefix + name.name.toString('latin1');
    if (name.isDirectory()) yield* walkTree(Buffer.concat([root, Buffer.from('/'), name.name]), `${path}/`);
    yield { path, directory: name.isDirectory() };
  }
}
