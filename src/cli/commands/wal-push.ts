import { hostname } from 'node:os';

import { HoldfastError } from '../../errors.ts';
import { pushWal } from '../../wal/push.ts';
import { textOption, type CommandSpec, type Invocation } from '../command.ts';
import { coreConfiguration } from '../core-configuration.ts';
import { openNamed, requiredRepositories } from '../open-repository.ts';

export const walPush: CommandSpec = {
  name: 'wal push',
  group: 'Used by PostgreSQL',
  summary: 'store one WAL file (archive_command)',
  details: `Ends with 0 only when every required repository has the file, durable. The same file again is a success; a
different one under the same name is refused for ever. The cluster is found by the system identifier in the
file. Never ends with a status above 125, which would stop PostgreSQL's archiver uncounted.`,
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
  const configuration = await coreConfiguration({ named: configFile, directory, environment });
  const named = textOption(options, 'cluster');
  const adopt = textOption(options, 'adopt');
  if (named !== undefined && !configuration.clusterNames.includes(named)) {
    throw new HoldfastError('cluster-unknown', `there is no cluster "${named}" in ${configuration.file}`, {
      hint: `it names: ${configuration.clusterNames.join(', ')}`,
    });
  }
  const opener = { configuration, environment, signal };
  const repositories = await Promise.all(
    requiredRepositories(configuration).map(async (repository) => openNamed(repository, opener)),
  );
  const result = await pushWal({
    path,
    repositories,
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
  const { name, kind, identity, sizeBytes, hash, stored } = result;
  // PostgreSQL puts whatever is printed into its log, so a success says nothing.
  output.result({ name, kind, ...identity, sizeBytes, hash, stored }, () =>
    output.verbose ? stored.map((one) => `${name} ${one.outcome} in ${one.repository}`).join('\n') : '',
  );
}
