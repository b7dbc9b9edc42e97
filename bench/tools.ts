import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { bytesBelow, type Lab, type LabServer } from './lab.ts';
import type { Measured } from './measure.ts';

/** One of the two programs under comparison, with a repository of its own. */
export interface Tool {
  name: 'Holdfast' | 'pgBackRest';
  version: string;
  archiveCommand: string;
  /** Makes a new empty repository in place of the old one. */
  reset(): Promise<void>;
  /** Returns what it took, and how many bytes the program itself says it stored. */
  backup(kind: 'full' | 'incremental'): Promise<Measured & { reportedBytes: number }>;
  /** Restores the newest backup into the empty directory, without starting a server. */
  restore(directory: string): Promise<Measured>;
  walPush(path: string): Promise<Measured>;
  walFetch(name: string, path: string): Promise<Measured>;
  /** Size of all objects of the repository, and of those that are not WAL. */
  stored(): Promise<{ allBytes: number; backupBytes: number }>;
}

const CLUSTER = 'bench';

export interface Holdfast extends Tool {
  configFile: string;
  /** Runs any command with the lab's configuration. */
  command(...words: string[]): Promise<Measured>;
}

/** What makes pgBackRest archive in the background, several segments ahead of the archiver. */
export const PGBACKREST_ASYNC = { 'archive-async': 'y' };
/** What makes pgBackRest encrypt its repository. */
export const PGBACKREST_CIPHER = {
  'repo1-cipher-type': 'aes-256-cbc',
  'repo1-cipher-pass': 'a passphrase for benchmarks only',
};

/** Holdfast on a repository `name` below the scratch directory, with nothing but defaults; sealed for `recipient`. */
export async function holdfastTool(
  lab: Lab,
  server: LabServer,
  name: string,
  recipient?: string,
): Promise<Holdfast> {
  const configFile = join(lab.scratch, `${name}.yaml`);
  const repository = join(lab.scratch, name);
  const state = join(lab.scratch, `${name}-state`);
  const command = (...words: string[]): Promise<Measured> =>
    lab.run(lab.launcher, [...words, '--config', configFile]);
  const quick = (...words: string[]): Promise<Measured> =>
    lab.run(lab.launcher, [...words, '--config', configFile], {
      onlyTime: true,
      directory: server.dataDirectory,
    });
  const { stdout } = await lab.run(lab.launcher, ['--version']);
  return {
    name: 'Holdfast',
    version: stdout.trim().replace(/^holdfast /, ''),
    archiveCommand: `${lab.launcher} wal push %p --config ${configFile}`,
    configFile,
    command,
    async reset() {
      await lab.fresh(name);
      await lab.fresh(`${name}-state`);
      const first = [
        '--cluster',
        CLUSTER,
        '--server',
        server.url,
        '--repository',
        `local=file://${repository}`,
        ...(recipient === undefined ? [] : ['--recipient', recipient]),
      ];
      await lab.run('rm', ['-f', configFile]);
      // It ends with a check, which may find that the other tool's archive command is in force.
      await command('init', '--yes', ...first, '--state', state, '--quiet').catch((error: unknown) => {
        if (!(error instanceof Error && / ended with 3:/.test(error.message))) throw error;
      });
    },
    async backup() {
      const measured = await command('backup', 'base', CLUSTER, '--json', '--quiet');
      const last = measured.stdout.trimEnd().split('\n').at(-1) ?? '';
      const { backups } = JSON.parse(last) as { backups: { stored: { newBytes: number } }[] };
      return { ...measured, reportedBytes: backups[0]?.stored.newBytes ?? 0 };
    },
    async restore(directory) {
      const { stdout } = await command('list', CLUSTER, '--json');
      const { backups } = JSON.parse(stdout) as { backups: { id: string }[] };
      const newest =
        backups
          .map(({ id }) => id)
          .sort()
          .at(-1) ?? '';
      const target = ['--to', directory, '--backup', newest, '--target', 'immediate'];
      return command('restore', 'base', CLUSTER, ...target, '--quiet');
    },
    walPush: (path) => quick('wal', 'push', path),
    walFetch: (wal, path) => quick('wal', 'fetch', wal, path),
    async stored() {
      return {
        allBytes: await bytesBelow(repository),
        backupBytes: await bytesBelow(repository, (path) => /^clusters\/[^/]+\/[^/]+\/wal/.test(path)),
      };
    },
  };
}

/** pgBackRest with two processes and zstd level 3; everything else as it comes, or as `more` says. */
export async function pgbackrestTool(
  lab: Lab,
  server: LabServer,
  name: string,
  more: Readonly<Record<string, string>> = {},
): Promise<Tool> {
  const repository = join(lab.scratch, name);
  const configFile = join(lab.scratch, `${name}.conf`);
  const settings = {
    'repo1-path': repository,
    'repo1-retention-full': '99',
    'lock-path': join(lab.scratch, `${name}-lock`),
    'spool-path': join(lab.scratch, `${name}-spool`),
    'log-level-file': 'off',
    'log-level-console': 'error',
    'compress-type': 'zst',
    'compress-level': '3',
    'process-max': '2',
    'start-fast': 'y',
    ...more,
  };
  const cluster = {
    'pg1-path': server.dataDirectory,
    'pg1-socket-path': server.instance.socketDirectory,
    'pg1-port': String(server.instance.port),
    'pg1-user': 'postgres',
  };
  await writeFile(configFile, `[global]\n${lines(settings)}\n[${CLUSTER}]\n${lines(cluster)}`);
  const common = [`--config=${configFile}`, `--stanza=${CLUSTER}`];
  const run = (...words: string[]): Promise<Measured> => lab.run('pgbackrest', [...common, ...words]);
  const quick = (...words: string[]): Promise<Measured> =>
    lab.run('pgbackrest', [...common, ...words], { onlyTime: true, directory: server.dataDirectory });
  const { stdout } = await lab.run('pgbackrest', ['version']);
  return {
    name: 'pgBackRest',
    version: stdout.trim().replace(/^pgBackRest /, ''),
    archiveCommand: `pgbackrest ${common.join(' ')} archive-push %p`,
    async reset() {
      for (const suffix of ['', '-lock', '-spool']) await lab.fresh(name + suffix);
      await run('stanza-create');
    },
    async backup(kind) {
      const measured = await run(`--type=${kind === 'full' ? 'full' : 'incr'}`, 'backup');
      const [stanza] = JSON.parse((await run('--output=json', 'info')).stdout) as {
        backup: { info: { repository: { delta: number } } }[];
      }[];
      return { ...measured, reportedBytes: stanza?.backup.at(-1)?.info.repository.delta ?? 0 };
    },
    restore: (directory) => run(`--pg1-path=${directory}`, '--type=immediate', 'restore'),
    walPush: (path) => quick('archive-push', path),
    walFetch: (wal, path) => quick('archive-get', wal, path),
    async stored() {
      return {
        allBytes: await bytesBelow(repository),
        backupBytes: await bytesBelow(join(repository, 'backup')),
      };
    },
  };
}

function lines(settings: Record<string, string>): string {
  return Object.entries(settings)
    .map(([key, value]) => `${key}=${value}\n`)
    .join('');
}
