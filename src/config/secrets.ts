import { readFile } from 'node:fs/promises';
import { isAbsolute, resolve } from 'node:path';
import { HoldfastError, errorText } from '../errors.ts';

export interface SecretSources {
  environment: Readonly<Record<string, string | undefined>>;
  /** What a relative `file:` path starts from: the configuration's own folder. */
  baseDirectory: string;
}

/**
 * The value behind `env:NAME` or `file:/path` (one trailing newline removed); any other text is its own value. Done as
 * late as possible, so that a command which does not need a secret never holds it. Throws `config-invalid`, naming the
 * reference and never the value.
 */
export async function resolveSecret(reference: string, sources: SecretSources): Promise<string> {
  if (reference.startsWith('env:')) {
    const name = reference.slice('env:'.length);
    const value = sources.environment[name];
    if (value === undefined || value === '') {
      throw new HoldfastError('config-invalid', `the environment variable ${name} is not set`, {
        hint: `set ${name} for the user that runs holdfast, or use file:/path`,
      });
    }
    return value;
  }
  // A URL (file:///var/backups) is a place, not a reference to a secret.
  if (reference.startsWith('file:') && !reference.startsWith('file://')) {
    const path = absoluteFrom(sources.baseDirectory, reference.slice('file:'.length));
    try {
      return (await readFile(path, 'utf8')).replace(/\r?\n$/, '');
    } catch (error) {
      throw new HoldfastError('config-invalid', `cannot read the secret in ${path}: ${errorText(error)}`, {
        hint: 'make the file readable for the user that runs holdfast, and for nobody else',
        cause: error,
      });
    }
  }
  return reference;
}

/** A path as written in a configuration: relative ones start from the configuration's own folder. */
export function absoluteFrom(baseDirectory: string, path: string): string {
  return isAbsolute(path) ? path : resolve(baseDirectory, path);
}
