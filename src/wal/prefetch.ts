import { join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import {
  isSameProcess,
  type PrefetchOwner,
  PREFETCH_DIRECTORY,
  readOwner,
  removeWindow,
  windowDirectory,
} from './prefetch-owner.ts';
import { recoveringServer } from './prefetch-server.ts';
import { PrefetchWindow, type WindowOptions } from './prefetch-window.ts';

export interface PrefetchOptions extends Omit<WindowOptions, 'directory' | 'systemIdentifier'> {
  /** Whose window it is, as it was registered. */
  owner: PrefetchOwner;
  dataDirectory: string;
  walDirectory: string;
  /** Whether what `fetch` relies on (the configuration) is still as it was. */
  isCurrent?: () => Promise<boolean>;
  /** The window is given up where recovery takes nothing for so long. Default 60 s. */
  idleMs?: number;
  signal: AbortSignal;
}

const IDLE_MS = 60_000;
const TICK_MS = 20;
/** Between ticks where recovery has taken nothing for a while. */
const SLOW_TICK_MS = 100;
const SLOW_AFTER_MS = 2000;
const LOOK_ROUND_MS = 100;

/**
 * Keeps the segments that follow ready for recovery until there are no more, one cannot be had (whoever asks for it finds
 * out why and says so), the server is gone or has recovered, another process has taken over, recovery takes nothing for
 * a while, or `signal` is aborted. Then it removes what it made. A window serves one boot only.
 * Throws what the file system does.
 */
export async function prefetchWal(options: PrefetchOptions): Promise<void> {
  const { owner, walDirectory, signal, idleMs = IDLE_MS } = options;
  const spool = join(walDirectory, PREFETCH_DIRECTORY);
  const window = new PrefetchWindow({
    ...options,
    directory: windowDirectory(spool, owner.process),
    systemIdentifier: owner.purpose.systemIdentifier,
  });
  let lookedAtMs = -Infinity;
  try {
    while (!signal.aborted && window.idleMs < idleMs) {
      if (performance.now() - lookedAtMs >= LOOK_ROUND_MS) {
        if (!(await isNeeded(spool, options))) break;
        lookedAtMs = performance.now();
      }
      await window.advance();
      if (window.isOver) break;
      await window.pause(window.idleMs > SLOW_AFTER_MS ? SLOW_TICK_MS : TICK_MS, signal);
    }
  } catch (error) {
    // Somebody removes the whole data directory.
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  } finally {
    await window.stop();
    await removeWindow(spool, owner.process);
  }
}

async function isNeeded(spool: string, options: PrefetchOptions): Promise<boolean> {
  const { owner, dataDirectory, walDirectory, isCurrent } = options;
  const registered = await readOwner(spool);
  if (registered === undefined || !isSameProcess(registered.process, owner.process)) return false;
  const server = await recoveringServer(dataDirectory, walDirectory);
  const { pid, startedAt } = owner.purpose.postmaster;
  if (server?.pid !== pid || server.startedAt !== startedAt) return false;
  return isCurrent === undefined || (await isCurrent());
}
