import type { FileHandle } from 'node:fs/promises';

import { nodeFiles, type LocalFiles } from '../src/storage/local-files.ts';
import { CrashError } from './faulty-storage.ts';

export interface FileStep {
  /** `open`, `link`, … or of an open file `write`, `sync`, `stat`, `read`, `close`. */
  call: string;
  path: string;
}

export interface FilesPlan {
  /** Which step fails, from 1; none by default. */
  at?: number;
  /** `crash-…`: this step and all later ones throw `CrashError`, before or after it was done. */
  kind?: 'error' | 'crash-before' | 'crash-after';
  /** What an `error` says. Default `EIO`. */
  code?: string;
}

export interface FaultyFiles {
  files: LocalFiles;
  /** Every step so far, in order of its beginning. */
  steps: FileStep[];
  fired: () => FileStep | undefined;
}

/** The real file system, recorded, and failing at one chosen step. */
export function createFaultyFiles(plan: FilesPlan = {}): FaultyFiles {
  const { at = 0, kind = 'error', code = 'EIO' } = plan;
  const steps: FileStep[] = [];
  let fired: FileStep | undefined;
  let crashed = false;

  async function step<T>(call: string, path: string, apply: () => Promise<T>): Promise<T> {
    if (crashed) {
      // A dead process's files are closed by the kernel.
      if (call === 'close') await apply();
      throw new CrashError('the process has crashed');
    }
    steps.push({ call, path });
    if (steps.length !== at) return await apply();
    fired = { call, path };
    crashed = kind !== 'error';
    if (kind === 'crash-after' || call === 'close') await apply();
    if (crashed) throw new CrashError(`crash at step ${at}: ${call} ${path}`);
    throw Object.assign(new Error(`${code}: injected at step ${at}, ${call} '${path}'`), { code });
  }

  const files: LocalFiles = {
    ...nodeFiles,
    link: async (from, to) => step('link', String(to), () => nodeFiles.link(from, to)),
    rename: async (from, to) => step('rename', String(to), () => nodeFiles.rename(from, to)),
    unlink: async (path) => step('unlink', String(path), () => nodeFiles.unlink(path)),
    realpath: async (path) => step('realpath', path, () => nodeFiles.realpath(path)),
    mkdir: (async (path: string, options: { recursive: true; mode: number }) =>
      step('mkdir', path, () => nodeFiles.mkdir(path, options))) as LocalFiles['mkdir'],
    open: async (path, flags, mode) =>
      step('open', String(path), async () => {
        const handle = await nodeFiles.open(path, flags, mode);
        if (crashed) await handle.close();
        return watched(handle, String(path));
      }),
  };

  function watched(handle: FileHandle, path: string): FileHandle {
    const calls = new Set(['write', 'sync', 'stat', 'read', 'close']);
    return new Proxy(handle, {
      get(target, name) {
        const member: unknown = Reflect.get(target, name, target);
        if (typeof name !== 'string' || typeof member !== 'function') return member;
        const call = member as (...values: unknown[]) => Promise<unknown>;
        return async (...values: unknown[]) =>
          calls.has(name)
            ? step(name, path, async () => call.apply(target, values))
            : call.apply(target, values);
      },
    });
  }

  return { files, steps, fired: () => fired };
}
