import { statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { HoldfastError } from '../../errors.ts';
import { isWalSegmentName, lastSegmentBefore } from '../../postgres/wal-segment.ts';
import { fetchWal } from '../../wal/fetch.ts';
import { type PrefetchOptions, prefetchWal } from '../../wal/prefetch.ts';
import { type PrefetchOwner, PREFETCH_DIRECTORY, readOwner, removeWindow } from '../../wal/prefetch-owner.ts';
import type { CommandSpec, Invocation } from '../command.ts';
import { FETCH_OPTIONS, fetchOptions, openRepositories, readFetchRequest } from '../fetch-request.ts';
import { walFetch, WORDS_VARIABLE } from './wal-fetch.ts';

export const walPrefetch: CommandSpec = {
  name: 'wal prefetch',
  group: 'Used by PostgreSQL',
  summary: 'keep the segments that follow ready for recovery; "wal fetch" starts it',
  details: `Started by "wal fetch" itself, never by hand. Puts the segments that follow NAME, each whole and checked, into
holdfast-prefetch beside PATH, a few at a time, from where the following "wal fetch" take them. Ends by itself when there
are no more, when the server stops or has recovered, or when nothing was taken for a minute, and removes what is left.`,
  arguments: walFetch.arguments,
  options: FETCH_OPTIONS,
  examples: walFetch.examples,
  run,
};

const REGISTERED_WITHIN_MS = 5000;

async function run(invocation: Invocation): Promise<void> {
  const {
    arguments: [name = '', path = ''],
    context,
  } = invocation;
  const { environment, directory, signal } = context;
  const words = environment[WORDS_VARIABLE];
  if (words === undefined || !isWalSegmentName(name)) {
    throw new HoldfastError('usage-invalid', 'wal prefetch is started by "holdfast wal fetch"', {
      hint: 'use "holdfast wal fetch" as restore_command: it fetches ahead by itself',
    });
  }
  const walDirectory = resolve(directory, dirname(path));
  const spool = join(walDirectory, PREFETCH_DIRECTORY);
  const owner = await untilRegistered(spool, signal);
  if (owner === undefined) return;
  try {
    if (owner.purpose.words === words) await prefetch(invocation, { owner, walDirectory, after: name });
  } finally {
    await removeWindow(spool, owner.process);
  }
}

async function prefetch(
  invocation: Invocation,
  window: Pick<PrefetchOptions, 'owner' | 'walDirectory' | 'after'>,
): Promise<void> {
  const { environment, directory, signal } = invocation.context;
  const request = await readFetchRequest(invocation);
  const { configuration, segmentSize, until } = request;
  const before = fingerprint(configuration.file);
  const { repositories } = await openRepositories(request, { configuration, environment, signal });
  const isSameCluster = window.owner.purpose.systemIdentifier === request.systemIdentifier;
  if (!isSameCluster || segmentSize === undefined || repositories.length === 0) return;
  await prefetchWal({
    ...window,
    dataDirectory: directory,
    segmentSize,
    ...(until !== undefined && { end: lastSegmentBefore(until, segmentSize) + 1n }),
    // What is out of reach is waited for by whoever needs it, and told.
    fetch: async (segment, destination, cancel) =>
      fetchWal(fetchOptions(request, { name: segment, destination, repositories, deadlineMs: 0 }, cancel)),
    isCurrent: () => Promise.resolve(fingerprint(configuration.file) === before),
    signal,
  });
}

/** The one that started this process registers its launcher, this process's parent, as the owner. */
async function untilRegistered(spool: string, signal: AbortSignal): Promise<PrefetchOwner | undefined> {
  const giveUpAt = performance.now() + REGISTERED_WITHIN_MS;
  while (!signal.aborted && performance.now() < giveUpAt) {
    const owner = await readOwner(spool);
    if (owner?.process.pid === process.ppid) return owner;
    await sleep(20);
  }
  return undefined;
}

function fingerprint(file: string): string {
  const info = statSync(file, { bigint: true, throwIfNoEntry: false });
  return info === undefined ? '' : [info.dev, info.ino, info.size, info.mtimeNs, info.ctimeNs].join(':');
}
