import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

type Environment = Readonly<Record<string, string | undefined>>;

/** `$XDG_STATE_HOME/holdfast` or `~/.local/state/holdfast`. A relative XDG_STATE_HOME is ignored, as its specification asks. */
export function defaultStateDirectory(environment: Environment, home = homedir()): string {
  return join(base(environment['XDG_STATE_HOME']) ?? join(home, '.local', 'state'), 'holdfast');
}

/** `$XDG_CACHE_HOME/holdfast` or `~/.cache/holdfast`: only what may vanish at any moment. */
export function cacheDirectory(environment: Environment, home = homedir()): string {
  return join(base(environment['XDG_CACHE_HOME']) ?? join(home, '.cache'), 'holdfast');
}

function base(value: string | undefined): string | undefined {
  return value !== undefined && isAbsolute(value) ? value : undefined;
}
