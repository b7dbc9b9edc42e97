import { constants } from 'node:fs';
import { link, mkdir, open, readFile, rm } from 'node:fs/promises';
import { dirname } from 'node:path';

import { HoldfastError, systemErrorCode } from '../../errors.ts';
import { identifyProcess, isRunning } from '../prefetch-owner.ts';

/** Held while a receiver of a cluster runs on this host. */
export interface ReceiverLock extends AsyncDisposable {
  release(): Promise<void>;
}

/**
 * Takes the lock of a cluster's receiver on this host, also from one that died. Throws `receiver-running` where another
 * process holds it. Hosts are kept apart by the replication slot, not by this file.
 */
export async function takeReceiverLock(file: string, cluster: string): Promise<ReceiverLock> {
  await mkdir(dirname(file), { recursive: true, mode: 0o700 });
  const own = `${file}.${process.pid}`;
  const release = async (): Promise<void> => {
    await rm(file, { force: true });
  };
  await writeOwn(own);
  try {
    for (let attempt = 0; attempt < 3; attempt += 1) {
      try {
        // Appears with its content, or not at all.
        await link(own, file);
        return { release, [Symbol.asyncDispose]: release };
      } catch (error) {
        if (systemErrorCode(error) !== 'EEXIST') throw error;
      }
      const holder = await livingHolder(file);
      if (holder !== undefined) throw running(cluster, holder);
      await rm(file, { force: true });
    }
  } finally {
    await rm(own, { force: true });
  }
  throw running(cluster, undefined);
}

async function writeOwn(path: string): Promise<void> {
  const handle = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, 0o600);
  try {
    const own = await identifyProcess(process.pid);
    await handle.writeFile(`${process.pid} ${own?.startTime ?? ''} ${own?.bootId ?? ''}\n`);
  } finally {
    await handle.close();
  }
}

/** A number alone may be another process's by now: after a reboot, or in a container that was started anew. */
async function livingHolder(file: string): Promise<number | undefined> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const [pid = '', startTime = '', bootId = ''] = text.trim().split(' ');
  const holder = { pid: Number(pid), startTime, bootId };
  return holder.pid > 0 && (await isRunning(holder)) ? holder.pid : undefined;
}

function running(cluster: string, pid: number | undefined): HoldfastError {
  const who = pid === undefined ? 'another process' : `process ${pid}`;
  return new HoldfastError('receiver-running', `${who} on this host receives the WAL of ${cluster} already`, {
    hint: `"holdfast wal status ${cluster}" shows what it does; one receiver for each cluster is enough`,
    context: { cluster, pid: pid ?? null },
  });
}
