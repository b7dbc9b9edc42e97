import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { ClusterIdentity } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../../src/repository/wal-file.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openTestRepository } from '../wal-lab.ts';
import { giveToServer, scratchDirectory, type TestCluster } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';

const MAX_BYTES = 64 * 2 ** 20;

/** A repository on this disk, with the configuration that servers of a test archive and restore with. */
export interface WalRepository {
  readonly directory: string;
  readonly root: string;
  readonly repository: Repository;
  readonly configFile: string;
  /** For `archive_command`. */
  readonly push: string;
  /** For `restore_command`, with more options if given. */
  fetch(options?: string): string;
  /** The stored bytes of a WAL file, verified; undefined where it is not there. */
  stored(identity: ClusterIdentity, name: string): Promise<Buffer | undefined>;
  /** Processes of the program, not of its launcher, that work with this repository now. */
  processes(): Promise<number[]>;
}

export async function createWalRepository(): Promise<WalRepository> {
  const directory = await scratchDirectory();
  const root = join(directory, 'repository');
  await mkdir(root);
  const repository = await openTestRepository(createLocalStorage(root));
  const configFile = join(directory, 'holdfast.yaml');
  await writeFile(
    configFile,
    `clusters:
  app:
    servers: ["postgres://holdfast@localhost/postgres"]
repositories:
  local: { url: "file://${root}" }
state: ${directory}/state
`,
  );
  await mkdir(join(directory, 'state'));
  await giveToServer(directory);
  const program = `HOLDFAST_SOURCE=1 XDG_CACHE_HOME=${directory}/cache '${await reachableLauncher()}'`;
  return {
    directory,
    root,
    repository,
    configFile,
    push: `${program} wal push %p --config ${configFile}`,
    fetch: (options = '') => `${program} wal fetch %f %p --config ${configFile} ${options}`,
    async stored(identity, name) {
      const header = await readWalHeader(repository, identity, name);
      return header && (await readWholeWalFile(repository, header, MAX_BYTES));
    },
    async processes() {
      const found: number[] = [];
      for (const entry of await readdir('/proc')) {
        const words = /^\d+$/.test(entry)
          ? await readFile(`/proc/${entry}/cmdline`, 'utf8').catch(() => '')
          : '';
        if (words.includes(configFile) && words.includes('src/cli/main.ts\0')) found.push(Number(entry));
      }
      return found;
    },
  };
}

/** The files of `pg_wal` that the server takes for archived. */
export async function archivedFiles(cluster: TestCluster): Promise<string[]> {
  const names = await readdir(join(cluster.dataDir, 'pg_wal', 'archive_status'));
  return names.filter((name) => name.endsWith('.done')).map((name) => name.slice(0, -'.done'.length));
}

/** Switches to a new segment and waits until everything before it is archived. */
export async function archiveEverything(cluster: TestCluster, deadlineMs = 60_000): Promise<void> {
  const giveUpAt = performance.now() + deadlineMs;
  const [row] = await cluster.sql<{ name: string }>(
    // Where nothing was written since the last switch, there would be nothing to switch.
    "select pg_walfile_name(pg_logical_emit_message(true, 'test', 'x')) as name",
  );
  await cluster.sql('select pg_switch_wal()');
  for (;;) {
    const status = await readdir(join(cluster.dataDir, 'pg_wal', 'archive_status'));
    const isDone = status.includes(`${row?.name}.done`);
    if (isDone && !status.some((name) => name.endsWith('.ready'))) return;
    if (performance.now() > giveUpAt) throw new Error(`not archived in time: ${status.join(' ')}`);
    await sleep(100);
  }
}
