import { type ChildProcess, spawn } from 'node:child_process';
import { chown, mkdir, open, readdir, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError, errorText, systemErrorCode } from '../errors.ts';
import type { PostgresBinaries } from './binaries.ts';
import { dataDirectoryUse, processesIn, readPostmasterFile } from './data-directory-use.ts';
import { runTool } from './run-tool.ts';
import { type ServerUser, dataDirectoryUser, makeServerDirectory } from './server-user.ts';

export interface InitOptions {
  binaries: PostgresBinaries;
  /** Absent or empty; made with mode 0700. Its parent must be there. */
  dataDirectory: string;
  /** Owner of the new cluster's files. Required when root (see `serverUser`). */
  user?: ServerUser | undefined;
  /** Name of the first superuser. Default `postgres`. */
  superuser?: string;
  checksums?: boolean;
  /** In MiB, a power of two from 1 to 1024. Default 16. */
  walSegmentSizeMb?: number;
  encoding?: string;
  locale?: string;
  /** false leaves the files unsynced: for scratch clusters only. Default true. */
  fsync?: boolean;
  deadlineMs?: number;
  signal?: AbortSignal;
}

export interface StartOptions {
  binaries: PostgresBinaries;
  dataDirectory: string;
  /** Default: the data directory's owner. */
  user?: ServerUser | undefined;
  /** 0 (the default): no TCP at all, only a unix socket in a directory of its own. */
  port?: number;
  /** Where the socket goes. Default: a new private directory, removed when the server is stopped. */
  socketDirectory?: string;
  /** Server output is appended here. Default: `holdfast-server.log` beside the data directory. */
  logFile?: string;
  /** Settings given on the server's command line, so `ALTER SYSTEM` cannot override them. Never secrets. */
  settings?: Record<string, string>;
  /** Added to the environment that archive and restore commands see. */
  env?: Record<string, string>;
  /** Longest wait for the first connection; a long recovery needs a long one. Default 60 s. */
  deadlineMs?: number;
  signal?: AbortSignal;
}

export type StopMode = 'smart' | 'fast' | 'immediate';

/** A server started by `startInstance`. It survives this process unless stopped. Disposing stops it (fast). */
export interface Instance extends AsyncDisposable {
  readonly dataDirectory: string;
  readonly socketDirectory: string;
  readonly port: number;
  readonly pid: number;
  readonly logFile: string;
  /** `postgres://…` through the unix socket. */
  url(options?: { user?: string; database?: string }): string;
  status(): Promise<'starting' | 'ready' | 'standby' | 'stopping' | 'down'>;
  /** Resolves when the server and its children are gone; a server already down is a success. */
  stop(mode?: StopMode, deadlineMs?: number): Promise<void>;
  /**
   * `kill -9` to the postmaster, then waits until its children have noticed. The socket directory stays, as after a
   * crash: what lies there proves to the next start that this server is gone.
   */
  kill(): Promise<void>;
}

/** Creates a cluster with trust authentication, which is safe only behind a private socket directory. */
export async function initDataDirectory(options: InitOptions): Promise<void> {
  const { dataDirectory, user } = options;
  await mkdir(dataDirectory, { recursive: false, mode: 0o700 }).catch(async (error: unknown) => {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
    if ((await readdir(dataDirectory)).length > 0) {
      throw new HoldfastError('data-directory-not-empty', `${dataDirectory} is not empty`);
    }
  });
  if (user !== undefined) await chown(dataDirectory, user.uid, user.gid);
  const result = await runTool(
    join(options.binaries.directory, 'initdb'),
    [
      `--pgdata=${resolve(dataDirectory)}`,
      `--username=${options.superuser ?? 'postgres'}`,
      '--auth=trust',
      `--encoding=${options.encoding ?? 'UTF8'}`,
      `--locale=${options.locale ?? 'C'}`,
      `--wal-segsize=${options.walSegmentSizeMb ?? 16}`,
      '--no-instructions',
      ...checksumArguments(options),
      ...(options.fsync === false ? ['--no-sync'] : []),
    ],
    { user, env: serverEnvironment(), deadlineMs: options.deadlineMs ?? 120_000, signal: options.signal },
  );
  if (result.code !== 0) {
    const how =
      result.signal === undefined ? `ended with status ${result.code}` : `was killed by ${result.signal}`;
    throw new HoldfastError('server-start-failed', `initdb ${how}: ${lastLines(result.stderr, 5)}`);
  }
}

function checksumArguments({ binaries, checksums }: InitOptions): string[] {
  if (checksums === true) return ['--data-checksums'];
  // PostgreSQL 18 turned the default around and brought the option to say no.
  return binaries.major >= 18 ? ['--no-data-checksums'] : [];
}

