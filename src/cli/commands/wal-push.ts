import { hostname } from 'node:os';

import { HoldfastError } from '../../errors.ts';
import { cacheDirectory } from '../../config/state-directory.ts';
import { pushWithAhead } from '../../wal/push-ahead.ts';
import type { PushToOptional } from '../../wal/push-optional.ts';
import { textOption, type CommandSpec, type Invocation } from '../command.ts';
import { coreConfiguration } from '../core-configuration.ts';
import { openNamed, type RepositoryOpener, requiredRepositories } from '../open-repository.ts';
import {
  acknowledgementDirectory,
  prepareAcknowledgements,
  removeOldAcknowledgements,
} from '../wal-acknowledgement.ts';

export const walPush: CommandSpec = {
  name: 'wal push',
  group: 'Used by PostgreSQL',
  summary: 'store one WAL file (archive_command)',
  details: `Ends with 0 only when every required repository has the file, durable. The same file again is a success; a
different one under the same name is refused for ever. The cluster is found by the system identifier in the
file. Where PostgreSQL has more segments ready, the next ones are stored at the same time. Optional repositories
are tried too and hold nobody up: "holdfast wal catch-up" makes up for what they missed. Never ends with a status above 125, which would stop PostgreSQL's archiver uncounted.`,
  arguments: [{ name: 'path', summary: 'the file, as PostgreSQL gives it (%p)' }],
  options: [
    { flags: '--cluster <name>', summary: 'the cluster it belongs to, where several are configured' },
    {
      flags: '--adopt <system-identifier>',
      summary: 'once, after pg_upgrade or a new initdb: begin a new history under a known name',
    },
  ],
  examples: [
    {
      command:
        "archive_command = '/opt/holdfast/bin/holdfast wal push %p --config /etc/holdfast/holdfast.yaml'",
      does: 'in postgresql.conf, with archive_mode = on',
    },
  ],
  run,
};

async function run({ arguments: [path = ''], options, context }: Invocation): Promise<void> {
  const { environment, directory, configFile, signal, output } = context;
  const acknowledged = acknowledgementDirectory(cacheDirectory(environment));
  removeOldAcknowledgements(acknowledged, Date.now());
  const configuration = await coreConfiguration({ named: configFile, directory, environment });
  const named = textOption(options, 'cluster');
  const adopt = textOption(options, 'adopt');
  if (named !== undefined && !configuration.clusterNames.includes(named)) {
    throw new HoldfastError('cluster-unknown', `there is no cluster "${named}" in ${configuration.file}`, {
      hint: `it names: ${configuration.clusterNames.join(', ')}`,
    });
  }
  const opener = { configuration, environment, signal };
  const required = requiredRepositories(configuration);
  const repositories = await Promise.all(required.map(async (one) => openNamed(one, opener)));
  const optional = await optionalRepositories(opener);
  // A repository whose address is not in the configuration file might be another one in the next second.
  const told = required.every(({ url }) => !url.startsWith('env:'));
  const acknowledgements =
    configFile !== undefined && told && adopt === undefined
      ? prepareAcknowledgements(acknowledged, { config: configFile, cluster: named }, path)
      : undefined;
  const { result, ahead } = await pushWithAhead({
    path,
    repositories,
    ...(optional && { optional }),
    lookAhead: acknowledgements !== undefined,
    cluster: {
      configured: configuration.clusterNames,
      ...(named !== undefined && { named }),
      ...(adopt !== undefined && { adopt }),
    },
    stateDirectory: configuration.stateDirectory,
    host: hostname(),
    now: () => new Date(),
    signal,
  });
  acknowledgements?.leave(ahead);
  const { name, kind, identity, sizeBytes, hash, stored } = result;
  // PostgreSQL puts whatever is printed into its log, so a success says nothing.
  output.result({ name, kind, ...identity, sizeBytes, hash, stored, ahead: ahead.length }, () =>
    output.verbose ? stored.map((one) => `${name} ${one.outcome} in ${one.repository}`).join('\n') : '',
  );
}

async function optionalRepositories(opener: RepositoryOpener): Promise<PushToOptional | undefined> {
  const { configuration, environment } = opener;
  const optional = configuration.repositories.filter(({ required }) => !required);
  if (optional.length === 0) return undefined;
  const [{ PushToOptional }, { startCatchUp }] = await Promise.all([
    import('../../wal/push-optional.ts'),
    import('../start-catch-up.ts'),
  ]);
  return new PushToOptional({
    repositories: optional.map((one) => ({
      name: one.name,
      open: async (signal) => openNamed(one, { ...opener, signal }),
    })),
    stateDirectory: configuration.stateDirectory,
    now: () => new Date(),
    startCatchUp: (repository, { cluster }) =>
      startCatchUp({ configFile: configuration.file, cluster, repository, environment }),
  });
}
