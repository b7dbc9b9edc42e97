import { chown, open, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { cancellation, throwIfCancelled } from '../cancellation.ts';
import { HoldfastError, errorText } from '../errors.ts';
import { type PostgresBinaries, findBinaries } from '../postgres/binaries.ts';
import { type Connection, connect } from '../postgres/connection.ts';
import { type Instance, startInstance } from '../postgres/instance.ts';
import { type Lsn, formatLsn, parseLsn } from '../postgres/lsn.ts';
import { type ServerUser, makeServerDirectory } from '../postgres/server-user.ts';
import { historyFileName, timelineOf } from '../postgres/timeline.ts';
import { finishRecovery } from './configure-recovery.ts';
import type { FileOwner } from './data-tree.ts';
import { formatInstant } from './instant.ts';
import type { RestorePlan } from './plan.ts';
import { readReplayed } from './replay-progress.ts';
import type { RecoveryRequest } from './recovery-target.ts';

export interface ProofOptions {
  plan: RestorePlan;
  request: RecoveryRequest;
  dataDirectory: string;
  owner: FileOwner | undefined;
  /** Superusers to try, in order: the cluster's first one need not be called postgres. */
  roles: readonly string[];
  /** TCP port for the server that is left running; without one it has only a private socket. */
  port?: number | undefined;
  /** Stop the server when everything is proven. */
  stopAfter: boolean;
  binaries?: PostgresBinaries | undefined;
  signal?: AbortSignal | undefined;
  progress?: ((replayed: Lsn) => void) | undefined;
}

export interface Proof {
  /** Where recovery ended, as the server says. */
  reached: { lsn: string; timeline: number; lastTransactionTime: string | null };
  /** The timeline after a promotion. */
  newTimeline: number | null;
  state: 'promoted' | 'paused' | 'shut down' | 'following';
  /** What was compared, in words. */
  checks: string[];
  recoveryMs: number;
  promotionMs: number | null;
  /** Undefined when it was stopped. */
  server: { url: string; socketDirectory: string; port: number; role: string; pid: number } | undefined;
  logFile: string;
  binDirectory: string;
}

/** Recovery may take days; only the user ends it sooner. */
const RECOVERY_DEADLINE_MS = 30 * 24 * 3600 * 1000;
const STEP_DEADLINE_MS = 10 * 60 * 1000;
const POLL_MS = 100;

/**
 * Starts a restored data directory on a private socket and holds what recovery did to what the plan promised: the LSN,
 * the last transaction, and after a promotion the switch point in the new timeline's history. Recovery is made to pause at
 * its target first, so that nothing is promoted that fell short. Throws `restore-incomplete` with both sides where
 * anything differs, or where PostgreSQL gave up; the server is then stopped.
 */
export async function proveRestore(options: ProofOptions): Promise<Proof> {
  const { plan, dataDirectory, owner } = options;
  const user: ServerUser | undefined = owner && { name: `uid ${owner.uid}`, ...owner };
  const major = Math.floor(plan.backup.server.version / 10_000);
  const binaries = options.binaries ?? (await findBinaries({ major, user }));
  const socketDirectory = await makeServerDirectory(user, 'holdfast-');
  const logFile = join(dirname(dataDirectory), `${basename(dataDirectory)}.log`);
  const running: { instance?: Instance } = {};
  if (owner !== undefined) {
    // Made by root it would keep its owner from starting the server with the same log later.
    await using log = await open(logFile, 'a', 0o600);
    await log.chown(owner.uid, owner.gid);
  }
  try {
    return await prove({ ...options, binaries }, { user, socketDirectory, logFile, running });
  } catch (error) {
    await running.instance?.stop('fast').catch(() => undefined);
    await rm(socketDirectory, { recursive: true, force: true });
    throw error;
  }
}

interface Stage {
  user: ServerUser | undefined;
  socketDirectory: string;
  logFile: string;
  running: { instance?: Instance };
}

async function prove(options: ProofOptions & { binaries: PostgresBinaries }, stage: Stage): Promise<Proof> {
  const { plan, request, dataDirectory, owner, binaries, signal } = options;
  const { stop } = plan;
  const follows = request.standby && request.action === undefined;
  const startedMs = performance.now();
  const instance = await startRecovering(options, stage);
  stage.running.instance = instance;
  const { connection, role } = await connectAs(instance, options.roles, signal);
  let state: Proof['state'];
  let reached: Reached;
  const checks: string[] = [];
  let newTimeline: number | null = null;
  let promotionMs: number | null = null;
  let recoveryMs: number;
  try {
    reached = await untilReached(options, stage, connection, follows);
    recoveryMs = performance.now() - startedMs;
    checks.push(...compare(plan, reached, follows));
    if (follows) state = 'following';
    else if (request.action === 'promote') {
      const promotedMs = performance.now();
      await promote(connection, signal);
      promotionMs = performance.now() - promotedMs;
      newTimeline = await checkBranch(plan, connection, dataDirectory);
      checks.push(`timeline ${newTimeline} branches off timeline ${stop.timeline} exactly there`);
      state = 'promoted';
      await finishRecovery(dataDirectory, plan.backup, owner);
    } else state = request.action === 'shutdown' ? 'shut down' : 'paused';
  } finally {
    await connection.close();
  }
  const stopIt = options.stopAfter || state === 'shut down';
  let server: Proof['server'];
  if (stopIt) {
    await instance.stop('fast');
    await rm(stage.socketDirectory, { recursive: true, force: true });
  } else if (options.port !== undefined && state === 'promoted') {
    server = await restartOpenly(options, stage, instance, role, options.port);
  } else {
    const { pid, port, socketDirectory } = instance;
    server = { url: instance.url({ user: role }), socketDirectory, port, role, pid };
  }
  return {
    reached: {
      lsn: formatLsn(reached.lsn),
      timeline: stop.timeline,
      lastTransactionTime:
        reached.transactionTime === undefined ? null : formatInstant(reached.transactionTime),
    },
    newTimeline,
    state,
    checks,
    recoveryMs,
    promotionMs,
    server,
    logFile: stage.logFile,
    binDirectory: binaries.directory,
  };
}

/** Under settings of our own: only we get in, and recovery waits at its target to be looked at. */
async function startRecovering(
  options: ProofOptions & { binaries: PostgresBinaries },
  { user, socketDirectory, logFile }: Stage,
): Promise<Instance> {
  const { dataDirectory, plan, signal } = options;
  const hbaFile = join(socketDirectory, 'pg_hba.conf');
  await writeFile(hbaFile, '# The directory is private.\nlocal all all trust\n', { mode: 0o600 });
  if (user !== undefined) await chown(hbaFile, user.uid, user.gid);
  const watch = watchReplay(options);
  try {
    return await startInstance({
      binaries: options.binaries,
      dataDirectory,
      user,
      socketDirectory,
      logFile,
      settings: {
        hba_file: hbaFile,
        hot_standby: 'on',
        recovery_target_action: 'pause',
        archive_mode: 'off',
        logging_collector: 'off',
        log_destination: 'stderr',
        ssl: 'off',
        unix_socket_permissions: '0700',
      },
      deadlineMs: RECOVERY_DEADLINE_MS,
      ...(signal && { signal }),
    });
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code !== 'server-start-failed') throw error;
    const log = typeof error.context['log'] === 'string' ? error.context['log'] : '';
    throw new HoldfastError(
      'restore-incomplete',
      `PostgreSQL gave up the recovery of ${dataDirectory}: ${lastFatal(log) ?? errorText(error)}`,
      {
        hint: `the server's log says more: ${logFile}; the promise was ${formatLsn(plan.stop.lsn)} on timeline ${plan.stop.timeline}`,
        context: { log },
        cause: error,
      },
    );
  } finally {
    watch.stop();
  }
}

