import { join } from 'node:path';

import { throwIfCancelled } from '../cancellation.ts';
import { systemClock, type Clock } from '../clock.ts';
import { isKeyComponent, TEMPORARY_PREFIX } from './key.ts';
import { isAbsence } from './local-directories.ts';
import { localFailure, nodeFiles, type LocalFiles } from './local-files.ts';

export interface RemovedTemporaries {
  files: number;
  sizeBytes: number;
}

/**
 * Removes the temporary files below the root of a local store that were last written more than `olderThanMs` ago: what
 * writers left that were killed. A writer that is only slow loses nothing but time: publishing fails and nothing becomes
 * visible. Give hours, not seconds, all the more where another host's clock stamps the files. Objects are never touched;
 * a missing root is nothing to do. Idempotent, and may run beside writers and other removals.
 */
export async function removeStaleTemporaries(
  root: string,
  olderThanMs: number,
  options: { clock?: Clock; signal?: AbortSignal; files?: LocalFiles } = {},
): Promise<RemovedTemporaries> {
  const { clock = systemClock, signal, files = nodeFiles } = options;
  const before = clock.now().getTime() - olderThanMs;
  const removed: RemovedTemporaries = { files: 0, sizeBytes: 0 };

  const visit = async (directory: string): Promise<void> => {
    throwIfCancelled(signal);
    const below: string[] = [];
    try {
      for await (const entry of await files.opendir(directory)) {
        const path = join(directory, entry.name);
        if (entry.isDirectory() && isKeyComponent(entry.name)) below.push(path);
        if (entry.isFile() && entry.name.startsWith(TEMPORARY_PREFIX)) await remove(path);
      }
    } catch (error) {
      if (!isAbsence(error)) throw localFailure(error, `look for temporary files in ${directory}`);
    }
    for (const path of below) await visit(path);
  };

  const remove = async (path: string): Promise<void> => {
    try {
      const stats = await files.lstat(path);
      if (stats.mtimeMs >= before) return;
      await files.unlink(path);
      removed.files += 1;
      // A second name means that the writer died between publishing and removing this one: no space came free.
      if (stats.nlink === 1) removed.sizeBytes += stats.size;
    } catch (error) {
      if (!isAbsence(error)) throw localFailure(error, `remove ${path}`);
    }
  };

  await visit(root);
  return removed;
}
