import { Command, CommanderError, Option } from 'commander';

import { HoldfastError } from '../errors.ts';
import { nearestKey } from '../config/nearest-key.ts';
import type { CommandSpec, OptionSpec, OptionValue } from './command.ts';
import { GLOBAL_OPTIONS } from './help.ts';

export interface ParsedCommand {
  arguments: string[];
  options: Record<string, OptionValue>;
}

/** Reads the words after a command's name. Throws `usage-invalid`, with the nearest option where one was misspelt. */
export function parseCommand(spec: CommandSpec, words: readonly string[]): ParsedCommand {
  const command = new Command(`holdfast ${spec.name}`)
    .exitOverride()
    .helpOption(false)
    .showSuggestionAfterError(false)
    .allowExcessArguments(false)
    .configureOutput({ writeErr: () => undefined, writeOut: () => undefined });
  for (const argument of spec.arguments) {
    command.argument(argument.optional === true ? `[${argument.name}]` : `<${argument.name}>`);
  }
  for (const option of [...spec.options, ...GLOBAL_OPTIONS]) command.addOption(asOption(option));
  command.action(() => undefined);
  try {
    command.parse([...words], { from: 'user' });
  } catch (error) {
    throw asUsageError(error, spec, command);
  }
  return { arguments: command.args, options: command.opts<Record<string, OptionValue>>() };
}

function asOption(spec: OptionSpec): Option {
  const option = new Option(spec.flags, spec.summary);
  if (spec.choices !== undefined) option.choices(spec.choices);
  if (spec.repeatable === true) {
    option.default([]).argParser((value: string, all: string[]) => [...all, value]);
  } else if (option.required) {
    // Given twice, commander would silently take the last one: two targets must be an error, not a guess.
    let given = false;
    const choose = option.parseArg;
    option.argParser((value: string, previous: string | undefined) => {
      if (given) throw new CommanderError(2, 'holdfast.twice', `${option.long ?? spec.flags} is given twice`);
      given = true;
      return (choose?.(value, previous as never) as string | undefined) ?? value;
    });
  }
  return option;
}

function asUsageError(error: unknown, spec: CommandSpec, command: Command): unknown {
  if (!(error instanceof CommanderError)) return error;
  const help = `"holdfast ${spec.name} --help" shows what it takes`;
  const message = error.message
    .replace(/^error: /, '')
    .replace(/\.$/, '')
    .replaceAll("'", '"');
  const unknown = /unknown option "(--?)([^"=]+)/.exec(message);
  const near =
    unknown === null
      ? undefined
      : nearestKey(
          unknown[2] ?? '',
          command.options.map((option) => option.long?.slice(2) ?? ''),
        );
  return new HoldfastError('usage-invalid', message, {
    hint: near === undefined ? help : `did you mean --${near}? ${help}`,
  });
}
