import { lstat, mkdir, readdir, readFile, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import { isWalSegmentName, type WalSegmentName } from '../postgres/wal-segment.ts';

/** Beside the files PostgreSQL asks for; `bin/holdfast` knows this name, too. */
export const PREFETCH_DIRECTORY = 'holdfast-prefetch';
const OWNER_FILE = 'owner';
const FORMAT = 'holdfast-prefetch 1';

/** One process of one boot: its number alone may be used again. */
export interface ProcessIdentity {
  pid: number;
  /** Clock ticks after the boot (field 22 of proc(5)'s `stat`). */
  startTime: string;
  /** `/proc/sys/kernel/random/boot_id`. */
  bootId: string;
}

/** For which requests a window is filled. It serves no others. */
export interface PrefetchPurpose {
  /** The server that recovers, as its `postmaster.pid` says: number and start, seconds since 1970. */
  postmaster: { pid: number; startedAt: number };
  systemIdentifier: string;
  /** As in the names of segments: eight hexadecimal digits. */
  timeline: string;
  /** The words of the fetch command but for the file's name and path, a line each. */
  words: string;
}

export interface PrefetchOwner {
  process: ProcessIdentity;
  purpose: PrefetchPurpose;
}

/** The identity of a live process; undefined where there is none, where it has ended, or without Linux's /proc. */
export async function identifyProcess(pid: number): Promise<ProcessIdentity | undefined> {
  try {
    const [stat, bootId] = await Promise.all([
      readFile(`/proc/${pid}/stat`, 'latin1'),
      readFile('/proc/sys/kernel/random/boot_id', 'latin1'),
    ]);
    // The program's name, in parentheses, may hold anything.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const [state, startTime] = [fields[0], fields[19]];
    if (startTime === undefined || state === 'Z' || state === 'X') return undefined;
    return { pid, startTime, bootId: bootId.trim() };
  } catch {
    return undefined;
  }
}

export async function isRunning(process: ProcessIdentity): Promise<boolean> {
  const now = await identifyProcess(process.pid);
  return now !== undefined && isSameProcess(now, process);
}

export function isSameProcess(one: ProcessIdentity, other: ProcessIdentity): boolean {
  return one.pid === other.pid && one.startTime === other.startTime && one.bootId === other.bootId;
}

export function isSamePurpose(one: PrefetchPurpose, other: PrefetchPurpose): boolean {
  return one.words === other.words && purposeLines(one).join('\n') === purposeLines(other).join('\n');
}

export function formatOwner({ process, purpose }: PrefetchOwner): string {
  const { pid, startTime, bootId } = process;
  const lines = [FORMAT, String(pid), startTime, bootId, ...purposeLines(purpose)];
  return `${lines.join('\n')}\n${purpose.words}`;
}

/** Undefined for every text that is not wholly one. */
export function parseOwner(text: string): PrefetchOwner | undefined {
  const [format, pid, startTime, bootId, postmasterPid, startedAt, systemIdentifier, timeline, ...words] =
    text.split('\n');
  if (format !== FORMAT || words.at(-1) !== '' || timeline === undefined) return undefined;
  const numbers = [pid, startTime, postmasterPid, startedAt, systemIdentifier];
  if (!numbers.every((one) => one !== undefined && /^\d+$/.test(one))) return undefined;
  return {
    process: { pid: Number(pid), startTime: startTime ?? '', bootId: bootId ?? '' },
    purpose: {
      postmaster: { pid: Number(postmasterPid), startedAt: Number(startedAt) },
      systemIdentifier: systemIdentifier ?? '',
      timeline,
      words: words.join('\n'),
    },
  };
}

function purposeLines({ postmaster, systemIdentifier, timeline }: PrefetchPurpose): string[] {
  return [String(postmaster.pid), String(postmaster.startedAt), systemIdentifier, timeline];
}

/** Whose window it is, where that process is still there. */
export async function readOwner(spool: string): Promise<PrefetchOwner | undefined> {
  const text = await readFile(join(spool, OWNER_FILE), 'utf8').catch(() => '');
  const owner = parseOwner(text);
  return owner !== undefined && (await isRunning(owner.process)) ? owner : undefined;
}

/** Where one process, and no other, puts its segments: those of two never mix. */
export function windowDirectory(spool: string, process: ProcessIdentity): string {
  return join(spool, `${process.pid}-${process.startTime}`);
}

/** Lies there while a segment is on its way: the launcher then waits for it. */
export function comingName(segment: string): string {
  return `${segment}.coming`;
}

/** Lies there for a segment that was handed over another way: recovery goes on behind it. */
export function deliveredName(segment: string): string {
  return `${segment}.delivered`;
}

/** The segment of such a name; undefined for every other name. */
export function deliveredSegment(name: string): WalSegmentName | undefined {
  const [segment = '', kind] = name.split('.');
  return kind === 'delivered' && isWalSegmentName(segment) ? segment : undefined;
}

/** What is to be said when the segment is handed over, a line each. */
export function warningName(segment: string): string {
  return `${segment}.warning`;
}

/** A complete segment, its bytes compared with their hash. */
export function readyName(systemIdentifier: string, segment: string, hash: string): string {
  return `${systemIdentifier}-${segment}-${hash}`;
}

/**
 * Makes `owner` the one whose segments are handed over, in place of any other, with an empty window. Windows that dead
 * processes left are removed; a live one removes its own when it sees that it is no longer the owner. Throws what the
 * file system does, and where something that is no directory of this user has the spool's name.
 */
export async function registerOwner(
  spool: string,
  owner: PrefetchOwner,
  firstSegment: string,
): Promise<void> {
  await makeSpool(spool);
  for (const name of await readdir(spool)) {
    if (name !== OWNER_FILE && !(await belongsToLive(name))) {
      await rm(join(spool, name), { recursive: true, force: true });
    }
  }
  const window = windowDirectory(spool, owner.process);
  await mkdir(window, { mode: 0o700 });
  await writeFile(join(window, comingName(firstSegment)), '', { mode: 0o600 });
  const temporary = join(window, OWNER_FILE);
  await writeFile(temporary, formatOwner(owner), { mode: 0o600 });
  await rename(temporary, join(spool, OWNER_FILE));
}

async function makeSpool(spool: string): Promise<void> {
  await mkdir(spool, { mode: 0o700 }).catch((error: unknown) => {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
  });
  const info = await lstat(spool);
  if (!info.isDirectory() || info.uid !== process.getuid?.()) {
    throw new Error(`${spool} is no directory of this user`);
  }
}

async function belongsToLive(name: string): Promise<boolean> {
  const [, pid, startTime] = /^(\d+)-(\d+)$/.exec(name) ?? [];
  const running = pid === undefined ? undefined : await identifyProcess(Number(pid));
  return running !== undefined && running.startTime === startTime;
}

/** Removes the window of a process, and the spool with it if no other process has taken it over. */
export async function removeWindow(spool: string, process: ProcessIdentity): Promise<void> {
  const text = await readFile(join(spool, OWNER_FILE), 'utf8').catch(() => '');
  const owner = parseOwner(text);
  if (owner === undefined || isSameProcess(owner.process, process)) {
    await rm(join(spool, OWNER_FILE), { force: true });
  }
  await rm(windowDirectory(spool, process), { recursive: true, force: true, maxRetries: 3 });
  await rmdir(spool).catch(() => undefined);
}