/** Before the server lets anybody in, its control file tells how far it has come. */
function watchReplay({ dataDirectory, progress }: ProofOptions): { stop: () => void } {
  if (progress === undefined) return { stop: () => undefined };
  const timer = setInterval(() => {
    void readReplayed(dataDirectory).then((lsn) => {
      if (lsn !== undefined) progress(lsn);
    });
  }, 1000);
  return {
    stop: () => {
      clearInterval(timer);
    },
  };
}

async function connectAs(
  instance: Instance,
  roles: readonly string[],
  signal: AbortSignal | undefined,
): Promise<{ connection: Connection; role: string }> {
  let failure: unknown;
  for (const role of roles) {
    try {
      const connection = await connect(instance.url({ user: role }), {
        applicationName: 'holdfast restore',
        signal,
      });
      return { connection, role };
    } catch (error) {
      failure = error;
    }
  }
  throw new HoldfastError('restore-incomplete', `cannot look at the restored server: ${errorText(failure)}`, {
    hint: 'name a superuser of the cluster with --user ROLE and run "restore base … --delta --start" again',
    cause: failure,
  });
}

interface Reached {
  lsn: Lsn;
  transactionTime: bigint | undefined;
  inRecovery: boolean;
}

/** Waits until recovery has paused at its target (or ended, where it could not pause), or has caught up. */
async function untilReached(
  options: ProofOptions,
  stage: Stage,
  connection: Connection,
  follows: boolean,
): Promise<Reached> {
  const { plan, signal } = options;
  for (;;) {
    throwIfCancelled(signal);
    let row: StateRow | undefined;
    try {
      [row] = await connection.query<StateRow>(STATE_QUERY);
    } catch (error) {
      if (signal?.aborted === true) throw cancellation(signal);
      throw new HoldfastError(
        'restore-incomplete',
        `the restored server ended before it reached ${formatLsn(plan.stop.lsn)}: ${lastFatal(await tailOf(stage.logFile)) ?? errorText(error)}`,
        { hint: `the server's log says more: ${stage.logFile}`, cause: error },
      );
    }
    if (row?.replayed != null) {
      const lsn = parseLsn(row.replayed);
      options.progress?.(lsn);
      const done = follows ? lsn >= plan.stop.lsn : !row.recovering || row.pause === 'paused';
      if (done) {
        const transactionTime = row.micros === null ? undefined : BigInt(row.micros);
        return { lsn, transactionTime, inRecovery: row.recovering };
      }
    }
    await sleep(POLL_MS, undefined, { ...(signal && { signal }) }).catch(() => undefined);
  }
}

