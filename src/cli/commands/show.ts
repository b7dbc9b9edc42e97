import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { HoldfastError } from '../../errors.ts';
import type { BackupRecord } from '../../repository/backup-record.ts';
import type { CommandSpec, Invocation } from '../command.ts';
import { findBackups } from '../find-backups.ts';

export const show: CommandSpec = {
  name: 'show',
  group: 'Look',
  summary: 'one backup whole',
  details:
    'How it was made, what it needs, where its copies are. "latest" is the newest of all. Needs no key.',
  arguments: [{ name: 'id', summary: 'a backup id as list prints it, its beginning, or latest' }],
  options: [],
  examples: [{ command: 'holdfast show latest', does: 'the newest backup' }],
  run,
};

async function run({ arguments: [wanted = ''], context }: Invocation): Promise<void> {
  const configuration = await context.configuration();
  const { backups, unread } = await findBackups(context, configuration, {});
  for (const { repository, error } of unread)
    context.output.warn(`${repository} cannot be read: ${error.message}`);
  const newest = backups
    .map(({ record }) => record.id)
    .sort()
    .at(-1);
  const matching = backups.filter(({ record }) =>
    wanted === 'latest' ? record.id === newest : record.id.startsWith(wanted),
  );
  const ids = [...new Set(matching.map(({ record }) => record.id))];
  const [first] = matching;
  if (first === undefined || wanted === '') {
    throw new HoldfastError('backup-unknown', `there is no backup "${wanted}"`, {
      hint: '"holdfast list" shows which there are',
    });
  }
  if (ids.length > 1) {
    throw new HoldfastError(
      'backup-unknown',
      `"${wanted}" is the beginning of ${ids.length} backups: ${ids.slice(0, 5).join(', ')}`,
      {
        hint: 'give more of it',
      },
    );
  }
  const copies = matching.map(({ repository }) => repository);
  context.output.result({ ...first.record, copies }, () => describe(first.record, copies));
}

function describe(record: BackupRecord, copies: readonly string[]): string {
  const { server, files, stored, wal, manifest } = record;
  const elapsed = new Date(record.stoppedAt).getTime() - new Date(record.startedAt).getTime();
  const rows: [string, string][] = [
    ['backup', record.id],
    ['cluster', `${record.cluster} (system identifier ${record.systemIdentifier})`],
    ['copies', copies.join(', ')],
    ['label', record.label],
    ['kept', record.pinned ? 'pinned: retention leaves it alone' : 'until retention removes it'],
    ['taken', `${record.startedAt} to ${record.stoppedAt} (${formatDuration(elapsed)})`],
    ['from', `${server.address}, ${server.role}: ${server.reason}`],
    ['server', server.versionText],
    [
      'consistent',
      `from LSN ${record.stopLsn} on timeline ${record.timeline} (started at ${record.startLsn})`,
    ],
    ['needs WAL', `${wal.first} to ${wal.last} (${wal.count} segments, verified in the repository)`],
    [
      'files',
      `${files.count}, ${formatSize(files.sizeBytes)}; ${manifest.files} compared with PostgreSQL's manifest`,
    ],
    [
      'stored',
      `${formatSize(stored.newBytes)} added (${stored.newBlocks} of ${stored.blocks} blocks new), ${formatSize(stored.totalBytes)} used in all`,
    ],
    ['compared with', record.previous ?? 'nothing: the first'],
    [
      'sealed',
      record.seal.kind === 'none' ? 'no' : `${record.seal.kind}, for ${record.seal.recipients.join(', ')}`,
    ],
    ['checksums', checksums(record)],
    ['tablespaces', record.tablespaces.map(({ oid, location }) => `${oid} at ${location}`).join('\n')],
    ['by', `holdfast ${record.holdfast}, repository ${record.repositoryId}`],
  ];
  return rows
    .filter(([, value]) => value !== '')
    .map(([name, value]) => `${name.padEnd(14)} ${value.replaceAll('\n', `\n${' '.repeat(15)}`)}`)
    .join('\n');
}

function checksums({ server, damagedPages }: BackupRecord): string {
  if (damagedPages.length > 0) return `DAMAGED PAGES: ${damagedPages.join('\n')}`;
  return server.dataChecksums ? 'every page was verified by the server' : 'the cluster has no data checksums';
}
