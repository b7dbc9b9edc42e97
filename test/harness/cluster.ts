import { execFile } from 'node:child_process';
import { rmSync } from 'node:fs';
import { appendFile, cp, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Client, type QueryResult } from 'pg';
import { crc32c } from '@node-rs/crc32';
import { type PostgresBinaries, findBinaries, listBinaries } from '../../src/postgres/binaries.ts';
import {
  type Instance,
  type StopMode,
  initDataDirectory,
  socketUrl,
  startInstance,
} from '../../src/postgres/instance.ts';
import { makeServerDirectory, serverUser } from '../../src/postgres/server-user.ts';

export interface ClusterOptions {
  /** Default: the newest there is. */
  major?: number;
  segmentSizeMb?: 1 | 16 | 64;
  checksums?: boolean;
  /** Turns archiving on. */
  archiveCommand?: string;
  /** Written to postgresql.conf, quoted. */
  settings?: Record<string, string>;
  /** Default true: no fsync, as nothing here survives the test. Give false where crashes of the machine matter. */
  fast?: boolean;
  /** Default true. */
  start?: boolean;
  /** TCP port to listen on at 127.0.0.1; default none. */
  port?: number;
}

export interface TestCluster extends AsyncDisposable {
  readonly major: number;
  readonly binaries: PostgresBinaries;
  /** Directory of everything of this cluster, owned by the server's user; removed at the end. */
  readonly scratch: string;
  readonly dataDir: string;
  readonly socketDir: string;
  readonly port: number;
  /** As superuser, database `postgres`, through the unix socket. */
  readonly url: string;
  readonly instance: Instance | undefined;
  urlOf(user: string, database?: string): string;
  /** A connected client; the caller ends it (or the cluster's end breaks it). */
  connect(database?: string): Promise<Client>;
  /** Runs one text (several statements allowed) as superuser and returns the rows of the last one. */
  sql<Row = Record<string, unknown>>(text: string, database?: string): Promise<Row[]>;
  start(): Promise<void>;
  stop(mode?: StopMode): Promise<void>;
  kill(): Promise<void>;
  /** Appends to postgresql.conf; takes effect at the next start or reload. */
  configure(settings: Record<string, string>): Promise<void>;
}

/** Majors whose servers can be started here, ascending. */
export async function availableMajors(): Promise<number[]> {
  return [...new Set((await listBinaries()).map((found) => found.major))].sort((a, b) => a - b);
}

/**
 * A directory that servers and, when root, their user can reach and own. Removed when the process ends, at the latest.
 */
export async function scratchDirectory(): Promise<string> {
  const directory = await makeServerDirectory(await serverUser(), 'hf-test-');
  leftOver.directories.add(directory);
  return directory;
}

/** Gives `path` and everything below to the user that servers run as (nothing to do unless root). */
export async function giveToServer(path: string): Promise<void> {
  const user = await serverUser();
  if (user === undefined) return;
  // Not by names in this process: a name may be no UTF-8.
  await promisify(execFile)('chown', ['--recursive', '--no-dereference', `${user.uid}:${user.gid}`, path]);
}

