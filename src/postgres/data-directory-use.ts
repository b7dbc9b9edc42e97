import { readFile, readdir, stat, statfs } from 'node:fs/promises';
import { uptime } from 'node:os';
import { join } from 'node:path';
import { systemErrorCode } from '../errors.ts';

/** What `postmaster.pid` says (PostgreSQL: `miscadmin.h`, "LOCK_FILE_LINE_…"). */
export interface PostmasterFile {
  pid: number;
  dataDirectory: string;
  /** Seconds since 1970. */
  startedAt: number;
  port: number;
  socketDirectory: string;
  /** `ready` accepts connections; `standby` runs but accepts none (yet); undefined just after the start. */
  status: 'starting' | 'ready' | 'standby' | 'stopping' | undefined;
}

export type DataDirectoryUse =
  | { inUse: false }
  /** `pid` is set where a running server was seen; without it the use could only not be ruled out. */
  | { inUse: true; reason: string; pid?: number };

/** Reads `postmaster.pid`; undefined where there is none, an object with `pid` NaN where it is unreadable as such. */
export async function readPostmasterFile(dataDirectory: string): Promise<PostmasterFile | undefined> {
  let text: string;
  try {
    text = await readFile(join(dataDirectory, 'postmaster.pid'), 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
  const lines = text.split('\n').map((line) => line.trim());
  const status = lines[7];
  return {
    // A standalone backend writes its pid negated.
    pid: Math.abs(Number.parseInt(lines[0] ?? '', 10)),
    dataDirectory: lines[1] ?? '',
    startedAt: Number(lines[2] ?? ''),
    port: Number(lines[3] ?? ''),
    socketDirectory: lines[4] ?? '',
    status:
      status === 'starting' || status === 'ready' || status === 'standby' || status === 'stopping'
        ? status
        : undefined,
  };
}

/**
 * Whether a server may be using this data directory. A `postmaster.pid` whose server cannot be seen counts as in use:
 * it may run in another container or on another host that shares the storage. It is taken as left over only where
 * that is proven: the server's socket was made on this machine and its process is gone, or it was started before this
 * machine booted and the storage is local.
 */
export async function dataDirectoryUse(dataDirectory: string): Promise<DataDirectoryUse> {
  const file = await readPostmasterFile(dataDirectory);
  if (file === undefined) return { inUse: false };
  const users = await processesIn(dataDirectory);
  const seen = users.includes(file.pid) ? file.pid : users[0];
  if (seen !== undefined) return { inUse: true, reason: `process ${seen} runs in it`, pid: seen };
  if (Number.isInteger(file.pid) && file.pid > 0) {
    const other = await ranElsewhere(file.pid, dataDirectory);
    if (other === 'unknown') {
      return { inUse: true, reason: `process ${file.pid} of its postmaster.pid is alive`, pid: file.pid };
    }
    if ((await socketWasHere(file)) || (await startedBeforeBoot(file, dataDirectory)))
      return { inUse: false };
  }
  return {
    inUse: true,
    reason: `its postmaster.pid names process ${file.pid}, which is not on this machine but may be on another`,
  };
}

/** Processes whose working directory is `directory`, which PostgreSQL's all have (Linux; elsewhere none are found). */
export async function processesIn(directory: string): Promise<number[]> {
  const wanted = await stat(directory, { bigint: true });
  const found: number[] = [];
  for (const name of await readdir('/proc').catch(() => [])) {
    if (!/^\d+$/.test(name)) continue;
    // By device and inode: a container sees the same directory under another path.
    const there = await stat(`/proc/${name}/cwd`, { bigint: true }).catch(() => undefined);
    if (there?.ino === wanted.ino && there.dev === wanted.dev) found.push(Number(name));
  }
  return found;
}

/** `gone`: no such process, or one that works in another directory. `unknown`: alive, and not ours to look at. */
async function ranElsewhere(pid: number, dataDirectory: string): Promise<'gone' | 'unknown'> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (systemErrorCode(error) === 'ESRCH') return 'gone';
  }
  const [there, here] = await Promise.all([
    stat(`/proc/${pid}/cwd`, { bigint: true }).catch(() => undefined),
    stat(dataDirectory, { bigint: true }),
  ]);
  if (there === undefined) return 'unknown';
  return there.ino === here.ino && there.dev === here.dev ? 'unknown' : 'gone';
}

async function socketWasHere(file: PostmasterFile): Promise<boolean> {
  if (file.socketDirectory === '') return false;
  const lock = await readFile(join(file.socketDirectory, `.s.PGSQL.${file.port}.lock`), 'utf8').catch(
    () => '',
  );
  const [pid, dataDirectory, startedAt] = lock.split('\n');
  return (
    Number(pid) === file.pid && dataDirectory === file.dataDirectory && Number(startedAt) === file.startedAt
  );
}

/** Magic numbers of `statfs(2)`: ext2-4, xfs, btrfs, zfs, tmpfs, overlayfs, f2fs. */
const LOCAL_FILE_SYSTEMS = new Set([
  0xef53, 0x58465342, 0x9123683e, 0x2fc12fc1, 0x01021994, 0x794c7630, 0xf2f52010,
]);

async function startedBeforeBoot(file: PostmasterFile, dataDirectory: string): Promise<boolean> {
  if (!Number.isFinite(file.startedAt) || file.startedAt <= 0) return false;
  const bootedAt = Date.now() / 1000 - uptime();
  const { type } = await statfs(dataDirectory);
  // A minute's margin: the clock may have been set since the boot.
  return file.startedAt < bootedAt - 60 && LOCAL_FILE_SYSTEMS.has(type);
}
