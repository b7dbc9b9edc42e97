import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

import { HoldfastError } from '../../errors.ts';
import { createIdentityFile, readIdentityFile } from '../../seal/identity.ts';
import { listOption, textOption, type Invocation } from '../command.ts';
import type { InitAnswers } from '../../config/configuration-text.ts';

/** Options of `init` that describe a configuration, and mean nothing where there is one already. */
export const DESCRIBING_OPTIONS = [
  'cluster',
  'server',
  'wal',
  'repository',
  'recipient',
  'identity',
  'encryption',
  'state',
] as const;

/** Reads the flags of `init`. Makes the identity file where one is named that is not there yet. */
export async function answersOf(
  options: Invocation['options'],
  directory: string,
  now: Date,
): Promise<Omit<InitAnswers, 'wal'> & { madeIdentity?: string }> {
  const servers = listOption(options, 'server');
  if (servers.length === 0) {
    throw new HoldfastError(
      'usage-invalid',
      'there is no configuration yet, and no --server to write one for',
      {
        hint: 'holdfast init --cluster app --server postgres://holdfast@localhost/postgres',
      },
    );
  }
  const state = textOption(options, 'state');
  return {
    cluster: textOption(options, 'cluster') ?? 'main',
    servers,
    repositories: repositoriesOf(listOption(options, 'repository'), directory),
    ...(await encryptionOf(options, directory, now)),
    ...(state !== undefined && { state: resolve(directory, state) }),
  };
}

/** `NAME=URL`, `URL` or a path; the first without a name is `local`. */
export function repositoriesOf(given: readonly string[], directory: string): { name: string; url: string }[] {
  if (given.length === 0) return [{ name: 'local', url: pathToFileURL(defaultRepository()).href }];
  const repositories = given.map((text) => {
    const match = /^([A-Za-z0-9][A-Za-z0-9_-]*)=(.+)$/.exec(text);
    const [name, place] = match === null ? ['local', text] : [match[1] ?? '', match[2] ?? ''];
    const isUrl = /^([a-z][a-z0-9+.-]*:|env:)/.test(place);
    return { name, url: isUrl ? place : pathToFileURL(resolve(directory, place)).href };
  });
  const twice = repositories.find(
    ({ name }, at) => repositories.findIndex((one) => one.name === name) !== at,
  );
  if (twice !== undefined) {
    throw new HoldfastError('option-conflict', `two repositories are called "${twice.name}"`, {
      hint: 'give each a name: --repository local=/var/backups/holdfast --repository usb=/mnt/usb/holdfast',
    });
  }
  return repositories;
}

function defaultRepository(): string {
  return process.getuid?.() === 0 ? '/var/backups/holdfast' : join(homedir(), 'holdfast', 'repository');
}

async function encryptionOf(
  options: Invocation['options'],
  directory: string,
  now: Date,
): Promise<{ recipients: string[]; identity?: string; madeIdentity?: string }> {
  const recipients = [...listOption(options, 'recipient')];
  const named = textOption(options, 'identity');
  if (textOption(options, 'encryption') === 'none') {
    if (recipients.length > 0 || named !== undefined) {
      throw new HoldfastError('option-conflict', '--encryption none and a key contradict each other', {
        hint: 'give either --encryption none, or --recipient and --identity',
      });
    }
    return { recipients };
  }
  if (named === undefined) return { recipients };
  const identity = resolve(directory, named);
  if (!existsSync(identity)) {
    const { recipient } = await createIdentityFile(identity, now);
    return { recipients: [...recipients, recipient], identity, madeIdentity: identity };
  }
  const own = (await readIdentityFile(identity)).flatMap((one) =>
    one.kind === 'x25519' ? [one.recipient] : [],
  );
  if (recipients.length === 0 && own.length === 0) {
    throw new HoldfastError('key-missing', `${identity} names no public key to seal for`, {
      hint: 'name one with --recipient age1…',
    });
  }
  // Whoever can open with this identity must be among those it is sealed for, or nothing here could ever be restored.
  return { recipients: [...new Set([...recipients, ...own])], identity };
}
