import { link, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { behindDirectory } from './behind.ts';

/**
 * One process per repository and host catches up. The file names it by its id and when it started, so that one that was
 * killed holds nothing. Two of them at once would only do the same work twice.
 */
function lockFile(stateDirectory: string, systemIdentifier: string, repository: string): string {
  return join(behindDirectory(stateDirectory, systemIdentifier), `${repository}.lock`);
}

/** Whether a living process of this host is catching up for this repository. Never throws. */
export async function isCatchingUp(
  stateDirectory: string,
  systemIdentifier: string,
  repository: string,
): Promise<boolean> {
  return (await holder(lockFile(stateDirectory, systemIdentifier, repository))) !== undefined;
}

/** Takes the lock until it is disposed of, or throws `repository-locked` with the process that holds it. */
export async function takeCatchUpLock(
  stateDirectory: string,
  systemIdentifier: string,
  repository: string,
): Promise<AsyncDisposable> {
  const file = lockFile(stateDirectory, systemIdentifier, repository);
  const own = `${file}.${process.pid}`;
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  await writeFile(own, `${process.pid} ${await startTime(process.pid)}\n`, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < 3; attempt += 1) {
      const pid = await holder(file);
      if (pid !== undefined) throw held(repository, pid);
      // What a dead process left, if anything.
      await rm(file, { force: true });
      try {
        await link(own, file);
        return { [Symbol.asyncDispose]: async () => rm(file, { force: true }) };
      } catch (error) {
        if (systemErrorCode(error) !== 'EEXIST') throw error;
      }
    }
    throw held(repository, (await holder(file)) ?? 0);
  } finally {
    await rm(own, { force: true });
  }
}

async function holder(file: string): Promise<number | undefined> {
  try {
    const [pid = '', started = ''] = (await readFile(file, 'utf8')).trim().split(' ');
    return started !== '' && (await startTime(Number(pid))) === started ? Number(pid) : undefined;
  } catch {
    return undefined;
  }
}

/** In clock ticks since boot; field 22 of /proc/PID/stat (proc_pid_stat(5)), after the name in parentheses. */
async function startTime(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8');
  return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? '';
}

function held(repository: string, pid: number): HoldfastError {
  return new HoldfastError('repository-locked', `process ${pid} is catching up repository ${repository}`, {
    hint: 'let it finish: it copies what is missing and ends by itself',
    context: { repository, pid },
  });
}
