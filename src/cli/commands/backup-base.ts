import { takeBaseBackup } from '../../backup/base-backup.ts';
import { selectServer, type SelectedServer } from '../../backup/select-server.ts';
import { systemClock } from '../../clock.ts';
import { formatDuration, parseDuration } from '../../config/durations.ts';
import { resolveSecret } from '../../config/secrets.ts';
import { formatSize } from '../../config/sizes.ts';
import type { ClusterConfiguration } from '../../config/schema.ts';
import { HoldfastError } from '../../errors.ts';
import { connect } from '../../postgres/connection.ts';
import { inspectWal } from '../../postgres/inspect-wal.ts';
import { assertCanBaseBackup } from '../../postgres/inspect-server.ts';
import type { BackupRecord } from '../../repository/backup-record.ts';
import { chooseCluster } from '../../repository/choose-cluster.ts';
import { flagOption, type CommandSpec, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { namedRepository, openNamed, requiredRepositories, secretSources } from '../open-repository.ts';
import type { Output } from '../output.ts';
import { VERSION } from '../version.ts';

const DEFAULT_WAL_TIMEOUT = '5m';

export const backupBase: CommandSpec = {
  name: 'backup base',
  group: 'Back up',
  summary: 'take a base backup',
  details: `Reads the whole cluster over a replication connection and stores what changed since the backup before it; every
backup is complete all the same. Ends with 0 only when every file was compared with PostgreSQL's own manifest
and all WAL from start to stop was read back from the repository. When it fails there is no backup.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [
    {
      flags: '--source <which>',
      summary: 'auto (a standby that keeps up, else the primary), primary or standby',
      choices: ['auto', 'primary', 'standby'],
    },
    { flags: '--repository <name>', summary: 'only to this repository (default: every required one)' },
    { flags: '--label <text>', summary: 'a note that list and show print' },
    { flags: '--pin', summary: 'keep it whatever retention says' },
    { flags: '--max-rate <size>', summary: 'bytes per second to ask of the server at most, e.g. 50MiB' },
    { flags: '--checkpoint <kind>', summary: 'fast (default) or spread', choices: ['fast', 'spread'] },
    {
      flags: '--wal-timeout <duration>',
      summary: `how long WAL may take to arrive (default ${DEFAULT_WAL_TIMEOUT})`,
    },
  ],
  examples: [
    { command: 'holdfast backup base app', does: 'from a standby if one keeps up' },
    { command: 'holdfast backup base app --label "before the upgrade" --pin', does: 'one to keep' },
  ],
  run,
};

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const { output, signal, environment } = context;
  const configuration = await context.configuration();
  const cluster = configuredCluster(configuration, name);
  const only = textOption(options, 'repository');
  const targets =
    only === undefined ? requiredRepositories(configuration) : [namedRepository(configuration, only)];
  const sources = secretSources({ configuration, environment });
  const urls = await Promise.all(cluster.servers.map((server) => resolveSecret(server, sources)));
  const maxRate = textOption(options, 'maxRate');
  const server = await select(cluster, urls, options, output, signal);
  if (server.warning !== undefined) output.warn(server.warning);
  assertCanBaseBackup(server.facts, server.user);
  if (cluster.wal.mode === 'stream') await assertReceiving(server, name, cluster.wal.slot, output, signal);
  else assertArchiving(server, name);

  const records: BackupRecord[] = [];
  for (const target of targets) {
    const repository = await openNamed(target, { configuration, environment, signal });
    const identity = await chooseCluster(
      [repository],
      server.facts.systemIdentifier,
      { configured: [name], named: name },
      signal,
    );
    const startedMs = performance.now();
    const progress = output.progress(`base backup of ${name}`);
    const record = await takeBaseBackup({
      repository,
      identity,
      server: {
        url: server.url,
        version: server.facts.versionNumber,
        versionText: server.facts.versionText,
        role: server.facts.inRecovery ? 'standby' : 'primary',
        reason: server.reason,
      },
      label: textOption(options, 'label') ?? '',
      pinned: flagOption(options, 'pin'),
      stateDirectory: configuration.stateDirectory,
      programVersion: VERSION,
      clock: systemClock,
      walTimeoutMs: parseDuration(textOption(options, 'walTimeout') ?? DEFAULT_WAL_TIMEOUT),
      checkpoint: textOption(options, 'checkpoint') === 'spread' ? 'spread' : 'fast',
      ...(maxRate !== undefined && { maxRate: (await import('../../config/sizes.ts')).parseSize(maxRate) }),
      endSegment: () => switchWal(server, output),
      report: (event) => {
        switch (event.event) {
          case 'progress':
            progress.update({
              doneBytes: event.doneBytes,
              ...(event.totalBytes !== null && { totalBytes: event.totalBytes }),
            });
            break;
          case 'note':
            output.note(event.text);
            break;
          case 'warning':
            output.warn(event.text);
            break;
          case 'started':
            output.note(
              `${event.backupId} from ${server.facts.server} (${server.reason}) to repository ${repository.name}` +
                (event.previous === null ? ', the first' : `, compared with ${event.previous}`),
            );
            break;
          case 'waiting-for-wal':
            output.note(`copied; waiting for WAL segment ${event.segment} to arrive in the repository`);
            break;
        }
      },
      signal,
    });
    progress.end();
    records.push(record);
    const line = summary(record, performance.now() - startedMs);
    if (targets.length > 1 || output.json) output.note(line);
    else output.result(record, () => line);
  }
  if (targets.length > 1 || output.json) output.result({ backups: records }, () => '');
  const damaged = records.find(({ damagedPages }) => damagedPages.length > 0);
  if (damaged !== undefined) {
    throw new HoldfastError(
      'checksum-mismatch',
      `backup ${damaged.id} is stored, but the server has damaged pages`,
      {
        hint: `keep the last clean backup; see the server's log for the relations, and "holdfast show ${damaged.id}"`,
      },
    );
  }
}