/**
 * Starts a server and resolves when it accepts connections, or runs as a standby without hot standby. Throws
 * `data-directory-in-use`, or `server-start-failed` with the end of the server's log; a server that is not ready in
 * time, or whose wait is cancelled, is stopped again.
 */
export async function startInstance(options: StartOptions): Promise<Instance> {
  const dataDirectory = resolve(options.dataDirectory);
  const user = options.user ?? (await dataDirectoryUser(dataDirectory));
  const use = await dataDirectoryUse(dataDirectory);
  if (use.inUse) {
    throw new HoldfastError('data-directory-in-use', `${dataDirectory} is in use: ${use.reason}`, {
      hint: 'stop that server; if you know that it is gone, remove postmaster.pid',
    });
  }
  const ownSocketDirectory = options.socketDirectory === undefined;
  const socketDirectory = options.socketDirectory ?? (await makeServerDirectory(user));
  const port = options.port ?? 0;
  const socketPort = port === 0 ? 5432 : port;
  if (`${socketDirectory}/.s.PGSQL.${socketPort}`.length > 100) {
    throw new HoldfastError(
      'server-start-failed',
      `the socket directory's path is too long: ${socketDirectory}`,
      {
        hint: 'set TMPDIR to a directory with a short path',
      },
    );
  }
  const logFile = options.logFile ?? join(dirname(dataDirectory), 'holdfast-server.log');
  const cleanUp = async (): Promise<void> => {
    if (ownSocketDirectory) await rm(socketDirectory, { recursive: true, force: true });
  };
  let child: ChildProcess;
  let logStart: number;
  try {
    const log = await open(logFile, 'a', 0o600);
    try {
      logStart = (await log.stat()).size;
      const settings = {
        ...options.settings,
        port: String(socketPort),
        unix_socket_directories: socketDirectory,
        ...(port === 0 ? { listen_addresses: '' } : {}),
      };
      child = spawn(
        join(options.binaries.directory, 'postgres'),
        [
          '-D',
          dataDirectory,
          ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
        ],
        {
          cwd: '/',
          detached: true,
          stdio: ['ignore', log.fd, log.fd],
          env: { ...serverEnvironment(), ...options.env },
          ...(user === undefined ? {} : { uid: user.uid, gid: user.gid }),
        },
      );
      child.unref();
    } finally {
      await log.close();
    }
  } catch (error) {
    await cleanUp();
    throw error;
  }
  const ended = new Promise<string>((settle) => {
    child.once('error', (error) => {
      settle(errorText(error));
    });
    child.once('exit', (code, signal) => {
      settle(signal === null ? `it ended with status ${code}` : `it was killed by ${signal}`);
    });
  });
  try {
    await untilReady({ dataDirectory, logFile, logStart, child, ended, options });
  } catch (error) {
    if (child.pid !== undefined)
      await endProcess(child.pid, dataDirectory, 'immediate', 30_000).catch(() => undefined);
    await cleanUp();
    throw error;
  }
  const pid = child.pid ?? 0;
  const stop = async (mode: StopMode = 'fast', deadlineMs = 60_000): Promise<void> => {
    await endProcess(pid, dataDirectory, mode, deadlineMs);
    await cleanUp();
  };
  return {
    dataDirectory,
    socketDirectory,
    port: socketPort,
    pid,
    logFile,
    url: ({ user: role = 'postgres', database = 'postgres' } = {}) =>
      socketUrl(socketDirectory, socketPort, role, database),
    status: async () => {
      if (!(await isAlive(pid, dataDirectory))) return 'down';
      return (await readPostmasterFile(dataDirectory))?.status ?? 'starting';
    },
    stop,
    kill: async () => {
      if (await isAlive(pid, dataDirectory)) process.kill(pid, 'SIGKILL');
      await untilGone(pid, dataDirectory, 30_000);
    },
    [Symbol.asyncDispose]: stop,
  };
}

/**
 * Stops whatever server runs on the data directory. Resolves when it is gone; nothing running is a success. Throws
 * `server-error` where it is still there after the deadline.
 */
export async function stopInstance(
  dataDirectory: string,
  mode: StopMode = 'fast',
  deadlineMs = 60_000,
): Promise<void> {
  const file = await readPostmasterFile(dataDirectory);
  if (file === undefined || !Number.isInteger(file.pid)) return;
  await endProcess(file.pid, resolve(dataDirectory), mode, deadlineMs);
}

/** The URL of a server behind a unix socket. */
export function socketUrl(socketDirectory: string, port: number, user: string, database: string): string {
  const query = new URLSearchParams({ host: socketDirectory, port: String(port) });
  return `postgres://${encodeURIComponent(user)}@/${encodeURIComponent(database)}?${query.toString()}`;
}