interface StateRow {
  recovering: boolean;
  replayed: string | null;
  pause: string | null;
  micros: string | null;
}

const STATE_QUERY = `
  SELECT pg_is_in_recovery() AS recovering,
         pg_last_wal_replay_lsn()::text AS replayed,
         CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END AS pause,
         (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint::text AS micros`;

function compare({ stop, backup }: RestorePlan, reached: Reached, follows: boolean): string[] {
  const promised = formatLsn(stop.lsn);
  const lsn = formatLsn(reached.lsn);
  // A backup of a standby is consistent where its record says or at the first record behind that.
  const atLeast = follows || (stop.setting.kind === 'immediate' && backup.server.role === 'standby');
  if (reached.lsn < stop.lsn || (!atLeast && reached.lsn !== stop.lsn)) {
    const how = reached.lsn < stop.lsn ? 'short of' : 'beyond';
    throw new HoldfastError(
      'restore-incomplete',
      `recovery ended at ${lsn}, ${how} the promised ${promised}`,
      {
        hint: 'do not use this copy; restore again, from another repository if there is one',
        context: { reachedLsn: lsn, promisedLsn: promised, timeline: stop.timeline },
      },
    );
  }
  const checks = [`the server replayed WAL up to ${lsn}, the promised LSN`];
  const { lastTransactionTime } = stop;
  if (lastTransactionTime !== undefined && !atLeast) {
    if (reached.transactionTime !== lastTransactionTime) {
      const was = reached.transactionTime === undefined ? 'none' : formatInstant(reached.transactionTime);
      throw new HoldfastError(
        'restore-incomplete',
        `the last transaction replayed is of ${was}, promised was ${formatInstant(lastTransactionTime)}`,
        {
          hint: 'do not use this copy; restore again, from another repository if there is one',
          context: { reached: was, promised: formatInstant(lastTransactionTime) },
        },
      );
    }
    checks.push(`its last transaction is the promised one, of ${formatInstant(lastTransactionTime)}`);
  }
  return checks;
}

