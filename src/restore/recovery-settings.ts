import type { BackupRecord } from '../repository/backup-record.ts';
import { formatLsn } from '../postgres/lsn.ts';
import { commentOut, hasIncludes, quoteShellWord, readSettings, settingLine } from './guc-file.ts';
import { formatInstant } from './instant.ts';
import type { RecoveryRequest } from './recovery-target.ts';
import type { RecoverySetting, StopPoint } from './stop-point.ts';

export const BLOCK_BEGIN = '# BEGIN holdfast recovery';
export const BLOCK_END = '# END holdfast recovery';

/** How PostgreSQL fetches WAL from the repository. Paths are absolute. */
export interface FetchCommand {
  launcher: string;
  configFile: string;
  cluster: string;
  systemIdentifier: string;
  repository: string;
}

export interface RecoveryConfiguration {
  fetch: FetchCommand;
  request: RecoveryRequest;
  stop: StopPoint;
  record: BackupRecord;
  /** Tablespaces that are directories of `pg_tblspc`, not links. */
  hasInPlaceTablespaces: boolean;
}

/** Settings that decide about a recovery: those of an earlier one must not meddle. */
const OWNED = [
  'restore_command',
  'archive_cleanup_command',
  'recovery_end_command',
  'recovery_target',
  'recovery_target_action',
  'recovery_target_inclusive',
  'recovery_target_lsn',
  'recovery_target_name',
  'recovery_target_time',
  'recovery_target_timeline',
  'recovery_target_xid',
  'primary_conninfo',
  'primary_slot_name',
  'promote_trigger_file',
] as const;

/** What each setting is where nothing sets it, to overrule a file that is included. */
const DEFAULTS: Readonly<Record<string, string>> = {
  recovery_target_action: 'pause',
  recovery_target_inclusive: 'on',
  recovery_target_timeline: 'latest',
};

/** PostgreSQL's defaults of what a hot standby must not have lower than the server that wrote the WAL. */
const STANDBY_DEFAULTS: Readonly<Record<string, number>> = {
  max_connections: 100,
  max_worker_processes: 8,
  max_wal_senders: 10,
  max_prepared_transactions: 0,
  max_locks_per_transaction: 64,
};

/**
 * The command PostgreSQL runs for each WAL file. `--until` lets the fetch tell an archive that ends too early from one
 * that ends where it may. Safe for `sh` whatever the paths and names are.
 */
export function restoreCommand(fetch: FetchCommand, stop: StopPoint): string {
  const options = [
    ['--config', fetch.configFile],
    ['--cluster', fetch.cluster],
    ['--system-identifier', fetch.systemIdentifier],
    ['--repository', fetch.repository],
    ['--until', formatLsn(stop.neededLsn)],
  ].flatMap(([flag = '', value = '']) => [flag, quoteShellWord(value)]);
  return [quoteShellWord(fetch.launcher), 'wal', 'fetch', '"%f"', '"%p"', ...options].join(' ');
}

/** The settings of one recovery, in the order they are written. `existing`: the text of postgresql.conf. */
export function recoverySettings(configuration: RecoveryConfiguration, existing: string): [string, string][] {
  const { fetch, request, stop, record } = configuration;
  const settings: [string, string][] = [['restore_command', restoreCommand(fetch, stop)]];
  const follows = request.standby && request.target.kind === 'latest';
  const timeline = follows && request.timeline === 'latest' ? 'latest' : String(stop.timeline);
  settings.push(['recovery_target_timeline', timeline]);
  if (!follows) {
    settings.push(...targetSettings(stop.setting));
    settings.push(['recovery_target_action', request.action ?? 'promote']);
  }
  settings.push(
    // A copy that archived as its original does would write a second history into the same archive.
    ['archive_mode', 'off'],
    // Subscriptions of a copy would take the slots of the original's.
    ['max_logical_replication_workers', '0'],
  );
  // Without it a recovery that finds them ends with PANIC (CheckTablespaceDirectory of PostgreSQL's xlogrecovery.c).
  if (configuration.hasInPlaceTablespaces) settings.push(['allow_in_place_tablespaces', 'on']);
  settings.push(...standbyMinima(record, existing));
  const set = new Set(settings.map(([name]) => name));
  const present = readSettings(existing);
  for (const name of OWNED) {
    // Removed in PostgreSQL 16: naming it there would keep the server from starting.
    if (name === 'promote_trigger_file') continue;
    if (!set.has(name) && (present.has(name) || hasIncludes(existing)))
      settings.push([name, DEFAULTS[name] ?? '']);
  }
  return settings;
}

