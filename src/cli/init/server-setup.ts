import type { Configuration } from '../../config/configuration.ts';
import { parseConnectionTarget } from '../../postgres/connection-target.ts';
import { requiredGrantsSql } from '../../postgres/inspect-server.ts';
import { proposeKeepSize, settingOfBytes } from '../../wal/forecast.ts';
import { archiveCommand, launcherPath, shellWord } from '../launcher-path.ts';
import type { SetupSight } from './choose-wal-mode.ts';
import { receiveUnit, unitName } from './systemd-unit.ts';

export interface ServerSetup {
  cluster: string;
  mode: 'push' | 'stream';
  /** For a superuser, in the database Holdfast connects to. */
  grants: string;
  /** For a superuser of the primary. */
  settings: string;
  /** Whether the settings take effect with a restart only. */
  needsRestart: boolean;
  /** What has to run all the time, where WAL is streamed: by hand, and as a systemd unit. */
  receive?: { command: string; unitName: string; unit: string };
}

/** Where nothing is known of the disk. */
const KEEP_SIZE = '10GB';

/**
 * The SQL that makes a cluster ready, per cluster. Server URLs that are references are taken for the role `holdfast`.
 * `seen`: what is known of a cluster's server already, so that only what it lacks is asked for.
 */
export function serverSetups(
  configuration: Configuration,
  seen: ReadonlyMap<string, SetupSight> = new Map(),
): ServerSetup[] {
  const { clusters, clusterNames, file } = configuration;
  return Object.entries(clusters).map(([name, { servers, wal }]) => {
    const urls = servers.filter((url) => /^postgres(ql)?:/.test(url));
    const roles = new Set(urls.map((url) => parseConnectionTarget(url).user));
    if (roles.size === 0) roles.add('holdfast');
    roles.delete('postgres');
    const about = {
      cluster: name,
      mode: wal.mode,
      grants: [...roles].map((role) => requiredGrantsSql(role)).join(''),
    };
    if (wal.mode === 'push') {
      const command = archiveCommand(file, clusterNames.length > 1 ? name : undefined);
      return { ...about, settings: pushSettings(command), needsRestart: true };
    }
    return {
      ...about,
      ...streamSettings(seen.get(name)),
      receive: {
        command: `${shellWord(launcherPath())} wal receive ${name} --config ${shellWord(file)}`,
        unitName: unitName(name),
        unit: receiveUnit({ cluster: name, configurationFile: file }),
      },
    };
  });
}

function pushSettings(command: string): string {
  return [
    "ALTER SYSTEM SET wal_level = 'replica';",
    "ALTER SYSTEM SET archive_mode = 'on';",
    `ALTER SYSTEM SET archive_command = '${command.replaceAll("'", "''")}';`,
    "ALTER SYSTEM SET archive_timeout = '60s';",
    '',
  ].join('\n');
}

/** The defaults of PostgreSQL will do, but for a limit to what a slot may keep. */
function streamSettings(sight: SetupSight | undefined): Pick<ServerSetup, 'settings' | 'needsRestart'> {
  const restarting = [
    ...(sight?.facts.walLevel === 'minimal' ? ["ALTER SYSTEM SET wal_level = 'replica';"] : []),
    ...(sight?.facts.maxWalSenders === 0 ? ['ALTER SYSTEM SET max_wal_senders = 10;'] : []),
    ...(sight?.facts.maxReplicationSlots === 0 ? ['ALTER SYSTEM SET max_replication_slots = 10;'] : []),
  ];
  const archivesNothing =
    sight !== undefined &&
    sight.facts.archiveMode !== 'off' &&
    sight.facts.archiveCommand === '' &&
    sight.facts.archiveLibrary === '';
  const reloading = [
    ...(sight?.wal.facts.maxSlotWalKeepSize === undefined
      ? [`ALTER SYSTEM SET max_slot_wal_keep_size = '${keepSize(sight)}';`]
      : []),
    ...(archivesNothing ? ["ALTER SYSTEM SET archive_command = '/bin/true';"] : []),
  ];
  const lines = [...restarting, ...reloading];
  if (lines.length > 0) lines.push('SELECT pg_reload_conf();', '');
  return { settings: lines.join('\n'), needsRestart: restarting.length > 0 };
}

function keepSize(sight: SetupSight | undefined): string {
  const disk = sight?.wal.disk;
  if (disk === undefined || disk.problem !== undefined) return KEEP_SIZE;
  const walDirectoryBytes = sight?.wal.facts.walDirectoryBytes ?? 0n;
  return settingOfBytes(proposeKeepSize({ freeBytes: disk.freeBytes, walDirectoryBytes }));
}

/** For a terminal: what to run, and where. */
export function formatSetup(setup: ServerSetup): string {
  const parts: string[] = [];
  if (setup.grants !== '') {
    parts.push(`As a superuser of cluster ${setup.cluster}, once (give the role a password, or a line in pg_hba.conf, and let it
in for "replication" there too):

${indent(setup.grants)}`);
  }
  if (setup.settings !== '') {
    parts.push(`On its primary${restartText(setup)}:

${indent(setup.settings)}`);
  }
  if (setup.receive !== undefined) {
    const { command, unit, unitName: name } = setup.receive;
    parts.push(`Its WAL is streamed by a program that has to run all the time. In a terminal, for a first try:

    ${command}

For good, as /etc/systemd/system/${name}, then systemctl enable --now ${name}:

${indent(unit)}`);
  }
  return parts.join('\n');
}

function restartText({ mode, needsRestart }: ServerSetup): string {
  if (!needsRestart) return '';
  return mode === 'push'
    ? ', followed by a restart of the server (a reload is enough where wal_level and archive_mode are so\nalready)'
    : ', followed by a restart of the server';
}

function indent(text: string): string {
  return text.replaceAll(/^(?=.)/gm, '    ');
}
