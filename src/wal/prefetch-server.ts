import { readFile, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import { readPostmasterFile } from '../postgres/data-directory-use.ts';
import type { PrefetchPurpose } from './prefetch-owner.ts';

/**
 * The server that recovers in a data directory; undefined where none runs, where it is not in archive recovery (the
 * signal files of the manual's "Recovering Using a Continuous Archive Backup" go when that ends), or where the files it
 * asks for are not to lie in its own `pg_wal`, of this user.
 */
export async function recoveringServer(
  dataDirectory: string,
  walDirectory: string,
): Promise<PrefetchPurpose['postmaster'] | undefined> {
  try {
    const [server, isRecovering] = await Promise.all([
      readPostmasterFile(dataDirectory),
      isInArchiveRecovery(dataDirectory),
    ]);
    if (server === undefined || !isRecovering || !isPositive(server.pid) || !isPositive(server.startedAt)) {
      return undefined;
    }
    const [own, asked] = await Promise.all([realpath(join(dataDirectory, 'pg_wal')), realpath(walDirectory)]);
    if (own !== asked || (await stat(own)).uid !== process.getuid?.()) return undefined;
    process.kill(server.pid, 0);
    return { pid: server.pid, startedAt: server.startedAt };
  } catch {
    return undefined;
  }
}

function isPositive(value: number): boolean {
  return Number.isInteger(value) && value > 0;
}

async function isInArchiveRecovery(dataDirectory: string): Promise<boolean> {
  for (const name of ['recovery.signal', 'standby.signal']) {
    try {
      await readFile(join(dataDirectory, name));
      return true;
    } catch (error) {
      if (systemErrorCode(error) !== 'ENOENT') return true;
    }
  }
  return false;
}
