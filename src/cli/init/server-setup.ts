import type { Configuration } from '../../config/configuration.ts';
import { parseConnectionTarget } from '../../postgres/connection-target.ts';
import { requiredGrantsSql } from '../../postgres/inspect-server.ts';
import { archiveCommand } from '../launcher-path.ts';

export interface ServerSetup {
  cluster: string;
  /** For a superuser, in the database Holdfast connects to. */
  grants: string;
  /** For a superuser of the primary; the first three need a restart. */
  settings: string;
}

/** The SQL that makes a cluster ready, per cluster. Server URLs that are references are taken for the role `holdfast`. */
export function serverSetups(configuration: Configuration): ServerSetup[] {
  const { clusters, clusterNames, file } = configuration;
  return Object.entries(clusters).map(([name, { servers }]) => {
    const urls = servers.filter((url) => /^postgres(ql)?:/.test(url));
    const roles = new Set(urls.map((url) => parseConnectionTarget(url).user));
    if (roles.size === 0) roles.add('holdfast');
    roles.delete('postgres');
    const command = archiveCommand(file, clusterNames.length > 1 ? name : undefined);
    return {
      cluster: name,
      grants: [...roles].map((role) => requiredGrantsSql(role)).join(''),
      settings: [
        "ALTER SYSTEM SET wal_level = 'replica';",
        "ALTER SYSTEM SET archive_mode = 'on';",
        `ALTER SYSTEM SET archive_command = '${command.replaceAll("'", "''")}';`,
        "ALTER SYSTEM SET archive_timeout = '60s';",
        '',
      ].join('\n'),
    };
  });
}

/** For a terminal: what to run, and where. */
export function formatSetup(setup: ServerSetup): string {
  const grants =
    setup.grants === ''
      ? ''
      : `As a superuser of cluster ${setup.cluster}, once (give the role a password, or a line in pg_hba.conf, and let it
in for "replication" there too):

${indent(setup.grants)}
`;
  return `${grants}On its primary, followed by a restart of the server (a reload is enough where wal_level and archive_mode are so
already):

${indent(setup.settings)}`;
}

function indent(text: string): string {
  return text.replaceAll(/^(?=.)/gm, '    ');
}
