import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { formatLsn, type Lsn, parseLsn } from '../postgres/lsn.ts';

/**
 * The newest WAL this host has ever seen confirmed for a cluster, kept in the state directory. A repository that ends
 * before it has lost WAL: no repository can know that by itself. Best effort: a host may have none, or an old one.
 */
export interface WalHighWaterMark {
  timeline: number;
  /** The last segment. */
  name: string;
  /** End of the last segment, exclusive. */
  endLsn: Lsn;
  /** Of the newest commit seen, RFC 3339; null where none was. */
  lastCommitTime: string | null;
  /** Name of the repositories that confirmed it, in the configuration's words. */
  repositories: string[];
}

function highWaterFile(stateDirectory: string, systemIdentifier: string): string {
  return join(stateDirectory, 'wal', `${systemIdentifier}.json`);
}

/** The mark for a cluster; undefined where there is none that can be understood. */
export async function readWalHighWater(
  stateDirectory: string,
  systemIdentifier: string,
): Promise<WalHighWaterMark | undefined> {
  try {
    const text = await readFile(highWaterFile(stateDirectory, systemIdentifier), 'utf8');
    const { timeline, name, endLsn, lastCommitTime, repositories } = JSON.parse(text) as Record<
      string,
      unknown
    >;
    if (typeof timeline !== 'number' || typeof name !== 'string' || typeof endLsn !== 'string')
      return undefined;
    return {
      timeline,
      name,
      endLsn: parseLsn(endLsn),
      lastCommitTime: typeof lastCommitTime === 'string' ? lastCommitTime : null,
      repositories: Array.isArray(repositories) ? repositories.map(String) : [],
    };
  } catch {
    return undefined;
  }
}

/**
 * Moves the mark forward, never back (a higher timeline is further, then a higher LSN; the commit time never falls on a
 * timeline). Never throws and never syncs: archiving must not depend on this host's disk.
 */
export async function raiseWalHighWater(
  stateDirectory: string,
  systemIdentifier: string,
  mark: WalHighWaterMark,
): Promise<void> {
  const file = highWaterFile(stateDirectory, systemIdentifier);
  const temporary = `${file}.${process.pid}.tmp`;
  try {
    const current = await readWalHighWater(stateDirectory, systemIdentifier);
    if (current !== undefined && !isBeyond(mark, current)) return;
    const next = {
      ...mark,
      endLsn: formatLsn(mark.endLsn),
      lastCommitTime: mark.lastCommitTime ?? current?.lastCommitTime ?? null,
    };
    await mkdir(join(stateDirectory, 'wal'), { recursive: true, mode: 0o700 });
    await writeFile(temporary, `${JSON.stringify(next)}\n`, { mode: 0o600 });
    await rename(temporary, file);
  } catch {
    await rm(temporary, { force: true }).catch(() => undefined);
  }
}

function isBeyond(mark: WalHighWaterMark, current: WalHighWaterMark): boolean {
  return mark.timeline === current.timeline ? mark.endLsn > current.endLsn : mark.timeline > current.timeline;
}
