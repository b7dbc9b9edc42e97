import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { type ClusterIdentity, recordKey, runPrefix } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';

interface JournalEntry {
  backupId: string;
  pid: number;
  host: string;
  /** Start of the process in clock ticks since boot: a process id alone may be taken by another one later. */
  startTicks: string;
}

export interface Run extends AsyncDisposable {
  /** Removes what the run stored. For a run that failed. Best effort: what is left is reclaimed by the next run. */
  discard(): Promise<void>;
}

/**
 * Notes on this host that a base backup runs. It keeps a second one of the same cluster and repository away
 * (`repository-locked`, naming who), and lets the next run reclaim the space of one that died: everything below its own
 * prefix, and only if no record committed it. Other hosts' runs are never touched.
 */
export async function beginRun(
  repository: Repository,
  identity: ClusterIdentity,
  backupId: string,
  stateDirectory: string,
  say: (text: string) => void,
): Promise<Run> {
  const directory = join(stateDirectory, 'runs');
  await mkdir(directory, { recursive: true, mode: 0o750 });
  const path = join(directory, `base-${identity.cluster}-${identity.systemIdentifier}-${repository.id}.json`);
  const entry: JournalEntry = {
    backupId,
    pid: process.pid,
    host: hostname(),
    startTicks: (await startTicksOf(process.pid)) ?? '',
  };
  while (!(await createExclusively(path, entry))) {
    const other = await readEntry(path);
    if (other !== undefined && (await isAlive(other))) {
      throw new HoldfastError(
        'repository-locked',
        `a base backup of ${identity.cluster} to repository ${repository.name} is running already (${other.backupId}, process ${other.pid})`,
        { hint: 'wait until it has ended' },
      );
    }
    if (other !== undefined) await reclaim(repository, identity, other.backupId, say);
    await rm(path, { force: true });
  }
  return {
    discard: () => reclaim(repository, identity, backupId, () => undefined),
    [Symbol.asyncDispose]: () => rm(path, { force: true }),
  };
}

async function createExclusively(path: string, entry: JournalEntry): Promise<boolean> {
  try {
    await using file = await open(path, 'wx', 0o640);
    await file.writeFile(JSON.stringify(entry));
    await file.sync();
    return true;
  } catch (error) {
    if (systemErrorCode(error) === 'EEXIST') return false;
    throw error;
  }
}

async function readEntry(path: string): Promise<JournalEntry | undefined> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as JournalEntry;
  } catch (error) {
    // Its writer died before it had written it, and so before it had stored anything.
    if (error instanceof SyntaxError || systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function isAlive(entry: JournalEntry): Promise<boolean> {
  if (entry.host !== hostname()) return true;
  const ticks = await startTicksOf(entry.pid);
  return ticks !== undefined && ticks === entry.startTicks;
}

/** Field 22 of /proc/PID/stat (proc(5)); undefined where there is no such process. */
async function startTicksOf(pid: number): Promise<string | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(systemErrorCode(error) ?? '')) return undefined;
    throw error;
  }
}

async function reclaim(
  repository: Repository,
  identity: ClusterIdentity,
  backupId: string,
  say: (text: string) => void,
): Promise<void> {
  if ((await repository.storage.head(recordKey(identity, backupId))) !== undefined) return;
  let objects = 0;
  for await (const { key } of repository.storage.list(runPrefix(identity, backupId))) {
    await repository.storage.delete(key);
    objects += 1;
  }
  if (objects > 0) say(`removed ${objects} objects of backup ${backupId}, which did not finish`);
}
