/** Archive recovery by real servers through `wal fetch`, again and again from one cold copy of a cluster. */
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';

import { readControlData } from '../../src/postgres/control-data.ts';
import { type Instance, startInstance } from '../../src/postgres/instance.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import { pushWal } from '../../src/wal/push.ts';
import { createCluster, giveToServer, scratchDirectory, type TestCluster } from './cluster.ts';
import type { WalRepository } from './wal-repository.ts';

export interface RecoveryStage extends AsyncDisposable {
  readonly cluster: TestCluster;
  readonly identity: ClusterIdentity;
  /** Commits rows with these numbers, each in a segment of its own; returns the LSN behind the last commit. */
  fill(from: number, to: number): Promise<string>;
  /** Sends every finished segment and history file to the repository. */
  archive(wal: WalRepository): Promise<void>;
  /** A new copy of the cluster as it was at first, ready to recover. */
  copy(settings: Record<string, string>): Promise<RecoveringCopy>;
}

export interface RecoveringCopy extends AsyncDisposable {
  readonly dataDirectory: string;
  readonly spool: string;
  /** What Node was started for: the words of each `wal …` command, without options. */
  started(): Promise<string[]>;
  log(): Promise<string>;
  /** Resolves when it accepts connections. */
  start(): Promise<Instance>;
  /** Recovers to the end: the rows it then has, or `stopped` where it refused to open. */
  recover(): Promise<number[] | 'stopped'>;
  /** Processes that fetch ahead for it, by number; the first is the launcher. */
  prefetchers(): Promise<number[]>;
}

export async function createRecoveryStage(options: {
  segmentSizeMb: 1 | 16;
  major?: number;
}): Promise<RecoveryStage> {
  const cluster = await createCluster({
    ...options,
    settings: { wal_keep_size: '4GB', wal_init_zero: 'off', autovacuum: 'off' },
  });
  await cluster.sql('create table rows(id int); insert into rows values (0)');
  await cluster.stop('fast');
  const base = join(await scratchDirectory(), 'base');
  await cp(cluster.dataDir, base, { recursive: true });
  await cluster.start();
  const control = readControlData(await readFile(join(cluster.dataDir, 'global/pg_control')));
  const pushed = new Set<string>();
  return {
    cluster,
    identity: { cluster: 'app', systemIdentifier: control.systemIdentifier },
    async fill(from, to) {
      const client = await cluster.connect();
      let end = '';
      for (let id = from; id <= to; id += 1) {
        await client.query(`insert into rows values (${id})`);
        const { rows } = await client.query<{ lsn: string }>('select pg_current_wal_insert_lsn() as lsn');
        end = rows[0]?.lsn ?? '';
        await client.query('select pg_switch_wal()');
      }
      await client.end();
      return end;
    },
    async archive(wal) {
      const [row] = await cluster.sql<{ name: string }>(
        // The end of a segment counts as part of it, so something must lie behind.
        "select pg_walfile_name(pg_logical_emit_message(true, 'test', 'x')) as name",
      );
      const names = await readdir(join(cluster.dataDir, 'pg_wal'));
      const finished = (name: string): boolean => /^[0-9A-F]{24}$/.test(name) && name < (row?.name ?? '');
      for (const name of names.filter((one) => one.endsWith('.history') || finished(one)).sort()) {
        if (pushed.has(name)) continue;
        await pushWal({
          path: join(cluster.dataDir, 'pg_wal', name),
          repositories: [wal.repository],
          cluster: { configured: ['app'] },
          host: 'test',
          now: () => new Date(),
        });
        pushed.add(name);
      }
      // This process wrote as its own user; the program reads as the server's.
      await giveToServer(wal.directory);
    },
    copy: async (settings) => copyOf(cluster, base, settings),
    [Symbol.asyncDispose]: () => cluster[Symbol.asyncDispose](),
  };
}

async function copyOf(
  cluster: TestCluster,
  base: string,
  settings: Record<string, string>,
): Promise<RecoveringCopy> {
  const scratch = await scratchDirectory();
  const dataDirectory = join(scratch, 'data');
  const [logFile, countFile] = [join(scratch, 'server.log'), join(scratch, 'started')];
  await cp(base, dataDirectory, { recursive: true });
  await rm(join(dataDirectory, 'pg_wal'), { recursive: true });
  await mkdir(join(dataDirectory, 'pg_wal', 'archive_status'), { recursive: true });
  await writeFile(join(dataDirectory, 'recovery.signal'), '');
  await writeFile(
    join(scratch, 'count.mjs'),
    `import { appendFileSync } from 'node:fs';
const words = process.argv.slice(2).filter((word) => !word.startsWith('-')).slice(0, 3);
appendFileSync(${JSON.stringify(countFile)}, words.join(' ') + '\\n');\n`,
  );
  await giveToServer(scratch);
  let instance: Instance | undefined;
  const copy: RecoveringCopy = {
    dataDirectory,
    spool: join(dataDirectory, 'pg_wal', 'holdfast-prefetch'),
    started: async () => (await readFile(countFile, 'utf8').catch(() => '')).split('\n').filter(Boolean),
    log: async () => readFile(logFile, 'utf8').catch(() => ''),
    async start() {
      instance = await startInstance({
        binaries: cluster.binaries,
        dataDirectory,
        user: await serverUser(),
        settings: { archive_mode: 'off', fsync: 'off', ...settings },
        env: { NODE_OPTIONS: `--import=${join(scratch, 'count.mjs')}` },
        logFile,
        deadlineMs: 60_000,
      });
      return instance;
    },
    async recover() {
      try {
        await using server = await copy.start();
        const client = new Client({ connectionString: server.url({ user: 'postgres' }) });
        // A server that stops takes its connections with it.
        client.on('error', () => undefined);
        await client.connect();
        for (;;) {
          const { rows } = await client.query<{ recovering: boolean; ids: number[] }>(
            'select pg_is_in_recovery() as recovering, (select array_agg(id order by id) from rows) as ids',
          );
          if (rows[0]?.recovering === false) {
            await client.end();
            return rows[0].ids;
          }
          await sleep(20);
        }
      } catch (error) {
        const control = readControlData(await readFile(join(dataDirectory, 'global/pg_control')));
        // It never opened: not even begun, or in the middle, and still on the timeline it came from.
        const isClosed = control.state === 'shut down' || control.state === 'in archive recovery';
        if (!isClosed || control.timeline !== 1) throw error;
        return 'stopped';
      }
    },
    async prefetchers() {
      const found: number[] = [];
      for (const entry of await readdir('/proc')) {
        if (!/^\d+$/.test(entry)) continue;
        const words = await readFile(`/proc/${entry}/cmdline`, 'utf8').catch(() => '');
        const environment = await readFile(`/proc/${entry}/environ`, 'utf8').catch(() => '');
        if (words.includes('\0wal\0prefetch\0') && environment.includes(scratch)) found.push(Number(entry));
      }
      return found.sort((a, b) => a - b);
    },
    async [Symbol.asyncDispose]() {
      await instance?.stop('immediate').catch(() => undefined);
      await rm(scratch, { recursive: true, force: true, maxRetries: 5 });
    },
  };
  return copy;
}
