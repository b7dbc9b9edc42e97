import { link, mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { type ClusterIdentity, recordKey, runPrefix } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { timeOfBackupId } from './backup-id.ts';

interface JournalEntry {
  backupId: string;
  pid: number;
  host: string;
  /** Start of the process in clock ticks since boot: a process id alone may be taken by another one later. */
  startTicks: string;
  /** It failed and could not remove what it had stored, so its process says nothing any more. */
  ended?: true;
}

export interface Run extends AsyncDisposable {
  /** Removes what the run stored, for a run that failed. Where it throws, the next run tries again. */
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
  let finished = true;
  return {
    async discard() {
      try {
        await reclaim(repository, identity, backupId, () => undefined);
      } catch (error) {
        finished = false;
        await writeFile(`${path}.new`, JSON.stringify({ ...entry, ended: true }));
        await rename(`${path}.new`, path);
        throw error;
      }
    },
    async [Symbol.asyncDispose]() {
      if (finished) await rm(path, { force: true });
    },
  };
}

/** False where there is one. Nobody sees a part of it, and it is durable before anything is stored. */
async function createExclusively(path: string, entry: JournalEntry): Promise<boolean> {
  const draft = `${path}.${entry.backupId}`;
  try {
    {
      await using file = await open(draft, 'w', 0o640);
      await file.writeFile(JSON.stringify(entry));
      await file.sync();
    }
    await link(draft, path);
  } catch (error) {
    if (systemErrorCode(error) === 'EEXIST') return false;
    throw error;
  } finally {
    await rm(draft, { force: true });
  }
  await using directory = await open(dirname(path), 'r');
  await directory.sync();
  return true;
}

async function readEntry(path: string): Promise<JournalEntry | undefined> {
  try {
    const entry = JSON.parse(await readFile(path, 'utf8')) as Partial<JournalEntry> | null;
    // What is no backup id must not become a prefix to delete.
    return timeOfBackupId(entry?.backupId ?? '') === undefined ? undefined : (entry as JournalEntry);
  } catch (error) {
    // Gone meanwhile, or no journal at all: nothing was stored under its name.
    if (error instanceof SyntaxError || systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function isAlive(entry: JournalEntry): Promise<boolean> {
  if (entry.ended === true) return false;
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