async function promote(connection: Connection, signal: AbortSignal | undefined): Promise<void> {
  const [row] = await connection.query<{ recovering: boolean }>('SELECT pg_is_in_recovery() AS recovering');
  if (row?.recovering === true) await connection.query('SELECT pg_wal_replay_resume()');
  const deadline = performance.now() + STEP_DEADLINE_MS;
  for (;;) {
    throwIfCancelled(signal);
    const [now] = await connection.query<{ recovering: boolean }>('SELECT pg_is_in_recovery() AS recovering');
    if (now?.recovering === false) return;
    if (performance.now() > deadline) {
      throw new HoldfastError(
        'restore-incomplete',
        'the restored server was not promoted within ten minutes',
      );
    }
    await sleep(POLL_MS / 2);
  }
}

/** Where the new timeline left the old one, in the history file that the promotion wrote. */
async function checkBranch(
  { stop }: RestorePlan,
  connection: Connection,
  dataDirectory: string,
): Promise<number> {
  const [row] = await connection.query<{ name: string }>(
    'SELECT pg_walfile_name(pg_current_wal_lsn()) AS name',
  );
  const timeline = timelineOf(Number.parseInt((row?.name ?? '').slice(0, 8), 16));
  const text = await readFile(join(dataDirectory, 'pg_wal', historyFileName(timeline)), 'utf8');
  const [parent = '', end = ''] = (text.trim().split('\n').at(-1) ?? '').trim().split(/\s+/);
  if (Number(parent) === stop.timeline && end === formatLsn(stop.lsn)) return timeline;
  const found = parent === '' ? 'nothing' : `timeline ${parent} at ${end}`;
  throw new HoldfastError(
    'restore-incomplete',
    `timeline ${timeline} branches off ${found}, promised was timeline ${stop.timeline} at ${formatLsn(stop.lsn)}`,
    { hint: 'do not use this copy; restore again' },
  );
}

/** With its own pg_hba.conf and nothing of ours: what was restored must also start by itself. */
async function restartOpenly(
  { dataDirectory, binaries, signal }: ProofOptions & { binaries: PostgresBinaries },
  { user, socketDirectory, logFile, running }: Stage,
  instance: Instance,
  role: string,
  port: number,
): Promise<Proof['server']> {
  await instance.stop('fast');
  await rm(join(socketDirectory, 'pg_hba.conf'), { force: true });
  const again = await startInstance({
    binaries,
    dataDirectory,
    user,
    socketDirectory,
    port,
    logFile,
    deadlineMs: STEP_DEADLINE_MS,
    ...(signal && { signal }),
  });
  running.instance = again;
  return { url: again.url({ user: role }), socketDirectory, port, role, pid: again.pid };
}

const TAIL_BYTES = 8192;

async function tailOf(path: string): Promise<string> {
  try {
    await using file = await open(path, 'r');
    const { size } = await file.stat();
    const from = Math.max(0, size - TAIL_BYTES);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(size - from), 0, size - from, from);
    return buffer.toString('utf8', 0, bytesRead);
  } catch {
    return '';
  }
}

/** The first FATAL or PANIC of the last start: what follows are its consequences. */
function lastFatal(log: string): string | undefined {
  const last = log.slice(Math.max(0, log.lastIndexOf('starting PostgreSQL')));
  const match = /(?:FATAL|PANIC): {2}(.*)/.exec(last);
  const said = last
    .slice(0, match?.index)
    .match(/^holdfast: .*$/gm)
    ?.at(-1);
  // PostgreSQL only says that restore_command failed; why, that command has said before.
  const isFetch = match?.[1]?.startsWith('could not restore file') === true && said !== undefined;
  return isFetch ? `${match[1]} (${said})` : match?.[1];
}
