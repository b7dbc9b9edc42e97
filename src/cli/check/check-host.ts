import { access, constants, mkdir, stat } from 'node:fs/promises';
import { dirname } from 'node:path';

import type { Configuration } from '../../config/configuration.ts';
import { errorText } from '../../errors.ts';
import { listBinaries } from '../../postgres/binaries.ts';
import { canEnter, serverUser } from '../../postgres/server-user.ts';
import { launcherPath } from '../launcher-path.ts';
import type { Findings } from './finding.ts';

/** The configuration file, the encryption it asks for, and the state directory. */
export async function checkHost(configuration: Configuration, findings: Findings): Promise<void> {
  findings.ok(`${configuration.file} is valid`);
  const info = await stat(configuration.file);
  const passwords = Object.values(configuration.clusters)
    .flatMap((cluster) => cluster.servers)
    .some((url) => (URL.parse(url)?.password ?? '') !== '');
  if (passwords && (info.mode & 0o007) !== 0) {
    findings.warn(
      `${configuration.file} holds a password and everybody can read it`,
      `chmod 640 ${configuration.file}, or move the password to ~/.pgpass`,
    );
  }
  if (configuration.recipients.length === 0) {
    findings.warn(
      'backups are not encrypted: whoever reads the repository reads the databases',
      'age-keygen -o identity.txt, then encryption: { recipients: [age1…] }; keep identity.txt away from this host',
    );
  } else findings.ok(`backups are sealed for ${configuration.recipients.join(', ')}`);
  await checkState(configuration.stateDirectory, findings);
}

async function checkState(directory: string, findings: Findings): Promise<void> {
  try {
    await mkdir(directory, { recursive: true, mode: 0o750 });
    await access(directory, constants.W_OK | constants.X_OK);
    findings.ok(`the state directory ${directory} can be written`);
  } catch (error) {
    findings.fail(
      `the state directory cannot be used: ${errorText(error)}`,
      `make ${directory} for the user that runs holdfast, or name another one with state: /path`,
    );
  }
}

/** The server programs a restore on this host would start. Only `restore base --start` and `demo` need them. */
export async function checkPrograms(majors: ReadonlySet<number>, findings: Findings): Promise<void> {
  await checkLauncher(findings);
  const found = await listBinaries();
  for (const major of majors) {
    const fitting = found.find((one) => one.major === major);
    if (fitting !== undefined) {
      findings.ok(`PostgreSQL ${fitting.version} is here to start a restored cluster: ${fitting.directory}`);
    } else {
      findings.warn(
        `there is no PostgreSQL ${major} on this host: a restore can be written here and not be started`,
        `apt-get install postgresql-${major}, where clusters are to be restored`,
      );
    }
  }
}

/** As root, the archive command is another user's: that one must reach this checkout. */
async function checkLauncher(findings: Findings): Promise<void> {
  const user = await serverUser().catch(() => undefined);
  if (user === undefined || (await canEnter(user, dirname(launcherPath())))) return;
  findings.warn(
    `the user PostgreSQL runs as cannot reach ${launcherPath()}, so its archive command would fail`,
    'put this checkout where every user may go, for example /opt/holdfast',
  );
}
