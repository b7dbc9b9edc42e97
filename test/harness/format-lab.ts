/** The reader in Python that was written from `docs/repository-format.md` alone, and repositories for it. */
import { spawn } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { initializeRepository } from '../../src/repository/repository.ts';
import { createIdentityFile, type Identity, readIdentityFile } from '../../src/seal/identity.ts';
import { openerFor, sealerFor } from '../../src/seal/sealers.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { type BackupLab, createBackupLab } from './backup.ts';
import { scratchDirectory } from './cluster.ts';

const READER = fileURLToPath(new URL('../vectors/read_repository.py', import.meta.url));

export interface Run {
  status: number | null;
  stdout: string;
  stderr: string;
}

export function python(...args: string[]): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn('python3', ['-B', READER, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 240_000,
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
}

/** A backup lab whose repository is a directory, and the reader on it. */
export interface FormatLab extends BackupLab {
  readonly directory: string;
  readonly root: string;
  pathOf(key: string): string;
  read(command: string, ...args: string[]): Promise<Run>;
}

export async function createFormatLab(kind: 'none' | 'age'): Promise<FormatLab> {
  const directory = await scratchDirectory();
  const root = join(directory, 'repository');
  await mkdir(root);
  const recipients: string[] = [];
  const options: string[] = [];
  let identities: Identity[] = [];
  if (kind === 'age') {
    const path = join(directory, 'identity.txt');
    recipients.push((await createIdentityFile(path, new Date())).recipient);
    identities = await readIdentityFile(path);
    options.push('--identity', path);
  }
  const keys = {
    sealer: await sealerFor(recipients),
    opener: (sealed: 'none' | 'age' | 'gpg') => openerFor(sealed, identities),
  };
  const { repository } = await initializeRepository('local', createLocalStorage(root), keys, new Date());
  const lab = await createBackupLab({
    repository,
    segmentSizeMb: 1,
    major: 16,
    settings: { allow_in_place_tablespaces: 'on' },
  });
  const { cluster, systemIdentifier } = lab.identity;
  return {
    ...lab,
    directory,
    root,
    pathOf: (key) => join(root, key),
    read: (command, ...args) =>
      python(...options, root, command, ...(command === 'list' ? [] : [cluster, systemIdentifier]), ...args),
    async [Symbol.asyncDispose]() {
      await lab[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** Puts other bytes in an object's place, or nothing, for as long as `work` takes. */
export async function withChange(
  path: string,
  bytes: Buffer | undefined,
  work: () => Promise<void>,
): Promise<void> {
  const original = await readFile(path);
  await (bytes === undefined ? rm(path) : writeFile(path, bytes));
  try {
    await work();
  } finally {
    await writeFile(path, original);
  }
}