/** A new cluster with an identity of its own, started unless told otherwise. `await using` ends and removes it. */
export async function createCluster(options: ClusterOptions = {}): Promise<TestCluster> {
  const user = await serverUser();
  const scratch = await scratchDirectory();
  const binaries = await binariesOf(options.major);
  const dataDir = join(scratch, 'data');
  await cp(await templateOf(binaries, options), dataDir, { recursive: true, preserveTimestamps: true });
  await giveNewIdentity(dataDir);
  await giveToServer(scratch);
  const port = options.port ?? 0;
  let instance: Instance | undefined;
  const socketPort = port === 0 ? 5432 : port;
  const urlOf = (role: string, database = 'postgres'): string =>
    socketUrl(scratch, socketPort, role, database);

  const cluster: TestCluster = {
    major: binaries.major,
    binaries,
    scratch,
    dataDir,
    socketDir: scratch,
    port: socketPort,
    url: urlOf('postgres'),
    get instance() {
      return instance;
    },
    urlOf,
    async connect(database = 'postgres') {
      const client = new Client({ connectionString: urlOf('postgres', database) });
      // The end of a test ends the server under its connections.
      client.on('error', () => undefined);
      await client.connect();
      return client;
    },
    async sql<Row>(text: string, database?: string) {
      const client = await cluster.connect(database);
      try {
        const result: unknown = await client.query(text);
        const last = Array.isArray(result) ? result.at(-1) : result;
        return (last as QueryResult).rows as Row[];
      } finally {
        await client.end();
      }
    },
    async start() {
      instance = await startInstance({
        binaries,
        dataDirectory: dataDir,
        user,
        socketDirectory: scratch,
        port,
        logFile: join(scratch, 'server.log'),
      });
      leftOver.servers.add(instance.pid);
    },
    async stop(mode) {
      if (instance === undefined) return;
      await instance.stop(mode);
      leftOver.servers.delete(instance.pid);
      instance = undefined;
    },
    async kill() {
      if (instance === undefined) return;
      await instance.kill();
      leftOver.servers.delete(instance.pid);
      instance = undefined;
    },
    async configure(settings) {
      const lines = Object.entries(settings).map(
        ([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`,
      );
      await appendFile(join(dataDir, 'postgresql.conf'), lines.join(''));
    },
    async [Symbol.asyncDispose]() {
      await cluster.stop('immediate');
      await rm(scratch, { recursive: true, force: true });
      leftOver.directories.delete(scratch);
    },
  };

  await cluster.configure({
    ...(options.fast === false ? {} : { fsync: 'off' }),
    ...(port === 0 ? {} : { listen_addresses: '127.0.0.1' }),
    shared_buffers: '16MB',
    ...(options.archiveCommand === undefined
      ? {}
      : { archive_mode: 'on', archive_command: options.archiveCommand }),
    ...options.settings,
  });
  if (options.start !== false) await cluster.start();
  return cluster;
}

/** What this process must not leave behind, however it ends. */
const leftOver = { servers: new Set<number>(), directories: new Set<string>() };

// A test runner ends what takes too long by a signal, which would skip the clean-up below.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    process.exit(1);
  });
}

process.once('exit', () => {
  for (const pid of leftOver.servers) {
    try {
      process.kill(pid, 'SIGQUIT');
    } catch {
      // It ended before us.
    }
  }
  for (const directory of leftOver.directories)
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
});

const binaries = new Map<number | undefined, Promise<PostgresBinaries>>();
const templates = new Map<string, Promise<string>>();

async function binariesOf(major: number | undefined): Promise<PostgresBinaries> {
  let found = binaries.get(major);
  if (found === undefined) {
    found = (async () => {
      const user = await serverUser();
      return await findBinaries({ user, ...(major === undefined ? {} : { major }) });
    })();
    binaries.set(major, found);
  }
  return await found;
}

async function templateOf(found: PostgresBinaries, options: ClusterOptions): Promise<string> {
  const { segmentSizeMb = 16, checksums = true } = options;
  const key = `${found.major}-${segmentSizeMb}-${checksums}`;
  let template = templates.get(key);
  if (template === undefined) {
    template = (async () => {
      const dataDirectory = join(await scratchDirectory(), 'template');
      await initDataDirectory({
        binaries: found,
        dataDirectory,
        user: await serverUser(),
        checksums,
        walSegmentSizeMb: segmentSizeMb,
        fsync: false,
      });
      return dataDirectory;
    })();
    templates.set(key, template);
  }
  return await template;
}

/**
 * Copies of one template would share its system identifier. It lies in `pg_control` (first eight bytes, under a CRC)
 * and in the long header of each WAL segment (bytes 24 to 31, under none).
 */
async function giveNewIdentity(dataDir: string): Promise<void> {
  const identity = Buffer.alloc(8);
  const seconds = BigInt(Math.floor(Date.now() / 1000));
  identity.writeBigUInt64LE((seconds << 32n) | BigInt(Math.floor(Math.random() * 2 ** 32)));

  await patch(join(dataDir, 'global/pg_control'), (control) => {
    // Where the CRC lies depends on the version: it is the place that holds the CRC of everything before it.
    let end = 64;
    while (control.readUInt32LE(end) !== crc32c(control.subarray(0, end))) end += 4;
    identity.copy(control, 0);
    control.writeUInt32LE(crc32c(control.subarray(0, end)), end);
  });
  for (const name of await readdir(join(dataDir, 'pg_wal'))) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    await patch(join(dataDir, 'pg_wal', name), (header) => {
      identity.copy(header, 24);
    });
  }
}

async function patch(path: string, change: (start: Buffer) => void): Promise<void> {
  const file = await open(path, 'r+');
  try {
    const start = Buffer.alloc(512);
    await file.read(start, 0, start.length, 0);
    change(start);
    await file.write(start, 0, start.length, 0);
  } finally {
    await file.close();
  }
}