interface Waiting {
  dataDirectory: string;
  logFile: string;
  logStart: number;
  child: ChildProcess;
  ended: Promise<string>;
  options: StartOptions;
}

async function untilReady({
  dataDirectory,
  logFile,
  logStart,
  child,
  ended,
  options,
}: Waiting): Promise<void> {
  const deadlineMs = options.deadlineMs ?? 60_000;
  const deadline = performance.now() + deadlineMs;
  let end: string | undefined;
  const note = async (): Promise<void> => {
    end = await ended;
  };
  void note();
  for (let pause = 10; ; pause = Math.min(pause * 1.3, 200)) {
    if (options.signal?.aborted === true) {
      throw new HoldfastError('cancelled', 'the start of the server was cancelled');
    }
    const file = await readPostmasterFile(dataDirectory);
    // The file of a crashed server may still lie there: only the new server's own counts.
    if (
      file !== undefined &&
      file.pid === child.pid &&
      (file.status === 'ready' || file.status === 'standby')
    )
      return;
    const why = end ?? (performance.now() > deadline ? `it was not ready after ${deadlineMs} ms` : undefined);
    if (why !== undefined) {
      const tail = await readTail(logFile, logStart);
      const cause = tail.split('\n').findLast((line) => /FATAL|PANIC|ERROR/.test(line)) ?? lastLines(tail, 1);
      const text = `the server on ${dataDirectory} did not start: ${why}; last in its log: ${cause}`;
      throw new HoldfastError('server-start-failed', text, {
        hint: `the server's log: ${logFile}`,
        context: { log: tail, exited: end !== undefined },
      });
    }
    await Promise.race([sleep(pause), ended]);
  }
}

const SIGNALS = { smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT' } as const;

async function endProcess(
  pid: number,
  dataDirectory: string,
  mode: StopMode,
  deadlineMs: number,
): Promise<void> {
  if (await isAlive(pid, dataDirectory)) {
    try {
      process.kill(pid, SIGNALS[mode]);
    } catch (error) {
      if (systemErrorCode(error) !== 'ESRCH') throw error;
    }
  }
  await untilGone(pid, dataDirectory, deadlineMs);
}

async function untilGone(pid: number, dataDirectory: string, deadlineMs: number): Promise<void> {
  const deadline = performance.now() + deadlineMs;
  for (let pause = 5; ; pause = Math.min(pause * 1.5, 200)) {
    const gone = !(await isAlive(pid, dataDirectory)) && (await remaining(dataDirectory)).length === 0;
    if (gone) return;
    if (performance.now() > deadline) {
      throw new HoldfastError(
        'server-error',
        `the server on ${dataDirectory} did not stop within ${deadlineMs} ms`,
        {
          context: { pid },
        },
      );
    }
    await sleep(pause);
  }
}

async function remaining(dataDirectory: string): Promise<number[]> {
  return await processesIn(dataDirectory).catch((error: unknown) => {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw error;
  });
}

/** Whether the process is there and (where that can be seen) works in the data directory: numbers are used again. */
async function isAlive(pid: number, dataDirectory: string): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return systemErrorCode(error) === 'EPERM';
  }
  const [there, here] = await Promise.all([
    stat(`/proc/${pid}/cwd`, { bigint: true }).catch((error: unknown) => systemErrorCode(error)),
    stat(dataDirectory, { bigint: true }).catch(() => undefined),
  ]);
  if (here === undefined || there === undefined) return true;
  // A process that has ended but was not waited for has no working directory any more.
  if (typeof there === 'string') return there !== 'ENOENT';
  // Just after its start a server still stands in `/`.
  return (
    (there.ino === here.ino && there.dev === here.dev) ||
    (await readPostmasterFile(dataDirectory)) === undefined
  );
}

/** PostgreSQL's own settings in our environment must not reach the server; untranslated messages can be judged. */
function serverEnvironment(): Record<string, string> {
  const env: Record<string, string> = { LC_ALL: 'C' };
  for (const name of ['PATH', 'TMPDIR', 'TZ', 'LD_LIBRARY_PATH']) {
    const value = process.env[name];
    if (value !== undefined) env[name] = value;
  }
  return env;
}

const TAIL_BYTES = 4096;

async function readTail(path: string, from: number): Promise<string> {
  const file = await open(path, 'r').catch(() => undefined);
  if (file === undefined) return '';
  try {
    const { size } = await file.stat();
    const start = Math.max(from, size - TAIL_BYTES);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(size - start), 0, size - start, start);
    return lastLines(buffer.toString('utf8', 0, bytesRead), 20);
  } finally {
    await file.close();
  }
}

function lastLines(text: string, count: number): string {
  return text.trim().split('\n').slice(-count).join('\n');
}
