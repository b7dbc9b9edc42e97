import { stat } from 'node:fs/promises';
import { dirname } from 'node:path';

import type { CoreConfiguration, RepositoryConfiguration } from '../../config/configuration.ts';
import { canEnter } from '../../postgres/server-user.ts';
import type { FileOwner } from '../../restore/data-tree.ts';
import type { RestoreTarget } from '../../restore/target-directory.ts';

/**
 * What the restored server's user cannot reach of what `restore_command` needs: PostgreSQL runs it as that user, not as
 * the one who restores.
 */
export async function unreachableFor(
  { owner, directory }: RestoreTarget,
  launcher: string,
  configuration: CoreConfiguration,
  repository: RepositoryConfiguration | undefined,
): Promise<string[]> {
  if (owner === undefined) return [];
  const needed = [launcher, configuration.file];
  if (configuration.identity?.startsWith('/') === true) needed.push(configuration.identity);
  if (repository?.url.startsWith('file:///') === true)
    needed.push(new URL('holdfast.json', `${repository.url}/`).pathname);
  const parent = dirname(directory);
  const found = (await canEnter({ name: '', ...owner }, parent)) ? [] : [parent];
  for (const path of needed) {
    if (!(await canRead(owner, decodeURIComponent(path)))) found.push(path);
  }
  return found;
}

async function canRead(owner: FileOwner, path: string): Promise<boolean> {
  try {
    const { uid, gid, mode } = await stat(path);
    const bit = uid === owner.uid ? 0o400 : gid === owner.gid ? 0o040 : 0o004;
    return (mode & bit) !== 0 && (await canEnter({ name: '', ...owner }, dirname(path)));
  } catch {
    return false;
  }
}
