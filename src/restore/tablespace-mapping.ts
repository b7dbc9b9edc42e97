import { isAbsolute, normalize, resolve } from 'node:path';

import { HoldfastError } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';

/**
 * Reads `OLD=NEW` pairs as pg_basebackup does: both absolute, `\=` for an equals sign in a path. Throws `usage-invalid`,
 * or `option-conflict` where a location is mapped twice.
 */
export function parseTablespaceMapping(pairs: readonly string[]): Map<string, string> {
  const mapping = new Map<string, string>();
  for (const pair of pairs) {
    const match = /^((?:[^=\\]|\\.)+)=((?:[^=\\]|\\.)+)$/s.exec(pair);
    const [from, to] = [match?.[1], match?.[2]].map((part) => part?.replaceAll('\\=', '='));
    if (from === undefined || to === undefined || !isAbsolute(from) || !isAbsolute(to)) {
      throw new HoldfastError('usage-invalid', `"${pair}" is not OLD=NEW with two absolute paths`, {
        hint: '--tablespace-mapping /mnt/fast=/mnt/scratch/fast',
      });
    }
    const old = normalized(from);
    if (mapping.has(old)) throw new HoldfastError('option-conflict', `tablespace ${old} is mapped twice`);
    mapping.set(old, normalized(to));
  }
  const targets = new Set(mapping.values());
  if (targets.size < mapping.size) {
    throw new HoldfastError('option-conflict', 'two tablespaces are mapped to one directory');
  }
  return mapping;
}

/**
 * Holds a mapping to a backup: every tablespace outside the data directory has a new place, because nothing may be
 * written where the original's files lie. Throws `usage-invalid` with the exact options that are missing.
 */
export function checkTablespaceMapping(
  record: BackupRecord,
  mapping: ReadonlyMap<string, string>,
  dataDirectory: string,
): Map<string, string> {
  const outside = record.tablespaces.filter(({ location }) => isAbsolute(location));
  const complete = new Map<string, string>();
  const missing: string[] = [];
  for (const { location } of outside) {
    const to = mapping.get(normalized(location));
    if (to === undefined) missing.push(location);
    else complete.set(location, to);
  }
  if (missing.length > 0) {
    const flags = missing.map(
      (location) => `--tablespace-mapping ${quoted(`${location}=${dataDirectory}-${basenameOf(location)}`)}`,
    );
    throw new HoldfastError(
      'usage-invalid',
      `the backup has tablespaces outside the data directory, and it is not said where they are to go: ${missing.join(', ')}`,
      { hint: `add ${flags.join(' ')}` },
    );
  }
  const known = new Set(outside.map(({ location }) => normalized(location)));
  for (const old of mapping.keys()) {
    if (known.has(old)) continue;
    throw new HoldfastError('usage-invalid', `the backup has no tablespace at ${old}`, {
      hint:
        known.size === 0 ? 'it has none: leave --tablespace-mapping out' : `it has ${[...known].join(', ')}`,
    });
  }
  return complete;
}

function normalized(path: string): string {
  const clean = normalize(path);
  return clean.length > 1 && clean.endsWith('/') ? clean.slice(0, -1) : clean;
}

function basenameOf(path: string): string {
  return resolve(path).split('/').at(-1) ?? 'tablespace';
}

function quoted(word: string): string {
  return /^[A-Za-z0-9_./=-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