/** PostgreSQL manual, "Recovery Target"; times with their offset, as one without is read in the server's zone. */
function targetSettings(setting: RecoverySetting): [string, string][] {
  const inclusive = (value: boolean): [string, string] => ['recovery_target_inclusive', value ? 'on' : 'off'];
  switch (setting.kind) {
    case 'immediate':
      return [['recovery_target', 'immediate']];
    case 'time': {
      const time = formatInstant(setting.time).replace('T', ' ').replace('Z', '+00');
      return [['recovery_target_time', time], inclusive(setting.inclusive)];
    }
    case 'lsn':
      return [['recovery_target_lsn', formatLsn(setting.lsn)], inclusive(setting.inclusive)];
    case 'xid':
      return [['recovery_target_xid', String(setting.xid)], inclusive(setting.inclusive)];
    case 'name':
      return [['recovery_target_name', setting.name]];
    default:
      return setting satisfies never;
  }
}

function standbyMinima(record: BackupRecord, existing: string): [string, string][] {
  const present = readSettings(existing);
  const unseen = hasIncludes(existing);
  return Object.entries(record.server.settings).flatMap(([name, needed]): [string, string][] => {
    const standard = STANDBY_DEFAULTS[name];
    if (standard === undefined) return [];
    const text = present.get(name);
    const value = text === undefined ? (unseen ? -1 : standard) : Number(text);
    return value >= needed ? [] : [[name, String(needed)]];
  });
}

/**
 * The text of postgresql.auto.conf for this recovery: the old text with older recoveries disarmed, and the marked block.
 * Texts are the files' bytes read as latin1, so that bytes of any encoding pass unchanged; what is added is UTF-8.
 */
export function withRecoveryBlock(
  autoConf: string,
  postgresqlConf: string,
  configuration: RecoveryConfiguration,
): string {
  const base = disarm(withoutBlock(autoConf)).text;
  const effective = `${postgresqlConf}\n${base}`;
  const lines = recoverySettings(configuration, effective).map(([name, value]) =>
    Buffer.from(settingLine(name, value)).toString('latin1'),
  );
  const gap = base === '' || base.endsWith('\n') ? '' : '\n';
  return `${base}${gap}${BLOCK_BEGIN}\n# Backup ${configuration.record.id}; removed when the recovery is finished.\n${lines.join('')}${BLOCK_END}\n`;
}

/**
 * What postgresql.conf of a copy must not say: settings of older recoveries, and paths outside of the copy that its
 * server would use, or write to, beside the original's.
 */
export function safePostgresqlConf(text: string): { text: string; disabled: string[] } {
  const recovery = disarm(text);
  const paths = commentOut(
    recovery.text,
    (name, value) =>
      name === 'data_directory' ||
      name === 'external_pid_file' ||
      (['hba_file', 'ident_file', 'log_directory', 'stats_temp_directory'].includes(name) &&
        value.startsWith('/')),
    'disabled by holdfast restore, it leads out of this copy',
  );
  return { text: paths.text, disabled: [...recovery.names, ...paths.names] };
}

/**
 * postgresql.auto.conf after a finished recovery: without the block; archiving stays off, with a line that says why.
 * Idempotent.
 */
export function withoutRecovery(autoConf: string, record: Pick<BackupRecord, 'cluster' | 'id'>): string {
  const base = withoutBlock(autoConf);
  if (base.includes(ARCHIVE_NOTE)) return base;
  const gap = base === '' || base.endsWith('\n') ? '' : '\n';
  return (
    `${base}${gap}${ARCHIVE_NOTE} (from backup ${record.id} of ${record.cluster}), and must not archive where its original does.\n` +
    `# To archive from here: if the original is gone for good, ALTER SYSTEM SET archive_mode = 'on', and restart. If it lives on,\n# first set an archive_command with a configuration and a repository of its own.\n` +
    settingLine('archive_mode', 'off')
  );
}

const ARCHIVE_NOTE = '# This is a copy restored by Holdfast';

/** The text without a marked block, however many there are; a block that was cut off ends with the file. */
function withoutBlock(text: string): string {
  const kept: string[] = [];
  let inside = false;
  for (const line of text.split('\n')) {
    if (line.trim() === BLOCK_BEGIN) inside = true;
    else if (inside) inside = line.trim() !== BLOCK_END;
    else kept.push(line);
  }
  return kept.join('\n');
}

function disarm(text: string): { text: string; names: string[] } {
  const owned = new Set<string>(OWNED);
  return commentOut(text, (name) => owned.has(name), 'disabled by holdfast restore, an earlier recovery');
}
