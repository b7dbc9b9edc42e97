import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Configuration } from '../../config/configuration.ts';
import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { HoldfastError } from '../../errors.ts';
import { findBinaries } from '../../postgres/binaries.ts';
import { formatLsn, parseLsn } from '../../postgres/lsn.ts';
import { formatInstant } from '../../restore/instant.ts';
import type { RestorePlan } from '../../restore/plan.ts';
import { type Proof, proveRestore } from '../../restore/proof.ts';
import { type RecoveryRequest, parseRecoveryRequest } from '../../restore/recovery-target.ts';
import { type RestoredFiles, restoreFiles } from '../../restore/restore-files.ts';
import { type RestoreTarget, checkTarget } from '../../restore/target-directory.ts';
import { parseTablespaceMapping } from '../../restore/tablespace-mapping.ts';
import { type CommandSpec, type Invocation, flagOption, listOption, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { launcherPath } from '../launcher-path.ts';
import { namedRepository } from '../open-repository.ts';
import { choosePlan } from '../restore/choose-plan.ts';
import { planJson, planText } from '../restore/describe-plan.ts';
import { describeNext, describeProof } from '../restore/describe-result.ts';
import { unreachableFor } from '../restore/server-access.ts';

export const restoreBase: CommandSpec = {
  name: 'restore base',
  group: 'Restore',
  summary: 'restore a cluster to a new directory, as it was at any point',
  details: `Finds the newest backup that leads to the target, reads the archived WAL to see exactly where recovery will
stop, and refuses before a byte is written what cannot be reached. With --start the server is started on a private
socket and what it replayed is compared with the promise; anything short of it fails with status 50. The copy does
not archive. Times need an offset: "2025-12-28 14:30:00+01", 2025-12-28T13:30:00Z, or -15m for 15 minutes ago.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [
    { flags: '--to <dir>', summary: 'where to; new or empty' },
    { flags: '--target-time <time>', summary: 'stop after the last transaction committed up to then' },
    { flags: '--target-lsn <lsn>', summary: 'stop at a WAL position' },
    { flags: '--target-xid <xid>', summary: 'stop after a transaction' },
    { flags: '--target-name <name>', summary: 'stop at a restore point (pg_create_restore_point)' },
    {
      flags: '--target <which>',
      summary: 'latest (default): everything there is; immediate: the backup itself',
      choices: ['latest', 'immediate'],
    },
    { flags: '--target-exclusive', summary: 'stop just before the time, lsn or transaction' },
    {
      flags: '--target-timeline <which>',
      summary: 'a number, latest, or current (the timeline of the backup); default: the only branch there is',
    },
    {
      flags: '--target-action <what>',
      summary: 'promote (default), pause (read-only) or shutdown',
      choices: ['promote', 'pause', 'shutdown'],
    },
    { flags: '--standby', summary: 'make a standby that follows the archive' },
    { flags: '--delta', summary: 'go on in, or bring up to date, a directory that holds this cluster' },
    {
      flags: '--tablespace-mapping <old=new>',
      summary: 'where a tablespace goes; needed for each one',
      repeatable: true,
    },
    { flags: '--backup <id>', summary: 'begin with this backup' },
    { flags: '--repository <name>', summary: 'only from this repository' },
    { flags: '--system-identifier <number>', summary: 'which history, where a name has several' },
    {
      flags: '--owner <user>',
      summary: 'who is to own the files (root only; default: the owner of the parent)',
    },
    { flags: '--dry-run', summary: 'print the plan and do nothing' },
    { flags: '--start', summary: 'start it, prove what was reached, leave it running' },
    { flags: '--stop-after', summary: 'with --start: stop it when it is proven' },
    {
      flags: '--port <port>',
      summary: 'with --start: listen there afterwards (default: a private socket only)',
    },
    { flags: '--user <role>', summary: 'with --start: a superuser of the cluster (default: postgres)' },
  ],
  examples: [
    {
      command: 'holdfast restore base app --to /srv/app-copy --start',
      does: 'everything there is, started and proven',
    },
    {
      command:
        "holdfast restore base app --to /srv/app-copy --target-time '2025-12-28 14:30:00+01' --dry-run",
      does: 'what would be done',
    },
    {
      command: 'holdfast restore base app --to /srv/app-copy --target-xid 742 --target-exclusive --start',
      does: 'as it was just before transaction 742',
    },
  ],
  run,
};

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const { output } = context;
  const request = parseRecoveryRequest(
    {
      target: textOption(options, 'target'),
      targetTime: textOption(options, 'targetTime'),
      targetLsn: textOption(options, 'targetLsn'),
      targetXid: textOption(options, 'targetXid'),
      targetName: textOption(options, 'targetName'),
      targetExclusive: flagOption(options, 'targetExclusive'),
      targetTimeline: textOption(options, 'targetTimeline'),
      targetAction: textOption(options, 'targetAction'),
      standby: flagOption(options, 'standby'),
    },
    { now: BigInt(Date.now()) * 1000n },
  );
  const asked = readOptions(options);
  const configuration = await context.configuration();
  configuredCluster(configuration, name);
  const only = textOption(options, 'repository');
  const repositories =
    only === undefined ? configuration.repositories : [namedRepository(configuration, only)];
  const choice = {
    cluster: name,
    backupId: textOption(options, 'backup'),
    systemIdentifier: textOption(options, 'systemIdentifier'),
  };
  const plan = await choosePlan(context, configuration, repositories, choice, request);
  const target =
    asked.to === undefined ? undefined : await checkTarget({ ...asked, to: asked.to, record: plan.backup });
  if (asked.dryRun || target === undefined) {
    output.result({ dryRun: true, ...planJson(plan) }, () => planText(plan));
    return;
  }
  output.note(planText(plan));
  const launcher = launcherPath();
  await checkAccess(configuration, plan, target, launcher, asked.start, output);
  const fetch = {
    launcher,
    configFile: configuration.file,
    cluster: name,
    systemIdentifier: plan.identity.systemIdentifier,
    repository: plan.repository.name,
  };

  const startedMs = performance.now();
  const written = await write({ plan, target, request, fetch }, context);
  const writeMs = performance.now() - startedMs;
  for (const note of written.notes) output.note(note);
  output.note(
    `wrote ${written.files} files: ${formatSize(written.bytesWritten)} in ${formatDuration(writeMs)}` +
      (written.bytesKept > 0 ? `, ${formatSize(written.bytesKept)} were there already or are empty` : ''),
  );
  const base = {
    ...planJson(plan),
    dataDirectory: target.directory,
    files: written.files,
    bytesWritten: written.bytesWritten,
    bytesKept: written.bytesKept,
    writeMs: Math.round(writeMs),
    notes: [...plan.notes, ...written.notes],
  };
  if (!asked.start) {
    const binDirectory = await binDirectoryOf(plan);
    output.result({ ...base, reached: null, server: null }, () =>
      describeNext(plan, request, target, binDirectory),
    );
    return;
  }
  const proof = await prove(plan, request, target, asked, context);
  const totalMs = performance.now() - startedMs;
  output.result({ ...base, ...proofJson(plan, proof), totalMs: Math.round(totalMs) }, () =>
    describeProof({ plan, proof, written, target, writeMs, totalMs }),
  );
}

interface AskedFor {
  to: string | undefined;
  tablespaceMapping: Map<string, string>;
  delta: boolean;
  owner: string | undefined;
  dryRun: boolean;
  start: boolean;
  stopAfter: boolean;
  port: number | undefined;
  user: string | undefined;
}

function readOptions(options: Invocation['options']): AskedFor {
  const asked: AskedFor = {
    to: textOption(options, 'to'),
    tablespaceMapping: parseTablespaceMapping(listOption(options, 'tablespaceMapping')),
    delta: flagOption(options, 'delta'),
    owner: textOption(options, 'owner'),
    dryRun: flagOption(options, 'dryRun'),
    start: flagOption(options, 'start'),
    stopAfter: flagOption(options, 'stopAfter'),
    port: parsePort(textOption(options, 'port')),
    user: textOption(options, 'user'),
  };
  if (asked.to === undefined && !asked.dryRun) {
    throw new HoldfastError('usage-invalid', 'it is not said where to restore to', {
      hint: 'give --to DIR, a new or empty directory; or --dry-run for the plan alone',
    });
  }
  const startOnly = [
    ['--stop-after', asked.stopAfter],
    ['--port', asked.port !== undefined],
    ['--user', asked.user !== undefined],
  ] as const;
  for (const [flag, given] of startOnly) {
    if (given && !asked.start)
      throw new HoldfastError('option-conflict', `${flag} means nothing without --start`);
  }
  if (asked.dryRun && asked.start) {
    throw new HoldfastError('option-conflict', '--dry-run and --start exclude one another');
  }
  return asked;
}

function parsePort(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0;
  if (port < 1 || port > 65_535) throw new HoldfastError('usage-invalid', `"${text}" is not a port`);
  return port;
}

/** Before gigabytes are written: the server will have to run the fetch as its own user. */
async function checkAccess(
  configuration: Configuration,
  plan: RestorePlan,
  target: RestoreTarget,
  launcher: string,
  start: boolean,
  output: Invocation['context']['output'],
): Promise<void> {
  const repository = configuration.repositories.find(({ name }) => name === plan.repository.name);
  const blocked = await unreachableFor(target, launcher, configuration, repository);
  if (blocked.length === 0) return;
  const what = `the restored server's user (uid ${target.owner?.uid ?? 0}) cannot read ${blocked.join(', ')}, which recovery needs`;
  const hint =
    'make them readable for that user, restore to another place, or name another user with --owner';
  if (start) throw new HoldfastError('usage-invalid', what, { hint });
  output.warn(`${what}: ${hint}`);
}

async function write(
  restore: Pick<Parameters<typeof restoreFiles>[0], 'plan' | 'target' | 'request' | 'fetch'>,
  { output, signal }: Invocation['context'],
): Promise<RestoredFiles> {
  const scratchDirectory = await mkdtemp(join(tmpdir(), 'holdfast-restore-'));
  const progress = output.progress('restore');
  try {
    return await restoreFiles({
      ...restore,
      scratchDirectory,
      signal,
      progress: (doneBytes, totalBytes) => {
        progress.update({ doneBytes, totalBytes });
      },
    });
  } finally {
    progress.end();
    await rm(scratchDirectory, { recursive: true, force: true });
  }
}

async function prove(
  plan: RestorePlan,
  request: RecoveryRequest,
  target: RestoreTarget,
  asked: AskedFor,
  { output, signal, environment }: Invocation['context'],
): Promise<Proof> {
  const progress = output.progress('recovery');
  const from = parseLsn(plan.backup.startLsn);
  const totalBytes = Number(plan.stop.lsn - from);
  const others = environment['USER'] === undefined ? [] : [environment['USER']];
  try {
    return await proveRestore({
      plan,
      request,
      dataDirectory: target.directory,
      owner: target.owner,
      roles: asked.user === undefined ? ['postgres', ...others] : [asked.user],
      port: asked.port,
      stopAfter: asked.stopAfter,
      signal,
      progress: (replayed) => {
        const doneBytes = Math.min(totalBytes, Math.max(0, Number(replayed - from)));
        progress.update({ doneBytes, totalBytes, detail: `replayed ${formatLsn(replayed)}` });
      },
    });
  } finally {
    progress.end();
  }
}

function proofJson(plan: RestorePlan, proof: Proof): Record<string, unknown> {
  const { stop } = plan;
  return {
    reached: {
      ...proof.reached,
      lastCommitTime: stop.lastCommit === undefined ? null : formatInstant(stop.lastCommit.time),
    },
    newTimeline: proof.newTimeline,
    state: proof.state,
    checks: proof.checks,
    recoveryMs: Math.round(proof.recoveryMs),
    promotionMs: proof.promotionMs === null ? null : Math.round(proof.promotionMs),
    server: proof.server ?? null,
    logFile: proof.logFile,
  };
}

async function binDirectoryOf(plan: RestorePlan): Promise<string | undefined> {
  const major = Math.floor(plan.backup.server.version / 10_000);
  return await findBinaries({ major }).then(
    ({ directory }) => directory,
    () => undefined,
  );
}
