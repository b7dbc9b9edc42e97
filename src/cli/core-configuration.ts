import type { CoreConfiguration } from '../config/configuration.ts';
import { readCoreCache, writeCoreCache } from '../config/core-cache.ts';
import { findConfigurationFile } from '../config/find-file.ts';
import { cacheDirectory } from '../config/state-directory.ts';
import { VERSION } from './version.ts';

export interface CoreConfigurationSource {
  /** What `--config` names. */
  named: string | undefined;
  directory: string;
  environment: Readonly<Record<string, string | undefined>>;
}

/**
 * The configuration for the two commands PostgreSQL runs for every WAL segment: out of this user's cache where it fits
 * the file, else read, checked and cached. Throws as `loadConfiguration`.
 */
export async function coreConfiguration(source: CoreConfigurationSource): Promise<CoreConfiguration> {
  const { named, directory, environment } = source;
  const file = findConfigurationFile(named, directory);
  const cache = { directory: cacheDirectory(environment), version: VERSION, environment };
  const cached = readCoreCache(file, cache);
  if (cached !== undefined) return cached;
  const { loadConfiguration } = await import('../config/load.ts');
  const loaded = await loadConfiguration(file, environment);
  writeCoreCache(loaded, cache, Date.now());
  return loaded;
}
