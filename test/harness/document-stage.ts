/** A small world in which the commands of documents can be typed: a server, a repository, copies restored from it. */
import { type ChildProcess, spawn, type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rename, rm } from 'node:fs/promises';
import { userInfo } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { launcherFor } from '../../src/cli/demo/stage-program.ts';
import { listBinaries } from '../../src/postgres/binaries.ts';
import { type Instance, startInstance, stopInstance } from '../../src/postgres/instance.ts';
import { type ServerUser, serverUser } from '../../src/postgres/server-user.ts';
import { createCluster, giveToServer, type TestCluster } from './cluster.ts';
import { freePort } from './free-port.ts';

/** What happened on the server, and so what documents can ask for. */
export interface Story {
  /** Just before a table was dropped. */
  time: string;
  /** Holds the commit of the drop. */
  segment: string;
}

export class DocumentStage implements AsyncDisposable {
  readonly cluster: TestCluster;
  readonly user: ServerUser | undefined;
  readonly port: number;
  /** Where `holdfast.yaml` is written, and where commands are typed. */
  readonly etc: string;
  /** Socket directory of the copy started last. */
  copySockets = '';
  story: Story | undefined;
  readonly #launcher: string;
  /** The server that took over from the cluster's own. */
  #successor: { instance: Instance; dataDirectory: string } | undefined;
  #tookUpSettings = false;
  /** Streams the WAL, once a document has said so. */
  #receiver: ChildProcess | undefined;
  /** The newest segment that is known to be in the repository. */
  #stored = '';

  private constructor(cluster: TestCluster, user: ServerUser | undefined, launcher: string, port: number) {
    this.cluster = cluster;
    this.user = user;
    this.#launcher = launcher;
    this.port = port;
    this.etc = join(cluster.scratch, 'etc of a host');
    // Servers outlive the process that started them.
    process.once('exit', () => {
      this.#receiver?.kill('SIGKILL');
      for (const name of ['restored', 'successor']) killServer(join(cluster.scratch, name));
    });
  }

  static async create(): Promise<DocumentStage> {
    // Client programs come with the machine's PostgreSQL only, and must be of the server's version.
    const machine = (await listBinaries()).find(({ origin }) => origin === 'machine');
    const cluster = await createCluster(machine && { major: machine.major });
    const user = await serverUser();
    const launcher = await launcherFor(user, cluster.scratch);
    const stage = new DocumentStage(cluster, user, launcher, await freePort());
    for (const name of ['etc of a host', 'backups', 'tmp', 'fast']) await mkdir(join(cluster.scratch, name));
    await giveToServer(cluster.scratch);
    return stage;
  }

  get dataDirectory(): string {
    return this.#successor?.dataDirectory ?? this.cluster.dataDir;
  }

  get restored(): string {
    return join(this.cluster.scratch, 'restored');
  }

  get userName(): string {
    return this.user?.name ?? userInfo().username;
  }

  /** Runs the launcher as PostgreSQL's user, or as ourselves. */
  holdfast(words: readonly string[], options: { directory?: string; asOurselves?: boolean } = {}): Ended {
    const env = { ...this.#environment(), HOLDFAST_SOURCE: '1' };
    return this.#spawn(this.#launcher, words, { ...options, env });
  }

  /** Runs one of PostgreSQL's programs; undefined where this machine has none. */
  program(name: string, words: readonly string[]): Ended | undefined {
    const path = join(this.cluster.binaries.directory, name);
    return existsSync(path) ? this.#spawn(path, words, { env: this.#environment() }) : undefined;
  }

  #environment(): Record<string, string | undefined> {
    return { PATH: process.env['PATH'], TMPDIR: process.env['TMPDIR'], HOME: this.cluster.scratch };
  }

