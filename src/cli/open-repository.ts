import { dirname } from 'node:path';

import type { CoreConfiguration, RepositoryConfiguration } from '../config/configuration.ts';
import { resolveSecret } from '../config/secrets.ts';
import { HoldfastError } from '../errors.ts';
import { openRepository, type Repository, type RepositoryKeys } from '../repository/repository.ts';
import type { Identity } from '../seal/identity.ts';
import { openerFor, sealerFor } from '../seal/sealers.ts';
import type { Opener, SealKind } from '../seal/sealer.ts';
import { openStorage } from '../storage/open-storage.ts';
import type { Storage } from '../storage/storage.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/** What turns names of the configuration into open repositories. */
export interface RepositoryOpener {
  configuration: CoreConfiguration;
  environment: Environment;
  signal?: AbortSignal;
}

/** Those a backup or a WAL push must reach. At least one, or `config-invalid`. */
export function requiredRepositories(configuration: CoreConfiguration): RepositoryConfiguration[] {
  const required = configuration.repositories.filter((repository) => repository.required);
  if (required.length === 0) {
    throw new HoldfastError('config-invalid', `no repository in ${configuration.file} is required`, {
      hint: 'leave "required: false" out for at least one: nothing else could confirm a backup',
    });
  }
  return required;
}

/** The repository of a name, or `config-invalid` with the names there are. */
export function namedRepository(configuration: CoreConfiguration, name: string): RepositoryConfiguration {
  const found = configuration.repositories.find((repository) => repository.name === name);
  if (found !== undefined) return found;
  const names = configuration.repositories.map((repository) => repository.name).join(', ');
  throw new HoldfastError('config-invalid', `there is no repository "${name}"`, {
    hint: `${configuration.file} names: ${names}`,
  });
}

/** Opens one repository. Errors as `openRepository`, and `config-invalid` for a store this version cannot use. */
export async function openNamed(
  repository: RepositoryConfiguration,
  opener: RepositoryOpener,
): Promise<Repository> {
  const [storage, keys] = await Promise.all([storageOf(repository, opener), keysOf(opener)]);
  return openRepository(repository.name, storage, keys, opener.signal);
}

export async function storageOf(
  repository: RepositoryConfiguration,
  opener: Pick<RepositoryOpener, 'configuration' | 'environment'>,
): Promise<Storage> {
  const url = repository.url.startsWith('env:')
    ? await resolveSecret(repository.url, secretSources(opener))
    : repository.url;
  try {
    return openStorage(url);
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
    throw new HoldfastError(error.code, `repository ${repository.name}: ${error.message}`, {
      ...(error.hint !== undefined && { hint: error.hint }),
      context: { ...error.context, repository: repository.name },
      cause: error,
    });
  }
}

/** Identities are read when the first sealed object is opened, and once. */
export async function keysOf(
  opener: Pick<RepositoryOpener, 'configuration' | 'environment'>,
): Promise<RepositoryKeys> {
  let identities: Promise<Identity[]> | undefined;
  return {
    sealer: await sealerFor(opener.configuration.recipients),
    async opener(kind: SealKind): Promise<Opener> {
      if (kind === 'none') return openerFor(kind, []);
      identities ??= readIdentities(opener);
      return openerFor(kind, await identities);
    },
  };
}

async function readIdentities(
  opener: Pick<RepositoryOpener, 'configuration' | 'environment'>,
): Promise<Identity[]> {
  const { identity } = opener.configuration;
  if (identity === undefined) return [];
  const { parseIdentities, readIdentityFile } = await import('../seal/identity.ts');
  if (!identity.startsWith('env:')) return readIdentityFile(identity);
  return parseIdentities(await resolveSecret(identity, secretSources(opener)), identity);
}

export function secretSources(opener: Pick<RepositoryOpener, 'configuration' | 'environment'>): {
  environment: Environment;
  baseDirectory: string;
} {
  return { environment: opener.environment, baseDirectory: dirname(opener.configuration.file) };
}
