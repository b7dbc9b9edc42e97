import { join } from 'node:path';
import { mkdir } from 'node:fs/promises';

import { launcherFor } from '../../src/cli/demo/stage-program.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { giveToServer, scratchDirectory } from './cluster.ts';

let launcher: Promise<string> | undefined;

/**
 * `bin/holdfast` as the user of the servers can run it: this checkout's, or that of a copy where the checkout lies behind
 * folders this user may not enter. Made once a process.
 */
export function reachableLauncher(): Promise<string> {
  return (launcher ??= stage());
}

async function stage(): Promise<string> {
  const directory = join(await scratchDirectory(), 'program of tests');
  await mkdir(directory);
  const found = await launcherFor(await serverUser(), directory, { withPostgres: true });
  await giveToServer(directory);
  return found;
}
