import { setTimeout as sleep } from 'node:timers/promises';

import type { CoreConfiguration, RepositoryConfiguration } from '../config/configuration.ts';
import { parseDuration } from '../config/durations.ts';
import { HoldfastError } from '../errors.ts';
import { type Lsn, parseLsn } from '../postgres/lsn.ts';
import { parseSystemIdentifier, type SystemIdentifier } from '../postgres/system-identifier.ts';
import type { Repository } from '../repository/repository.ts';
import { type FetchOptions, type FetchResult, fetchWal } from '../wal/fetch.ts';
import { localControlData } from '../wal/local-cluster.ts';
import { type Invocation, listOption, type OptionSpec, textOption } from './command.ts';
import { coreConfiguration } from './core-configuration.ts';
import { namedRepository, openNamed, type RepositoryOpener } from './open-repository.ts';

const FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 5000;

/** Where `wal fetch` looks and what it is told about the recovery; `bin/holdfast` knows these flags, too. */
export const FETCH_OPTIONS: readonly OptionSpec[] = [
  {
    flags: '--cluster <name>',
    summary: 'the cluster it belongs to (default: found by its system identifier)',
  },
  {
    flags: '--system-identifier <number>',
    summary: "the history it belongs to (default: that of the working directory's pg_control)",
  },
  { flags: '--repository <name>', summary: 'ask only this one, in the order given', repeatable: true },
  { flags: '--until <lsn>', summary: 'what recovery has to reach: nothing before it may be absent' },
  { flags: '--timeout <duration>', summary: 'how long what is out of reach is tried again (default 60s)' },
];

/** What one command line asks for. */
export interface FetchRequest {
  configuration: CoreConfiguration;
  /** In the order they are asked. */
  repositories: readonly RepositoryConfiguration[];
  /** Whether the command line says which. */
  namesRepositories: boolean;
  clusters: readonly string[];
  systemIdentifier: SystemIdentifier | undefined;
  segmentSize: number | undefined;
  until: Lsn | undefined;
  deadlineMs: number;
}

/** Reads the words and the configuration. Throws for what cannot be understood. */
export async function readFetchRequest({ options, context }: Invocation): Promise<FetchRequest> {
  const { environment, directory, configFile } = context;
  const configuration = await coreConfiguration({ named: configFile, directory, environment });
  const cluster = textOption(options, 'cluster');
  const until = textOption(options, 'until');
  const deadlineMs = parseDuration(textOption(options, 'timeout') ?? '60s');
  const chosen = listOption(options, 'repository').map((one) => namedRepository(configuration, one));
  const control = await localControlData(directory);
  const given = textOption(options, 'systemIdentifier');
  return {
    configuration,
    repositories: chosen.length > 0 ? chosen : configuration.repositories,
    namesRepositories: chosen.length > 0,
    clusters: cluster === undefined ? configuration.clusterNames : [cluster],
    systemIdentifier: given === undefined ? control?.systemIdentifier : parseSystemIdentifier(given),
    segmentSize: control?.walSegmentSize,
    until: until === undefined ? undefined : parseLsn(until),
    deadlineMs,
  };
}

/** `fetchWal`'s options for one file. */
export function fetchOptions(
  request: FetchRequest,
  file: Pick<FetchOptions, 'name' | 'destination' | 'repositories' | 'deadlineMs'>,
  signal: AbortSignal,
): FetchOptions {
  const { clusters, systemIdentifier, segmentSize, until } = request;
  return {
    ...file,
    clusters,
    ...(systemIdentifier !== undefined && { systemIdentifier }),
    ...(segmentSize !== undefined && { segmentSize }),
    ...(until !== undefined && { until }),
    signal,
  };
}

export interface OpenedRepositories {
  repositories: Repository[];
  /** Why others could not be opened. */
  failures: Error[];
}

/**
 * Opens what can be opened, once. Stores this version cannot use hold nothing it ever wrote: where the command names none
 * of them they are passed over, unless nothing else is there.
 */
export async function openRepositories(
  request: FetchRequest,
  opener: RepositoryOpener,
): Promise<OpenedRepositories> {
  const usable = request.repositories.filter(({ url }) => url.startsWith('file:') || url.startsWith('env:'));
  const asked = request.namesRepositories || usable.length === 0 ? request.repositories : usable;
  const results = await Promise.allSettled(asked.map(async (one) => openNamed(one, opener)));
  opener.signal?.throwIfAborted();
  return {
    repositories: results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])),
    failures: results.flatMap((result) =>
      result.status === 'rejected'
        ? [result.reason instanceof Error ? result.reason : new Error(String(result.reason))]
        : [],
    ),
  };
}

/**
 * Fetches one file from all repositories of the request: those that cannot be opened do not keep the others from
 * answering. What is out of reach is tried again until the deadline, unless the file was had before. Throws where no
 * repository could be opened.
 */
export async function fetchFromAll(
  request: FetchRequest,
  file: Pick<FetchOptions, 'name' | 'destination'>,
  opener: RepositoryOpener & { signal: AbortSignal },
): Promise<{ result: FetchResult; failures: Error[] }> {
  const { signal } = opener;
  const giveUpAt = performance.now() + request.deadlineMs;
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, MAX_PAUSE_MS)) {
    const { repositories, failures } = await openRepositories(request, opener);
    const waits = failures.some((error) => error instanceof HoldfastError && error.retryable);
    const leftMs = Math.max(0, giveUpAt - performance.now());
    const isLast = !waits || pauseMs > leftMs;
    if (repositories.length > 0) {
      const deadlineMs = isLast ? leftMs : 0;
      const result = await fetchWal(fetchOptions(request, { ...file, repositories, deadlineMs }, signal));
      if (isLast || isSettled(request.until, result)) {
        return { result, failures };
      }
    } else if (isLast) {
      throw failures[0] ?? new HoldfastError('config-invalid', 'no repository can be asked');
    }
    await sleep(pauseMs, undefined, { signal });
  }
}

/**
 * Whether an answer stands although some repositories could not be opened. A complete file does; that there is none, or
 * that a segment is not complete, another repository might know better, unless recovery need not get any further.
 * `fetchWal` judges repositories that were opened and then failed in the same way. Pure.
 */
export function isSettled(until: Lsn | undefined, result: FetchResult): boolean {
  if (result.kind === 'failed') return false;
  if (result.kind === 'absent') return until !== undefined;
  const { storedUpTo } = result;
  return storedUpTo === undefined || (until !== undefined && storedUpTo >= until);
}
