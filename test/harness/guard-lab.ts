/** A real cluster, a repository on this disk, and the program as it is typed, with nothing else in between. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client } from 'pg';

import { stopInstance } from '../../src/postgres/instance.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { parseSystemIdentifier } from '../../src/postgres/system-identifier.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../../src/repository/wal-file.ts';
import { listWal, walCoverage } from '../../src/repository/wal-listing.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openTestRepository } from '../wal-lab.ts';
import { giveToServer, scratchDirectory, type TestCluster } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';
import { archivedFiles } from './wal-repository.ts';

const MIB = 2 ** 20;

export interface Ended {
  status: number;
  code: string | undefined;
  message: string;
  hint: string;
  out: string;
  /** The last line, where that is JSON. */
  json: Record<string, unknown>;
}

export interface GuardLab extends AsyncDisposable {
  readonly directory: string;
  readonly root: string;
  /** The launcher's cache folder: what it was told of pushes. */
  readonly cache: string;
  readonly stateDirectory: string;
  readonly repository: Repository;
  /** For `archive_command`. */
  readonly push: string;
  identityOf(cluster: TestCluster): Promise<ClusterIdentity>;
  /** Says which servers there are; before that there is no configuration. */
  configure(cluster: TestCluster, mode?: 'push' | 'stream'): Promise<void>;
  /** The program as the server's user runs it, with `--json`. */
  holdfast(...words: string[]): Promise<Ended>;
  /** A new place to restore to. */
  place(): string;
  /** Restores to the end with the program, starts the copy, asks it, stops it. */
  restored<Row>(to: string, sql: string, ...words: string[]): Promise<Row[]>;
}

export async function createGuardLab(): Promise<GuardLab> {
  const directory = await scratchDirectory();
  const root = join(directory, 'repository');
  const stateDirectory = join(directory, 'state');
  const cache = join(directory, 'cache');
  for (const path of [root, stateDirectory, cache]) await mkdir(path);
  const repository = await openTestRepository(createLocalStorage(root));
  const configFile = join(directory, 'holdfast.yaml');
  const launcher = await reachableLauncher();
  let places = 0;
  const lab: GuardLab = {
    directory,
    root,
    cache,
    stateDirectory,
    repository,
    push: `HOLDFAST_SOURCE=1 XDG_CACHE_HOME=${cache} '${launcher}' wal push %p --config ${configFile}`,
    async identityOf(cluster) {
      const [row] = await cluster.sql<{ id: string }>(
        'SELECT system_identifier::text AS id FROM pg_control_system()',
      );
      return { cluster: 'app', systemIdentifier: parseSystemIdentifier(row?.id ?? '') };
    },
    async configure(cluster, mode = 'push') {
      await writeFile(
        configFile,
        `clusters:
  app:
    servers: ["${cluster.url}"]
    wal: { mode: ${mode}, tailInterval: 200ms }
repositories:
  local: { url: "file://${root}" }
state: ${stateDirectory}
`,
      );
      await giveToServer(directory);
    },
    async holdfast(...words) {
      // As the server's user, who pushes into the same repository.
      const user = await serverUser();
      const child = spawn(launcher, [...words, '--json', '--config', configFile], {
        stdio: ['ignore', 'pipe', 'pipe'],
        cwd: directory,
        env: { PATH: process.env['PATH'], HOME: directory, HOLDFAST_SOURCE: '1', XDG_CACHE_HOME: cache },
        ...(user && { uid: user.uid, gid: user.gid }),
      });
      const texts = { stdout: '', stderr: '' };
      for (const name of ['stdout', 'stderr'] as const) {
        child[name].setEncoding('utf8').on('data', (text: string) => {
          texts[name] += text;
        });
      }
      const status = await new Promise<number>((resolve) => {
        child.once('close', (code) => resolve(code ?? -1));
      });
      const { error } = lastObject(texts.stderr) as {
        error?: { code: string; message: string; hint: string };
      };
      return {
        status,
        code: error?.code,
        message: error?.message ?? texts.stderr,
        hint: error?.hint ?? '',
        out: texts.stdout,
        json: lastObject(texts.stdout),
      };
    },
    place: () => join(directory, `restored-${(places += 1)}`),
    async restored<Row>(to: string, sql: string, ...words: string[]) {
      const ended = await lab.holdfast('restore', 'base', 'app', '--to', to, '--start', ...words);
      if (ended.status !== 0) throw new Error(`the restore ended with ${ended.status}: ${ended.message}`);
      const { url, socketDirectory } = ended.json['server'] as { url: string; socketDirectory?: string };
      const client = new Client({ connectionString: url });
      client.on('error', () => undefined);
      await client.connect();
      try {
        return (await client.query(sql)).rows as Row[];
      } finally {
        await client.end();
        await stopInstance(to, 'immediate');
        if (socketDirectory !== undefined) await rm(socketDirectory, { recursive: true, force: true });
      }
    },
    async [Symbol.asyncDispose]() {
      await rm(directory, { recursive: true, force: true });
    },
  };
  return lab;
}

/** The last line of a text, where that is JSON. */
function lastObject(text: string): Record<string, unknown> {
  const last = text.trimEnd().split('\n').at(-1) ?? '';
  return last.startsWith('{') ? (JSON.parse(last) as Record<string, unknown>) : {};
}

/** Fills as many segments, each with next to nothing. */
export async function write(cluster: TestCluster, segments: number): Promise<void> {
  for (let count = 0; count < segments; count += 1) {
    await cluster.sql("SELECT pg_logical_emit_message(true, 'x', 'x'); SELECT pg_switch_wal()");
  }
}

/** Every file the server took for archived is stored as it is in `pg_wal`, and the timeline has no hole. */
export async function assertArchived(cluster: TestCluster, lab: GuardLab, size = MIB): Promise<number> {
  const identity = await lab.identityOf(cluster);
  const names = await archivedFiles(cluster);
  for (const name of names) {
    const header = await readWalHeader(lab.repository, identity, name);
    assert.ok(header, `${name} was acknowledged and is not there`);
    const bytes = await readWholeWalFile(lab.repository, header, 64 * MIB);
    assert.ok(bytes.equals(await readFile(join(cluster.dataDir, 'pg_wal', name))), `${name} is different`);
  }
  const ranges = await Array.fromAsync(walCoverage(listWal(lab.repository, identity), size));
  const timelines = ranges.map(({ timeline }) => timeline);
  assert.equal(new Set(timelines).size, timelines.length, 'a timeline has a hole');
  return names.length;
}
