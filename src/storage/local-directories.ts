import { dirname, join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { attempt, DIRECTORY_MODE, localFailure, syncDirectory, type LocalFiles } from './local-files.ts';

/** A full set is emptied: syncing a directory once too often costs little, a set that only grows costs memory. */
const KNOWN_DURABLE_MAX = 4096;

/**
 * The directories below the root of a local store: finds and creates them, refuses those that a symbolic link leads
 * to (so no key can leave the root; the root itself may be reached through links) and makes them durable.
 */
export class LocalDirectories {
  readonly #rootDir: string;
  readonly #files: LocalFiles;
  readonly #knownDurable = new Set<string>();
  #root: string | undefined;

  constructor(rootDir: string, files: LocalFiles) {
    this.#rootDir = rootDir;
    this.#files = files;
  }

  /** The root's real path. Throws `repository-missing` where it is not there, also when it was there before. */
  async root(): Promise<string> {
    if (this.#root !== undefined) return this.#root;
    try {
      const root = await this.#files.realpath(this.#rootDir);
      // Opening proves what `realpath` does not: that it is a directory and can be read.
      await (await this.#files.opendir(root)).close();
      this.#root = root;
      return root;
    } catch (error) {
      throw this.#rootFailure(error);
    }
  }

  /**
   * The path of an existing directory (of a file too, where a file has that name: the next call says ENOTDIR).
   * Undefined only where its absence is certain: the root is there, can be read, and no link hides what is missing.
   */
  async find(relative: string): Promise<string | undefined> {
    const root = await this.root();
    const path = join(root, relative);
    try {
      const real = await this.#files.realpath(path);
      if (real !== path) throw this.#symbolicLink(path);
      return path;
    } catch (error) {
      if (!isAbsence(error)) throw localFailure(error, `reach ${path}`);
      await this.proveRoot();
      await this.#refuseLinks(root, relative);
      return undefined;
    }
  }

  /**
   * Finds a directory or creates it. The root is created only by the first operation of this instance: where it was
   * seen before and is gone, a disk was unmounted, and writing to the mount point beneath would split the repository.
   */
  async create(relative: string): Promise<string> {
    if (this.#root === undefined) await this.#createRoot();
    const existing = await this.find(relative);
    if (existing !== undefined) return existing;
    const path = join(await this.root(), relative);
    await attempt(`create ${path}`, () => this.#files.mkdir(path, { recursive: true, mode: DIRECTORY_MODE }));
    const created = await this.find(relative);
    if (created === undefined) {
      throw new HoldfastError('storage-unavailable', `${path} vanished right after it was created`);
    }
    return created;
  }

  /**
   * Makes the names on the way from the root to `directory` durable, each once per instance. They may be new although
   * this process created none of them: another may have, and may have died or not yet synced.
   */
  async syncPathTo(directory: string): Promise<void> {
    const root = await this.root();
    const parents: string[] = [];
    let below = directory;
    while (below !== root && !this.#knownDurable.has(below)) {
      parents.push(dirname(below));
      below = dirname(below);
    }
    await Promise.all(parents.map((parent) => syncDirectory(this.#files, parent)));
    if (this.#knownDurable.size > KNOWN_DURABLE_MAX) this.#knownDurable.clear();
    this.#knownDurable.add(directory);
    for (const parent of parents) this.#knownDurable.add(parent);
  }

  /** Throws `repository-missing` unless the root is a directory that can be read at this moment. */
  async proveRoot(): Promise<void> {
    try {
      await (await this.#files.opendir(await this.root())).close();
    } catch (error) {
      throw this.#rootFailure(error);
    }
  }

  async #createRoot(): Promise<void> {
    const doing = `create ${this.#rootDir}`;
    const first = await attempt(doing, () =>
      this.#files.mkdir(this.#rootDir, { recursive: true, mode: DIRECTORY_MODE }),
    );
    if (first === undefined) return;
    const stop = dirname(first);
    for (let path = dirname(this.#rootDir); ; path = dirname(path)) {
      await syncDirectory(this.#files, path);
      if (path === stop || path === dirname(path)) return;
    }
  }

  /** A link that leads nowhere looks like absence to `realpath`; what it should lead to may exist on a missing disk. */
  async #refuseLinks(root: string, relative: string): Promise<void> {
    let path = root;
    for (const part of relative.split('/')) {
      path = join(path, part);
      try {
        if ((await this.#files.lstat(path)).isSymbolicLink()) throw this.#symbolicLink(path);
      } catch (error) {
        if (isAbsence(error)) return;
        throw localFailure(error, `reach ${path}`);
      }
    }
  }

  #symbolicLink(path: string): HoldfastError {
    return new HoldfastError('storage-denied', `${path} is or lies behind a symbolic link inside the store`, {
      hint: `replace the link by a real directory or a bind mount; only the root ${this.#rootDir} may be a link`,
      context: { path },
    });
  }

  #rootFailure(error: unknown): unknown {
    if (!isAbsence(error)) return localFailure(error, `read ${this.#rootDir}`);
    return new HoldfastError('repository-missing', `the directory ${this.#rootDir} does not exist`, {
      hint: 'mount the disk it lies on, correct its URL, or run "holdfast init" to prepare a new repository',
      context: { path: this.#rootDir },
      cause: error,
    });
  }
}

/** Whether an error says that the path, or the directory it would lie in, does not exist. */
export function isAbsence(error: unknown): boolean {
  const code = systemErrorCode(error);
  return code === 'ENOENT' || code === 'ENOTDIR';
}
