import { formatSize } from '../../config/sizes.ts';
import { HoldfastError } from '../../errors.ts';
import { type CommandSpec, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { findBackups, type FoundBackup } from '../find-backups.ts';
import { formatTable } from '../table.ts';

export const list: CommandSpec = {
  name: 'list',
  group: 'Look',
  summary: 'the backups there are',
  details: 'Reads the repositories themselves, so it is right on any host. Needs no key.',
  arguments: [{ name: 'cluster', summary: 'only this cluster', optional: true }],
  options: [{ flags: '--repository <name>', summary: 'only this repository' }],
  examples: [
    { command: 'holdfast list', does: 'everything' },
    { command: 'holdfast list app --json', does: 'for a script' },
  ],
  run,
};

async function run({ arguments: [cluster], options, context }: Invocation): Promise<void> {
  const configuration = await context.configuration();
  if (cluster !== undefined) configuredCluster(configuration, cluster);
  const repository = textOption(options, 'repository');
  const { backups, damaged, unread } = await findBackups(context, configuration, {
    ...(cluster !== undefined && { cluster }),
    ...(repository !== undefined && { repository }),
  });
  for (const { key, reason, repository: where } of damaged)
    context.output.warn(`in ${where}: ${key}: ${reason}`);
  for (const { repository: where, error } of unread)
    context.output.warn(`${where} cannot be read: ${error.message}`);
  context.output.result(
    {
      backups: backups.map(({ repository: where, record }) => ({ repository: where, ...record })),
      damaged,
      unreadRepositories: unread.map(({ repository: where, error }) => ({
        repository: where,
        code: error.code,
        message: error.message,
      })),
    },
    () => (backups.length === 0 ? nothingYet(cluster) : table(backups)),
  );
  if (damaged.length > 0) {
    throw new HoldfastError('object-damaged', `${damaged.length} of the backup records cannot be used`, {
      hint: 'the other backups are not affected; take a new base backup',
    });
  }
  const [away] = unread;
  if (away !== undefined) throw away.error;
}

function nothingYet(cluster: string | undefined): string {
  return `no backups yet: run "holdfast backup base ${cluster ?? 'CLUSTER'}"`;
}

function table(backups: readonly FoundBackup[]): string {
  return formatTable(backups, [
    { title: 'BACKUP', value: ({ record }) => record.id },
    { title: 'CLUSTER', value: ({ record }) => record.cluster },
    { title: 'REPOSITORY', value: ({ repository }) => repository },
    { title: 'COMPLETED (UTC)', value: ({ record }) => record.stoppedAt.slice(0, 19).replace('T', ' ') },
    { title: 'TLI', value: ({ record }) => String(record.timeline), align: 'right' },
    { title: 'STOP LSN', value: ({ record }) => record.stopLsn, align: 'right' },
    { title: 'SIZE', value: ({ record }) => formatSize(record.files.sizeBytes), align: 'right' },
    { title: 'ADDED', value: ({ record }) => formatSize(record.stored.newBytes), align: 'right' },
    { title: 'SEAL', value: ({ record }) => record.seal.kind },
    { title: 'FROM', value: ({ record }) => record.server.role },
    { title: 'NOTE', value: noteOf },
  ]);
}

function noteOf({ record }: FoundBackup): string {
  return [
    ...(record.damagedPages.length > 0 ? ['DAMAGED PAGES'] : []),
    ...(record.pinned ? ['pinned'] : []),
    ...(record.label === '' ? [] : [record.label]),
  ].join(', ');
}
