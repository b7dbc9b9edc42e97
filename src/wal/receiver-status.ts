import { mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';

/** What `wal receive` says of itself, for `wal status` and `check` on the same host. LSNs are text, times RFC 3339 UTC. */
export interface ReceiverStatus {
  pid: number;
  host: string;
  cluster: string;
  systemIdentifier: string | null;
  startedAt: string;
  updatedAt: string;
  /** `streaming`: bytes flow. `waiting`: for a server or a repository, see `problem`. `stopped`: it has ended. */
  state: 'connecting' | 'streaming' | 'waiting' | 'stopped';
  problem: string | null;
  /** `host:port` of the server streamed from. */
  server: string | null;
  slot: string;
  timeline: number | null;
  receivedLsn: string | null;
  /** Durable in every required repository: what the server was told is flushed. */
  flushedLsn: string | null;
  /** The server's own end of WAL, as it said last. */
  serverLsn: string | null;
  /** Of the newest commit before `flushedLsn`. */
  lastCommitTime: string | null;
  repositories: ReceiverRepositoryStatus[];
}

export interface ReceiverRepositoryStatus {
  name: string;
  required: boolean;
  durableLsn: string | null;
  /** Why the last attempt failed, while it does. */
  problem: string | null;
  behindSince: string | null;
}

function statusFile(stateDirectory: string, cluster: string): string {
  return join(stateDirectory, 'wal', 'receive', `${cluster}.json`);
}

/** Replaces the status. Not synced, and throws only what the file system does. */
export async function writeReceiverStatus(stateDirectory: string, status: ReceiverStatus): Promise<void> {
  const file = statusFile(stateDirectory, status.cluster);
  const temporary = `${file}.${process.pid}.tmp`;
  await mkdir(join(stateDirectory, 'wal', 'receive'), { recursive: true, mode: 0o700 });
  await writeFile(temporary, `${JSON.stringify(status)}\n`, { mode: 0o600 });
  await rename(temporary, file);
}

/** The last status of a cluster's receiver on this host; undefined where there is none that can be read. */
export async function readReceiverStatus(
  stateDirectory: string,
  cluster: string,
): Promise<(ReceiverStatus & { alive: boolean }) | undefined> {
  try {
    const status = JSON.parse(await readFile(statusFile(stateDirectory, cluster), 'utf8')) as ReceiverStatus;
    const alive = status.state !== 'stopped' && status.host === hostname() && isAlive(status.pid);
    return { ...status, alive };
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
}
