import { open, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';

import { systemErrorCode } from '../errors.ts';

/**
 * Writes a stream beside `destination` and renames it there when it has ended without an error, so that nothing partial
 * or unverified is ever seen under that name. Replaces what is there. Not synced: PostgreSQL reads the file at once and
 * asks again after a crash. A temporary file that a killed process left is removed by the next call.
 */
export async function placeFile(destination: string, source: AsyncIterable<Buffer>): Promise<void> {
  const temporary = temporaryPath(destination, process.pid);
  await removeStale(destination);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      for await (const chunk of source) await file.writeFile(chunk);
    } finally {
      await file.close();
    }
    await rename(temporary, destination);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

function temporaryPath(destination: string, pid: number): string {
  return `${destination}.holdfast-${pid}`;
}

async function removeStale(destination: string): Promise<void> {
  const prefix = basename(temporaryPath(destination, 0)).slice(0, -1);
  for (const name of await readdir(dirname(destination))) {
    if (!name.startsWith(prefix)) continue;
    const pid = Number(name.slice(prefix.length));
    if (pid === process.pid || !isAlive(pid)) await rm(join(dirname(destination), name), { force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemErrorCode(error) !== 'ESRCH';
  }
}