  #spawn(
    path: string,
    words: readonly string[],
    options: { directory?: string; asOurselves?: boolean; env: Record<string, string | undefined> },
  ): Ended {
    const { directory = this.etc, asOurselves = false, env } = options;
    const identity = this.user === undefined || asOurselves ? {} : { uid: this.user.uid, gid: this.user.gid };
    const ended: SpawnSyncReturns<string> = spawnSync(path, words, {
      cwd: directory,
      env,
      encoding: 'utf8',
      timeout: 60_000,
      // A server that pg_ctl starts keeps what it inherits.
      stdio: basename(path) === 'pg_ctl' ? 'ignore' : 'pipe',
      ...identity,
    });
    return { status: ended.status, stdout: ended.stdout ?? '', stderr: ended.stderr ?? '' };
  }

  /** Does what `init` printed: grants always, settings the first time. */
  async takeUpSetup(printed: string): Promise<void> {
    const statements = printed
      .split('\n')
      .filter((line) => /^ {4}(?:CREATE|GRANT|ALTER|SELECT) /.test(line))
      .map((line) => line.trim());
    for (const statement of statements) {
      const isSetting = statement.startsWith('ALTER SYSTEM');
      if (!isSetting || !this.#tookUpSettings) await this.cluster.sql(statement);
    }
    if (!statements.some((statement) => statement.startsWith('ALTER SYSTEM')) || this.#tookUpSettings) return;
    this.#tookUpSettings = true;
    if (!statements.some((statement) => statement.includes('archive_mode'))) return;
    await this.restart();
    await this.archive();
  }

  /** Keeps `wal receive` running beside everything that follows, in the place of one that runs. */
  async receive(words: readonly string[]): Promise<void> {
    await this.endReceiver();
    const identity = this.user === undefined ? {} : { uid: this.user.uid, gid: this.user.gid };
    const env = { ...this.#environment(), HOLDFAST_SOURCE: '1' };
    const started = spawn(this.#launcher, words, {
      cwd: this.etc,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...identity,
    });
    this.#receiver = started;
    let said = '';
    for (const stream of [started.stdout, started.stderr])
      stream.on('data', (text) => (said += String(text)));
    for (const deadline = performance.now() + 20_000; !/^streaming from/m.test(said); await sleep(20)) {
      if (performance.now() > deadline || started.exitCode !== null)
        throw new Error(`nothing streams: ${said}`);
    }
  }

  /** As a service manager would. */
  async restart(): Promise<void> {
    if (this.#successor === undefined) {
      await this.cluster.stop();
      await this.cluster.start();
      return;
    }
    await this.#successor.instance.stop();
    await this.#startSuccessor(this.#successor.dataDirectory);
  }

  /** Puts the restored copy where the cluster was, which never starts again. */
  async takeOver(): Promise<void> {
    await this.cluster.stop('immediate');
    const dataDirectory = join(this.cluster.scratch, 'successor');
    await rename(this.restored, dataDirectory);
    await this.#startSuccessor(dataDirectory);
    // What happened before is part of two histories now.
    this.story = undefined;
  }

  async #startSuccessor(dataDirectory: string): Promise<void> {
    const { binaries, scratch, socketDir } = this.cluster;
    const logFile = join(scratch, 'successor.log');
    const start = { binaries, dataDirectory, user: this.user, socketDirectory: socketDir, logFile };
    this.#successor = { instance: await startInstance(start), dataDirectory };
  }

  /** Drops a table, once in the life of a server, when there is a backup to go back to. */
  async tell(): Promise<Story> {
    if (this.story !== undefined) return this.story;
    const { cluster } = this;
    await cluster.sql('CREATE TABLE IF NOT EXISTS orders AS SELECT i FROM generate_series(1, 500) AS i');
    await sleep(5);
    const [before] = await cluster.sql<{ time: string }>('SELECT clock_timestamp()::text AS time');
    await sleep(5);
    await cluster.sql('DROP TABLE orders');
    await cluster.sql(`SELECT pg_create_restore_point('before_deploy')`);
    const segment = await this.archive();
    this.story = { time: before?.time ?? '', segment };
    return this.story;
  }

  /** Ends the current segment and waits until it is archived. */
  async archive(): Promise<string> {
    const [current] = await this.cluster.sql<{ name: string }>(
      `SELECT pg_walfile_name(pg_current_wal_lsn()) AS name`,
    );
    await this.cluster.sql(
      'CREATE TABLE IF NOT EXISTS switched (); DROP TABLE switched; SELECT pg_switch_wal()',
    );
    const name = current?.name ?? '';
    const header = `${name.slice(0, 8)}/${name.slice(8, 16)}/${name}.json`;
    for (const deadline = performance.now() + 20_000; this.#receiver !== undefined; await sleep(30)) {
      if (this.#listRepository().some((path) => path.endsWith(`/wal/${header}`))) {
        this.#stored = name;
        return name;
      }
      if (performance.now() > deadline) throw new Error(`${name} is not streamed`);
    }
    for (const deadline = performance.now() + 20_000; ;) {
      const [row] = await this.cluster.sql<{ done: boolean }>(
        `SELECT coalesce(last_archived_wal >= '${current?.name ?? ''}', false) AS done FROM pg_stat_archiver`,
      );
      if (row?.done === true) return current?.name ?? '';
      if (performance.now() > deadline) {
        const log = readFileSync(join(this.cluster.scratch, 'server.log'), 'utf8').slice(-2000);
        throw new Error(`nothing is archived: ${log}`);
      }
      await sleep(30);
    }
  }

  /** Nothing to do where none runs. */
  async endReceiver(): Promise<void> {
    if (this.#receiver?.exitCode !== null) return;
    const ended = once(this.#receiver, 'exit');
    this.#receiver.kill('SIGTERM');
    await ended;
    this.#receiver = undefined;
  }

  #listRepository(): string[] {
    const root = join(this.cluster.scratch, 'backups', 'holdfast', 'clusters');
    return readdirSync(root, { recursive: true, encoding: 'utf8' });
  }

  /** A segment that is archived and not yet recycled; '' where there is none. */
  segmentOnDisk(): string {
    const wal = join(this.dataDirectory, 'pg_wal');
    if (this.#receiver !== undefined) {
      const known = readdirSync(wal).filter((name) => /^[0-9A-F]{24}$/.test(name) && name <= this.#stored);
      return known.sort().at(-1) ?? '';
    }
    const names = readdirSync(join(wal, 'archive_status'))
      .filter((name) => /^[0-9A-F]{24}\.done$/.test(name))
      .map((name) => name.slice(0, 24));
    return names.sort().findLast((name) => existsSync(join(wal, name))) ?? '';
  }

  newestBackup(): string {
    const { stdout, stderr } = this.holdfast(['list', '--json']);
    const { backups } = JSON.parse(stdout) as { backups: { id: string; stoppedAt: string }[] };
    const newest = backups.sort((a, b) => (a.stoppedAt < b.stoppedAt ? 1 : -1))[0];
    if (newest === undefined) throw new Error(`there is no backup: ${stderr}`);
    return newest.id;
  }

  /** Stops the copy that the command before may have left running, and removes it unless it is to be used again. */
  async clearRestored(keep: boolean): Promise<void> {
    await stopInstance(this.restored, 'immediate').catch(() => undefined);
    await this.forgetSockets();
    if (!keep) await rm(this.restored, { recursive: true, force: true });
  }

  async forgetSockets(): Promise<void> {
    if (this.copySockets !== '') await rm(this.copySockets, { recursive: true, force: true });
    this.copySockets = '';
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.clearRestored(false);
    await this.endReceiver();
    await this.#successor?.instance.stop('immediate');
    await this.cluster[Symbol.asyncDispose]();
  }
}

export interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

function killServer(dataDirectory: string): void {
  try {
    process.kill(Number.parseInt(readFileSync(join(dataDirectory, 'postmaster.pid'), 'utf8'), 10), 'SIGQUIT');
  } catch {
    // There is none, or it ended before us.
  }
}

/** The commands `npm run` knows, besides those it brings itself. */
export async function npmScripts(root: string): Promise<string[]> {
  const text = await readFile(join(root, 'package.json'), 'utf8');
  return Object.keys((JSON.parse(text) as { scripts: Record<string, string> }).scripts);
}
