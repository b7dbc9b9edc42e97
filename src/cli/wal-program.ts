import type { CommandContext } from './command.ts';
import { fetchExitStatus, pushExitStatus } from './exit.ts';
import { commandHelp } from './help.ts';
import { Output } from './output.ts';
import { parsePlain } from './parse-plain.ts';
import type { World } from './program.ts';
import { formatError } from './report-error.ts';

export type WalKind = 'push' | 'fetch' | 'prefetch';

/**
 * Runs `wal push`, `wal fetch` or `wal prefetch` without the parser and the configuration schema that the other commands load, and
 * returns the exit status PostgreSQL is to see. Never throws.
 */
export async function runWalProgram(kind: WalKind, words: readonly string[], world: World): Promise<number> {
  try {
    const spec =
      kind === 'push'
        ? (await import('./commands/wal-push.ts')).walPush
        : kind === 'fetch'
          ? (await import('./commands/wal-fetch.ts')).walFetch
          : (await import('./commands/wal-prefetch.ts')).walPrefetch;
    if (words.includes('--help')) {
      world.stdout.write(commandHelp(spec));
      return 0;
    }
    const parsed = parsePlain(spec, words);
    await spec.run({ ...parsed, context: contextOf(parsed.options, world) });
    return 0;
  } catch (error) {
    return walFailure(kind, error, words, world);
  }
}

/** Says why a run failed and returns its status; also for what nothing caught. */
export function walFailure(kind: WalKind, error: unknown, words: readonly string[], world: World): number {
  if (kind === 'fetch' && error instanceof Error && error.name === 'WalAbsent') {
    return fetchExitStatus('absent', world.environment);
  }
  const status = kind === 'push' ? pushExitStatus(error) : fetchExitStatus('failed', world.environment);
  const style = { json: words.includes('--json'), verbose: words.includes('--verbose') };
  world.stderr.write(formatError(error, style, status));
  return status;
}

function contextOf(options: Readonly<Record<string, unknown>>, world: World): CommandContext {
  const { stdout, stderr, environment, directory, signal } = world;
  return {
    output: new Output({
      stdout,
      stderr,
      json: options['json'] === true,
      quiet: options['quiet'] === true,
      verbose: options['verbose'] === true,
      nowMs: () => performance.now(),
    }),
    signal,
    environment,
    directory,
    configFile: typeof options['config'] === 'string' ? options['config'] : undefined,
    configuration: async () => Promise.reject(new Error('this command reads the core configuration only')),
  };
}
