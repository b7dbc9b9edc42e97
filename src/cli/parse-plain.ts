import { parseArgs } from 'node:util';

import { errorText, HoldfastError } from '../errors.ts';
import type { CommandSpec } from './command.ts';
import { GLOBAL_OPTIONS } from './help.ts';
import type { ParsedCommand } from './parse-command.ts';

/**
 * As `parseCommand`, without loading a parser: for the commands PostgreSQL runs for every WAL segment. Knows flags,
 * options with a value, and repeatable ones.
 */
export function parsePlain(spec: CommandSpec, words: readonly string[]): ParsedCommand {
  const declared = [...spec.options, ...GLOBAL_OPTIONS].map((option) => {
    const [long = '', value] = option.flags.replace(/^--/, '').split(' ');
    const multiple = 'repeatable' in option && option.repeatable;
    return { long, type: value === undefined ? ('boolean' as const) : ('string' as const), multiple };
  });
  let parsed;
  try {
    parsed = parseArgs({
      args: [...words],
      options: Object.fromEntries(declared.map(({ long, type, multiple }) => [long, { type, multiple }])),
      allowPositionals: true,
      strict: true,
      tokens: true,
    });
  } catch (error) {
    const [sentence = ''] = errorText(error).split('. ');
    throw usage(spec, `${sentence.charAt(0).toLowerCase()}${sentence.slice(1)}`.replaceAll("'", '"'));
  }
  const needed = spec.arguments.filter((argument) => argument.optional !== true);
  if (parsed.positionals.length < needed.length) {
    throw usage(spec, `missing required argument "${needed[parsed.positionals.length]?.name ?? ''}"`);
  }
  if (parsed.positionals.length > spec.arguments.length) {
    throw usage(spec, `too many arguments: ${parsed.positionals.length}`);
  }
  const seen = new Set<string>();
  for (const token of parsed.tokens) {
    if (token.kind !== 'option' || declared.some(({ long, multiple }) => long === token.name && multiple))
      continue;
    if (seen.has(token.name) && token.value !== undefined)
      throw usage(spec, `--${token.name} is given twice`);
    seen.add(token.name);
  }
  const entries = Object.entries(parsed.values).map(([name, value]) => [camelCase(name), value] as const);
  return {
    arguments: parsed.positionals,
    options: Object.fromEntries(entries) as ParsedCommand['options'],
  };
}

function camelCase(name: string): string {
  return name.replaceAll(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function usage(spec: CommandSpec, message: string): HoldfastError {
  return new HoldfastError('usage-invalid', message, {
    hint: `"holdfast ${spec.name} --help" shows what it takes`,
  });
}
