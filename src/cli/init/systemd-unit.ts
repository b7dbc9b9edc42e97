import { userInfo } from 'node:os';

import { launcherPath } from '../launcher-path.ts';

export interface UnitOptions {
  cluster: string;
  /** Absolute path of the configuration. */
  configurationFile: string;
  /** The user it runs as: whoever runs `backup base`, since both write the repository. */
  user?: string;
}

/** What the unit of a cluster's receiver is called. */
export function unitName(cluster: string): string {
  return `holdfast-receive-${cluster}.service`;
}

/**
 * A systemd unit that keeps `wal receive` running. It is not started again where only a person can help: a configuration
 * that is wrong (2), WAL that is gone (40).
 */
export function receiveUnit({ cluster, configurationFile, user = defaultUser() }: UnitOptions): string {
  const command = [launcherPath(), 'wal', 'receive', cluster, '--config', configurationFile];
  return `[Unit]
Description=Holdfast receives the WAL of ${cluster}
Wants=network-online.target
After=network-online.target postgresql.service

[Service]
User=${user}
ExecStart=${command.map(systemdWord).join(' ')}
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 40
TimeoutStopSec=60
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
`;
}

/** Root would write what PostgreSQL's user then cannot add to. */
function defaultUser(): string {
  return process.getuid?.() === 0 ? 'postgres' : userInfo().username;
}

/** systemd.service(5), "Command lines", and the specifiers of systemd.unit(5). */
function systemdWord(text: string): string {
  const escaped = text.replaceAll('%', '%%').replaceAll('$', '$$$$');
  if (/^[A-Za-z0-9_./:@%+,=$-]+$/.test(escaped)) return escaped;
  return `"${escaped.replaceAll(/["\\]/g, String.raw`\$&`)}"`;
}