function summary(record: BackupRecord, elapsedMs: number): string {
  const { files, stored } = record;
  return (
    `backup ${record.id} is complete: ${files.count} files, ${formatSize(files.sizeBytes)} in ${formatDuration(elapsedMs)}; ` +
    `${formatSize(stored.newBytes)} stored (${stored.newBlocks} of ${stored.blocks} blocks new); ` +
    `consistent from ${record.stopLsn}, WAL ${record.wal.first} to ${record.wal.last} verified`
  );
}

function select(
  cluster: ClusterConfiguration,
  urls: readonly string[],
  options: Invocation['options'],
  output: Output,
  signal: AbortSignal,
): Promise<SelectedServer> {
  const asked = textOption(options, 'source');
  const prefer =
    asked === 'primary' || asked === 'standby' || asked === 'auto' ? asked : cluster.source.prefer;
  return selectServer({
    urls,
    prefer,
    maxLagBytes: cluster.source.maxLag,
    maxWaitMs: cluster.source.maxWait,
    fallback: cluster.source.fallback,
    clock: systemClock,
    say: (text) => output.note(text),
    signal,
  });
}

/** Without archiving the backup could never be completed: better said before than after the copy. */
function assertArchiving(server: SelectedServer, cluster: string): void {
  const facts = server.primary?.facts ?? server.facts;
  const isOff = facts.archiveMode === 'off' || (facts.archiveCommand === '' && facts.archiveLibrary === '');
  if (!isOff || (server.primary === undefined && server.facts.inRecovery)) return;
  throw new HoldfastError(
    'server-setting',
    `${facts.server} archives no WAL (archive_mode = ${facts.archiveMode}), so no backup can be complete`,
    {
      hint: `set archive_mode and archive_command as "holdfast init" printed them, then run "holdfast check ${cluster}"`,
    },
  );
}

/** As `assertArchiving`, where WAL comes by streaming: from the primary if there is one, else from the standby itself. */
async function assertReceiving(
  server: SelectedServer,
  cluster: string,
  slot: string,
  output: Output,
  signal: AbortSignal,
): Promise<void> {
  const { url } = server.primary ?? server;
  await using connection = await connect(url, { signal });
  const { slot: facts } = await inspectWal(connection, slot);
  const receive = `holdfast wal receive ${cluster}`;
  if (facts === undefined) {
    throw new HoldfastError(
      'server-setting',
      `nothing receives the WAL of ${connection.server} (it has no replication slot ${slot}), so no backup can be complete`,
      { hint: `start "${receive}" and leave it running` },
    );
  }
  if (!facts.active) {
    output.warn(
      `nothing streams from the slot ${slot} on ${connection.server}: the backup will wait for its WAL; start "${receive}"`,
    );
  }
}

/** A standby's backup may stop in the middle of a segment, which an idle primary would not fill for a long time. */
async function switchWal(server: SelectedServer, output: Output): Promise<void> {
  if (!server.facts.inRecovery || server.primary?.facts.canSwitchWal !== true) return;
  await using connection = await connect(server.primary.url);
  await connection.query('SELECT pg_catalog.pg_switch_wal()');
  output.debug(`ended the current WAL segment on ${connection.server}`);
}
