import { existsSync } from 'node:fs';
import { resolve } from 'node:path';

import { HoldfastError } from '../errors.ts';

const SYSTEM_CONFIGURATION = '/etc/holdfast/holdfast.yaml';

/**
 * The configuration file a command uses, absolute: the one named, else `./holdfast.yaml`, else the system's. Throws
 * `config-missing` where none of the two exists (a named one is not looked for: reading it says why it fails).
 */
export function findConfigurationFile(named: string | undefined, directory: string): string {
  if (named !== undefined) return resolve(directory, named);
  const local = resolve(directory, 'holdfast.yaml');
  if (existsSync(local)) return local;
  if (existsSync(SYSTEM_CONFIGURATION)) return SYSTEM_CONFIGURATION;
  throw new HoldfastError(
    'config-missing',
    `there is no configuration: neither ${local} nor ${SYSTEM_CONFIGURATION} exists`,
    { hint: 'write one with "holdfast init", or name it with --config FILE' },
  );
}
