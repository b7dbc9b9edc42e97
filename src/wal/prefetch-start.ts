import { writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';

import { classifyWalFile, nextSegmentName, type WalSegmentName } from '../postgres/wal-segment.ts';
import type { FetchResult } from './fetch.ts';
import {
  deliveredName,
  identifyProcess,
  isSameProcess,
  isSamePurpose,
  type PrefetchOwner,
  PREFETCH_DIRECTORY,
  type PrefetchPurpose,
  readOwner,
  registerOwner,
  windowDirectory,
} from './prefetch-owner.ts';
import { recoveringServer } from './prefetch-server.ts';

/** One request that was answered without a window. */
export interface Delivery {
  /** What PostgreSQL asked for (`%f`), and where it was to be (`%p`). */
  name: string;
  path: string;
  /** The working directory: the server's data directory. */
  directory: string;
  /** As the launcher hands them on; undefined: not a request that a window could serve. */
  words: string | undefined;
  systemIdentifier: string | undefined;
  result: FetchResult;
}

/** What is to be done about the files that recovery asks for next. */
export type NextStep =
  | { kind: 'nothing' }
  /** The window is filled for other requests: another timeline, another command, another server. */
  | { kind: 'discard'; owner: PrefetchOwner }
  | { kind: 'note'; owner: PrefetchOwner }
  | { kind: 'start'; purpose: PrefetchPurpose; replaces?: PrefetchOwner };

/**
 * Judges one delivery. A complete segment starts a window behind it, unless a process fills one for these requests
 * already; a window for other requests is discarded, and so is any when a history file is handed over, as recovery may be
 * about to change its timeline. Whatever is absent, failed or still grows starts nothing. Pure.
 */
export function planNextStep(
  delivery: Pick<Delivery, 'name' | 'words' | 'systemIdentifier' | 'result'>,
  server: PrefetchPurpose['postmaster'] | undefined,
  owner: PrefetchOwner | undefined,
): NextStep {
  const { name, words, systemIdentifier, result } = delivery;
  const file = classifyWalFile(name);
  const discard: NextStep = owner === undefined ? { kind: 'nothing' } : { kind: 'discard', owner };
  if (result.kind !== 'delivered') return { kind: 'nothing' };
  if (file?.kind === 'history') return discard;
  if (file?.kind !== 'segment' || words === undefined) return { kind: 'nothing' };
  if (result.hash === undefined || systemIdentifier === undefined || server === undefined) return discard;
  const purpose = { postmaster: server, systemIdentifier, timeline: name.slice(0, 8), words };
  if (owner === undefined) return { kind: 'start', purpose };
  return isSamePurpose(owner.purpose, purpose)
    ? { kind: 'note', owner }
    : { kind: 'start', purpose, replaces: owner };
}

/**
 * Acts on one delivery; `spawn` begins the process that fills the window and returns its number. Never throws, and never
 * takes longer than a few files do: recovery waits for it.
 */
export async function afterDelivery(
  delivery: Delivery,
  spawn: (words: string[]) => number | undefined,
): Promise<void> {
  const { name, path, directory } = delivery;
  const walDirectory = resolve(directory, dirname(path));
  const spool = join(walDirectory, PREFETCH_DIRECTORY);
  try {
    const [server, owner] = await Promise.all([recoveringServer(directory, walDirectory), readOwner(spool)]);
    const step = planNextStep(delivery, server, owner);
    switch (step.kind) {
      case 'nothing':
        return;
      case 'discard':
        await endOwner(step.owner);
        return;
      case 'note': {
        const note = join(windowDirectory(spool, step.owner.process), deliveredName(name));
        await writeFile(note, '', { mode: 0o600 });
        return;
      }
      case 'start': {
        if (step.replaces !== undefined) await endOwner(step.replaces);
        await start(spool, step.purpose, delivery, spawn);
        return;
      }
      default:
        step satisfies never;
    }
  } catch {
    // The next segment is fetched like this one: slower, and no worse.
  }
}

async function start(
  spool: string,
  purpose: PrefetchPurpose,
  { name, path, result }: Delivery,
  spawn: (words: string[]) => number | undefined,
): Promise<void> {
  if (result.kind !== 'delivered') return;
  const pid = spawn(['wal', 'prefetch', name, path, ...purpose.words.split('\n').slice(0, -1)]);
  const process = pid === undefined ? undefined : await identifyProcess(pid);
  if (process === undefined) return;
  const next = nextSegmentName(name as WalSegmentName, result.sizeBytes);
  await registerOwner(spool, { process, purpose }, next);
}

async function endOwner(owner: PrefetchOwner): Promise<void> {
  const now = await identifyProcess(owner.process.pid);
  if (now !== undefined && isSameProcess(now, owner.process)) process.kill(now.pid, 'SIGTERM');
}
