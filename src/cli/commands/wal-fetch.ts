import { setTimeout as sleep } from 'node:timers/promises';

import type { RepositoryConfiguration } from '../../config/configuration.ts';
import { parseDuration } from '../../config/durations.ts';
import { HoldfastError } from '../../errors.ts';
import { parseLsn } from '../../postgres/lsn.ts';
import { parseSystemIdentifier } from '../../postgres/system-identifier.ts';
import type { Repository } from '../../repository/repository.ts';
import { fetchWal, type FetchResult } from '../../wal/fetch.ts';
import { localControlData } from '../../wal/local-cluster.ts';
import { listOption, textOption, type CommandSpec, type Invocation } from '../command.ts';
import { coreConfiguration } from '../core-configuration.ts';
import { namedRepository, openNamed, type RepositoryOpener } from '../open-repository.ts';

/** Thrown for a proven absence: not an error, but not a success either. */
export class WalAbsent extends Error {
  override readonly name = 'WalAbsent';
}

export const walFetch: CommandSpec = {
  name: 'wal fetch',
  group: 'Used by PostgreSQL',
  summary: 'hand one WAL file to recovery (restore_command)',
  details: `Ends with 0 when the file is at PATH, whole and checked; with 1 only where the repositories prove that there
is no such file, which PostgreSQL may take for the end of the archive; with 126 in every other case, after
retrying, so that recovery stops instead of opening a database that ends too early.`,
  arguments: [
    { name: 'name', summary: 'the file PostgreSQL asks for (%f)' },
    { name: 'path', summary: 'where it is to be (%p)' },
  ],
  options: [
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
  ],
  examples: [
    {
      command:
        "restore_command = '/opt/holdfast/bin/holdfast wal fetch %f %p --config /etc/holdfast/holdfast.yaml'",
      does: 'for a standby of your own; "holdfast restore base" writes it by itself',
    },
  ],
  run,
};

async function run({ arguments: [name = '', path = ''], options, context }: Invocation): Promise<void> {
  const { environment, directory, configFile, signal, output } = context;
  const configuration = await coreConfiguration({ named: configFile, directory, environment });
  const cluster = textOption(options, 'cluster');
  const until = textOption(options, 'until');
  const deadlineMs = parseDuration(textOption(options, 'timeout') ?? '60s');
  const chosen = listOption(options, 'repository').map((one) => namedRepository(configuration, one));
  const giveUpAt = performance.now() + deadlineMs;

  const control = await localControlData(directory);
  const given = textOption(options, 'systemIdentifier');
  const systemIdentifier = given === undefined ? control?.systemIdentifier : parseSystemIdentifier(given);
  const opened = await openWhatAnswers(
    chosen.length > 0 ? chosen : configuration.repositories,
    { configuration, environment, signal },
    giveUpAt,
  );
  const [firstFailure] = opened.failures;
  if (opened.repositories.length === 0) {
    throw firstFailure ?? new HoldfastError('config-invalid', 'no repository can be asked');
  }
  for (const error of opened.failures) output.warn(error.message);
  const result = await fetchWal({
    name,
    destination: path,
    repositories: opened.repositories,
    clusters: cluster === undefined ? configuration.clusterNames : [cluster],
    ...(systemIdentifier !== undefined && { systemIdentifier }),
    ...(control !== undefined && { segmentSize: control.walSegmentSize }),
    ...(until !== undefined && { until: parseLsn(until) }),
    deadlineMs: Math.max(0, giveUpAt - performance.now()),
    signal,
  });
  for (const warning of result.warnings) output.warn(warning.message);
  finish(name, result, firstFailure, output);
}

function finish(
  name: string,
  result: FetchResult,
  notAsked: Error | undefined,
  output: Invocation['context']['output'],
): void {
  switch (result.kind) {
    case 'delivered': {
      const { repository, sizeBytes } = result;
      output.result({ name, found: true, repository, sizeBytes }, () =>
        output.verbose ? `${name} from ${repository}` : '',
      );
      return;
    }
    case 'absent':
      // A repository that could not be asked may have it.
      if (notAsked !== undefined) throw notAsked;
      output.result({ name, found: false, reason: result.reason }, () =>
        output.verbose ? `${name} is not in the repositories: ${result.reason}` : '',
      );
      throw new WalAbsent(result.reason);
    case 'failed':
      throw result.error;
    default:
      result satisfies never;
  }
}

/**
 * Opens every repository that can be opened, waiting for those out of reach only while none is open. Stores this version
 * cannot use hold nothing it ever wrote, so they are passed over unless nothing else is there.
 */
async function openWhatAnswers(
  configured: readonly RepositoryConfiguration[],
  opener: RepositoryOpener,
  giveUpAt: number,
): Promise<{ repositories: Repository[]; failures: Error[] }> {
  const local = configured.filter((one) => one.url.startsWith('file:') || one.url.startsWith('env:'));
  const asked = local.length > 0 ? local : configured;
  for (let pauseMs = 200; ; pauseMs = Math.min(pauseMs * 2, 5000)) {
    const results = await Promise.allSettled(asked.map(async (one) => openNamed(one, opener)));
    opener.signal?.throwIfAborted();
    const repositories = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
    const failures = results.flatMap((result) =>
      result.status === 'rejected'
        ? [result.reason instanceof Error ? result.reason : new Error(String(result.reason))]
        : [],
    );
    const waiting = failures.some((error) => error instanceof HoldfastError && error.retryable);
    if (repositories.length > 0 || !waiting || performance.now() + pauseMs > giveUpAt)
      return { repositories, failures };
    await sleep(pauseMs, undefined, { ...(opener.signal && { signal: opener.signal }) });
  }
}
