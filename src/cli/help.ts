import { GROUPS, type CommandSpec } from './command.ts';

export const GLOBAL_OPTIONS = [
  {
    flags: '--config <file>',
    summary: 'configuration (default: ./holdfast.yaml, then /etc/holdfast/holdfast.yaml)',
  },
  { flags: '--json', summary: 'print JSON: events one per line, then the result' },
  { flags: '--quiet', summary: 'no progress and no notes' },
  { flags: '--verbose', summary: 'say more; show where an error comes from' },
  { flags: '--help', summary: 'show help with examples' },
] as const;

/** What `holdfast --help` prints. */
export function programHelp(commands: readonly CommandSpec[]): string {
  const width = Math.max(...commands.map((command) => usageOf(command).length));
  const sections = GROUPS.map((group) => {
    const lines = commands
      .filter((command) => command.group === group)
      .map((command) => `  ${usageOf(command).padEnd(width)}  ${command.summary}`);
    return lines.length === 0 ? '' : `${group}:\n${lines.join('\n')}\n\n`;
  });
  return `Holdfast keeps PostgreSQL clusters recoverable, and proves it by restoring them.

Usage: holdfast <command> [options]

${sections.join('')}Every command:
${optionLines(GLOBAL_OPTIONS)}

Start with:
  holdfast demo                 all of it on a scratch cluster, told as it happens
  holdfast init --help          set up backups of your own cluster
  holdfast <command> --help     options and examples of one command
`;
}

/** What `holdfast <command> --help` prints. */
export function commandHelp(command: CommandSpec): string {
  const parts = [sentence(command.summary), `Usage: holdfast ${usageOf(command)} [options]`];
  if (command.details !== undefined) parts.push(command.details);
  if (command.arguments.length > 0) {
    const width = Math.max(...command.arguments.map((argument) => argument.name.length));
    const lines = command.arguments.map((a) => `  ${a.name.toUpperCase().padEnd(width)}  ${a.summary}`);
    parts.push(`Arguments:\n${lines.join('\n')}`);
  }
  if (command.options.length > 0) parts.push(`Options:\n${optionLines(command.options)}`);
  parts.push(`Every command:\n${optionLines(GLOBAL_OPTIONS)}`);
  const examples = command.examples.map((example) => `  ${example.command}\n      ${example.does}`);
  parts.push(`Examples:\n${examples.join('\n')}`);
  return `${parts.join('\n\n')}\n`;
}

/** What `holdfast backup` prints: the commands below a first word. */
export function groupHelp(prefix: string, commands: readonly CommandSpec[]): string {
  const below = commands.filter((command) => command.name.startsWith(`${prefix} `));
  const width = Math.max(...below.map((command) => usageOf(command).length));
  const lines = below.map((command) => `  ${usageOf(command).padEnd(width)}  ${command.summary}`);
  return `Usage: holdfast ${prefix} <command>\n\n${lines.join('\n')}\n`;
}

function usageOf(command: CommandSpec): string {
  const names = command.arguments.map((argument) => {
    const name = argument.name.toUpperCase();
    return argument.optional === true ? `[${name}]` : name;
  });
  return [command.name, ...names].join(' ');
}

function optionLines(
  options: readonly { flags: string; summary: string; choices?: readonly string[]; repeatable?: boolean }[],
): string {
  const width = Math.max(...options.map((option) => option.flags.length));
  return options
    .map((option) => {
      const choices = option.choices === undefined ? '' : ` (${option.choices.join(', ')})`;
      const repeat = option.repeatable === true ? ' (repeatable)' : '';
      return `  ${option.flags.padEnd(width)}  ${option.summary}${choices}${repeat}`;
    })
    .join('\n');
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}
