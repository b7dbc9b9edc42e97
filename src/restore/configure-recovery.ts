import { chown, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { type FileOwner, syncDirectory } from './data-tree.ts';
import { settingLine } from './guc-file.ts';
import {
  type RecoveryConfiguration,
  safePostgresqlConf,
  withRecoveryBlock,
  withoutRecovery,
} from './recovery-settings.ts';

const AUTO_CONF = 'postgresql.auto.conf';
const MAIN_CONF = 'postgresql.conf';

/**
 * Makes a restored data directory recover as planned: the marked block, the signal file, no stale settings. Returns what
 * the user should know of. Everything is durable when it resolves; repeating it gives the same.
 */
export async function configureRecovery(
  dataDirectory: string,
  configuration: Omit<RecoveryConfiguration, 'hasInPlaceTablespaces'>,
  owner?: FileOwner,
): Promise<string[]> {
  const notes = await completeConfiguration(dataDirectory, configuration.record, owner);
  const main = (await readText(dataDirectory, MAIN_CONF)) ?? '';
  const safe = safePostgresqlConf(main);
  if (safe.disabled.length > 0) {
    await replaceFile(dataDirectory, MAIN_CONF, safe.text, owner);
    notes.push(`${MAIN_CONF}: ${[...new Set(safe.disabled)].join(', ')} disabled for this copy`);
  }
  const auto = (await readText(dataDirectory, AUTO_CONF)) ?? '';
  const hasInPlaceTablespaces = await holdsDirectories(join(dataDirectory, 'pg_tblspc'));
  const block = withRecoveryBlock(auto, safe.text, { ...configuration, hasInPlaceTablespaces });
  await replaceFile(dataDirectory, AUTO_CONF, block, owner);
  const { standby } = configuration.request;
  await rm(join(dataDirectory, standby ? 'recovery.signal' : 'standby.signal'), { force: true });
  await replaceFile(dataDirectory, standby ? 'standby.signal' : 'recovery.signal', '', owner);
  return notes;
}

/**
 * Leaves a clean configuration behind a recovery that ended with a promotion: the block goes, archiving stays off until
 * somebody turns it on. Throws `assertion` while the recovery is not over. Idempotent.
 */
export async function finishRecovery(
  dataDirectory: string,
  record: Pick<BackupRecord, 'cluster' | 'id'>,
  owner?: FileOwner,
): Promise<void> {
  for (const name of ['recovery.signal', 'standby.signal']) {
    if (await isThere(join(dataDirectory, name))) {
      throw new HoldfastError(
        'assertion',
        `the recovery of ${dataDirectory} is not over: ${name} is still there`,
      );
    }
  }
  const auto = (await readText(dataDirectory, AUTO_CONF)) ?? '';
  await replaceFile(dataDirectory, AUTO_CONF, withoutRecovery(auto, record), owner);
}

async function holdsDirectories(path: string): Promise<boolean> {
  const entries = await readdir(path, { withFileTypes: true });
  return entries.some((entry) => entry.isDirectory());
}

/** Some distributions keep the configuration elsewhere (Debian: /etc/postgresql), so that no backup of the data has it. */
async function completeConfiguration(
  dataDirectory: string,
  record: BackupRecord,
  owner: FileOwner | undefined,
): Promise<string[]> {
  const added: string[] = [];
  const files: [string, string][] = [
    [MAIN_CONF, minimalConfiguration(record)],
    ['pg_hba.conf', MINIMAL_HBA],
    ['pg_ident.conf', '# Written by Holdfast: the backup had none.\n'],
  ];
  for (const [name, text] of files) {
    if (await isThere(join(dataDirectory, name))) continue;
    await replaceFile(dataDirectory, name, text, owner);
    added.push(name);
  }
  if (added.length === 0) return [];
  return [
    `the backup holds no ${added.join(', ')} (the original keeps its configuration elsewhere): minimal ones were written, compare them with the original's`,
  ];
}

function minimalConfiguration(record: BackupRecord): string {
  const settings = Object.entries(record.server.settings)
    .filter(([name]) => name.startsWith('max_'))
    .map(([name, value]) => settingLine(name, String(value)));
  return `# Written by Holdfast: the backup had none, its original keeps it elsewhere.\n${settingLine('listen_addresses', 'localhost')}${settings.join('')}`;
}

const MINIMAL_HBA = `# Written by Holdfast: the backup had none, its original keeps it elsewhere.
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
`;

async function readText(dataDirectory: string, name: string): Promise<string | undefined> {
  try {
    // Bytes that are no UTF-8 must survive being read and written.
    return await readFile(join(dataDirectory, name), 'latin1');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Atomically and durably; nothing is written where the text is the same. */
async function replaceFile(
  dataDirectory: string,
  name: string,
  text: string,
  owner: FileOwner | undefined,
): Promise<void> {
  const path = join(dataDirectory, name);
  const temporary = `${path}.holdfast-new`;
  const bytes = Buffer.from(text, 'latin1');
  {
    await using file = await open(temporary, 'w', 0o600);
    await file.writeFile(bytes);
    await file.sync();
  }
  if (owner !== undefined) await chown(temporary, owner.uid, owner.gid);
  await rename(temporary, path);
  await syncDirectory(dataDirectory);
}

async function isThere(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    (error: unknown) => {
      if (systemErrorCode(error) === 'ENOENT') return false;
      throw error;
    },
  );
}
