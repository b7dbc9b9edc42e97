/** A real cluster, a repository on this disk, and the program as it is typed, with nothing else in between. */
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client } from 'pg';

import { stopInstance } from '../../src/postgres/instance.ts';
import { parseSystemIdentifier } from '../../src/postgres/system-identifier.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openTestRepository } from '../wal-lab.ts';
import { giveToServer, scratchDirectory, type TestCluster } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';

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
  const sources = join(launcher, '..', '..', 'src');
  const { runProgram } = (await import(join(sources, 'cli', 'program.ts'))) as Pick<
    typeof import('../../src/cli/program.ts'),
    'runProgram'
  >;
  const { HoldfastError } = (await import(join(sources, 'errors.ts'))) as Pick<
    typeof import('../../src/errors.ts'),
    'HoldfastError'
  >;
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
      let out = '';
      const sink = (write: (text: string) => void) => ({ write, isTerminal: false, columns: () => 80 });
      const error: unknown = await runProgram([...words, '--config', configFile], {
        stdout: sink((text) => {
          out += text;
        }),
        stderr: sink(() => undefined),
        environment: process.env,
        directory,
        signal: new AbortController().signal,
      }).then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      // This process may write as another user than the server pushes as.
      await giveToServer(directory);
      const last = out.trimEnd().split('\n').at(-1) ?? '';
      const json = last.startsWith('{') ? (JSON.parse(last) as Record<string, unknown>) : {};
      if (error === undefined) return { status: 0, code: undefined, message: '', hint: '', out, json };
      if (!(error instanceof HoldfastError)) throw error;
      const { exitCode, code, message, hint = '' } = error;
      return { status: exitCode, code, message, hint, out, json };
    },
    place: () => join(directory, `restored-${(places += 1)}`),
    async restored<Row>(to: string, sql: string, ...words: string[]) {
      const ended = await lab.holdfast('restore', 'base', 'app', '--to', to, '--start', '--json', ...words);
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
