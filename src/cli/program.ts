import { HoldfastError } from '../errors.ts';
import type { Configuration } from '../config/configuration.ts';
import { nearestKey } from '../config/nearest-key.ts';
import type { CommandContext, CommandSpec, OptionValue } from './command.ts';
import { commandHelp, groupHelp, programHelp } from './help.ts';
import { Output, type Sink } from './output.ts';
import { parseCommand } from './parse-command.ts';
import { COMMANDS, loadAll } from './registry.ts';
import { splitCommand } from './split-command.ts';
import { VERSION } from './version.ts';

export interface World {
  stdout: Sink;
  stderr: Sink;
  environment: Readonly<Record<string, string | undefined>>;
  directory: string;
  signal: AbortSignal;
}

/** Runs one command line. Throws what went wrong; the caller turns it into a message and an exit status. */
export async function runProgram(words: readonly string[], world: World): Promise<void> {
  const { name, rest } = splitCommand(
    words,
    COMMANDS.map((command) => command.name),
  );
  const known = COMMANDS.find((command) => command.name === name);
  if (known === undefined) {
    await withoutCommand(name, rest, world);
    return;
  }
  const spec = await known.load();
  if (rest.includes('--help') || rest.includes('-h')) {
    world.stdout.write(commandHelp(spec));
    return;
  }
  const parsed = parseCommand(spec, rest);
  const { config, json, quiet, verbose, ...options } = parsed.options;
  if (quiet === true && verbose === true) {
    throw new HoldfastError('option-conflict', '--quiet and --verbose contradict each other', {
      hint: 'give one of them',
    });
  }
  const context = makeContext(world, { config, json, quiet, verbose });
  await spec.run({ arguments: parsed.arguments, options, context });
}

function makeContext(world: World, globals: Record<string, OptionValue>): CommandContext {
  const { stdout, stderr, environment, directory, signal } = world;
  const configFile = typeof globals['config'] === 'string' ? globals['config'] : undefined;
  let loading: Promise<Configuration> | undefined;
  return {
    output: new Output({
      stdout,
      stderr,
      json: globals['json'] === true,
      quiet: globals['quiet'] === true,
      verbose: globals['verbose'] === true,
      nowMs: () => performance.now(),
    }),
    signal,
    environment,
    directory,
    configFile,
    configuration: () => (loading ??= readConfiguration(configFile, directory, environment)),
  };
}

async function readConfiguration(
  named: string | undefined,
  directory: string,
  environment: World['environment'],
): Promise<Configuration> {
  const [{ findConfigurationFile }, { loadConfiguration }] = await Promise.all([
    import('../config/find-file.ts'),
    import('../config/load.ts'),
  ]);
  return loadConfiguration(findConfigurationFile(named, directory), environment);
}

/** Help, the version, and command lines that name no command. */
async function withoutCommand(name: string, options: readonly string[], world: World): Promise<void> {
  if (name === '' && (options.includes('--version') || options.includes('-V'))) {
    world.stdout.write(`holdfast ${VERSION}\n`);
    return;
  }
  const all = await loadAll();
  const asked = name === 'help' || name.startsWith('help ') ? name.slice('help '.length) : name;
  const wantsHelp = asked !== name || name === 'help' || options.includes('--help') || options.includes('-h');
  const exact = all.find((command) => command.name === asked);
  const below = all.some((command) => command.name.startsWith(`${asked} `));
  if (asked === '' && (wantsHelp || options.length === 0)) world.stdout.write(programHelp(all));
  else if (wantsHelp && exact !== undefined) world.stdout.write(commandHelp(exact));
  else if (wantsHelp && below) world.stdout.write(groupHelp(asked, all));
  else throw noCommand(asked, options, all);
}

function noCommand(spoken: string, options: readonly string[], all: readonly CommandSpec[]): HoldfastError {
  const [first = ''] = spoken.split(' ');
  const below = all.filter((command) => command.name.startsWith(`${first} `)).map((c) => c.name);
  if (spoken === '') {
    return new HoldfastError('usage-invalid', `no command is given, only ${options.join(' ')}`, {
      hint: '"holdfast --help" lists the commands',
    });
  }
  const names = all.map((command) => command.name);
  const near = nearestKey(spoken, names) ?? nearestKey(first, names);
  const hint =
    near !== undefined
      ? `did you mean "holdfast ${near}"?`
      : below.length > 0
        ? `there are: ${below.map((name) => `holdfast ${name}`).join(', ')}`
        : '"holdfast --help" lists the commands';
  return new HoldfastError('usage-invalid', `there is no command "${spoken}"`, { hint });
}
