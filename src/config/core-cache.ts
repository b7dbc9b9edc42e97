import { chmodSync, mkdirSync, readFileSync, renameSync, statSync, unlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import type { CoreConfiguration } from './configuration.ts';
import { defaultStateDirectory } from './state-directory.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * A checked configuration kept as JSON, so that PostgreSQL's archive and restore commands, run once per WAL segment,
 * need neither the YAML parser nor the schema. Never trusted on doubt: the entry must belong to this user alone, carry
 * this version of Holdfast, and fit the configuration file's inode, size and times. Everything here is synchronous: it
 * is a handful of system calls at start.
 */
interface Entry {
  version: string;
  fingerprint: string;
  /** The default depends on the environment, so an entry made under another one does not fit. */
  defaultState: string;
  core: CoreConfiguration;
}

export interface CoreCache {
  directory: string;
  version: string;
  environment: Environment;
}

/** The cached configuration, or undefined on any doubt. */
export function readCoreCache(file: string, cache: CoreCache): CoreConfiguration | undefined {
  try {
    const path = entryPath(file, cache);
    const info = statSync(path);
    const mine = info.isFile() && info.uid === process.getuid?.() && (info.mode & 0o077) === 0;
    if (!mine) return undefined;
    const entry = JSON.parse(readFileSync(path, 'utf8')) as Partial<Entry>;
    const fits =
      entry.version === cache.version &&
      entry.fingerprint === fingerprint(file)?.text &&
      entry.defaultState === defaultStateDirectory(cache.environment) &&
      entry.core?.file === file;
    return fits ? entry.core : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Keeps a configuration that was just read, atomically and readable by this user only. Silently does nothing where it
 * cannot, where the file changed in the last two seconds (a further change might leave the same times), or where a
 * repository's URL holds a password.
 */
export function writeCoreCache(core: CoreConfiguration, cache: CoreCache, nowMs: number): void {
  const print = fingerprint(core.file);
  if (print === undefined || nowMs - print.changedMs < 2000) return;
  if (core.repositories.some((repository) => (URL.parse(repository.url)?.password ?? '') !== '')) return;
  const { file, clusterNames, repositories, recipients, identity, stateDirectory } = core;
  const entry: Entry = {
    version: cache.version,
    fingerprint: print.text,
    defaultState: defaultStateDirectory(cache.environment),
    core: {
      file,
      clusterNames,
      repositories,
      recipients,
      ...(identity !== undefined && { identity }),
      stateDirectory,
    },
  };
  const path = entryPath(file, cache);
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    makeFolder(dirname(cache.directory));
    makeFolder(cache.directory);
    writeFileSync(temporary, JSON.stringify(entry), { mode: 0o600, flag: 'wx' });
    chmodSync(temporary, 0o600);
    renameSync(temporary, path);
  } catch {
    try {
      unlinkSync(temporary);
    } catch {
      // There was none.
    }
  }
}

/** Not `recursive`: Node never returns from that below a folder like /proc, where a parent cannot be made. */
function makeFolder(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
  }
}

/** A path longer than a file name can be ends as an error of the file system, which callers take for "no entry". */
function entryPath(file: string, cache: CoreCache): string {
  return join(cache.directory, `config-${encodeURIComponent(file)}.json`);
}

function fingerprint(file: string): { text: string; changedMs: number } | undefined {
  try {
    const info = statSync(file, { bigint: true });
    return {
      text: [info.dev, info.ino, info.size, info.mtimeNs, info.ctimeNs].join(':'),
      changedMs: Number(info.ctimeNs > info.mtimeNs ? info.ctimeNs : info.mtimeNs) / 1e6,
    };
  } catch {
    return undefined;
  }
}
