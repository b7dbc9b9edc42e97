import type { Configuration } from '../config/configuration.ts';
import type { Output } from './output.ts';

/** Headings of `holdfast --help`, in their order. */
export const GROUPS = ['Set up', 'Back up', 'Look', 'Restore', 'Used by PostgreSQL', 'Learn'] as const;
export type Group = (typeof GROUPS)[number];

export interface ArgumentSpec {
  name: string;
  summary: string;
  optional?: boolean;
}

export interface OptionSpec {
  /** In commander's form: `--to <dir>`, `--dry-run`. */
  flags: string;
  summary: string;
  choices?: readonly string[];
  /** May be given several times; the value is then a list. */
  repeatable?: boolean;
}

export interface ExampleSpec {
  command: string;
  does: string;
}

/** One command as data: help, completion and documents are made from it. */
export interface CommandSpec {
  /** As typed: `check`, `backup base`. */
  name: string;
  group: Group;
  summary: string;
  /** What the summary leaves out: what it changes, what it needs, how it ends. */
  details?: string;
  arguments: readonly ArgumentSpec[];
  options: readonly OptionSpec[];
  examples: readonly ExampleSpec[];
  run(invocation: Invocation): Promise<void>;
}

export type OptionValue = string | boolean | readonly string[] | undefined;

export interface Invocation {
  /** In the order of `arguments`; optional ones may be missing at the end. */
  arguments: readonly string[];
  /** By camelCase name: `--dry-run` is `dryRun`. */
  options: Readonly<Record<string, OptionValue>>;
  context: CommandContext;
}

/** What a command gets from the outside world. */
export interface CommandContext {
  output: Output;
  /** Aborted by SIGINT, SIGTERM, SIGHUP. */
  signal: AbortSignal;
  environment: Readonly<Record<string, string | undefined>>;
  directory: string;
  /** What `--config` names, if anything. */
  configFile: string | undefined;
  /** Reads the configuration (once). Throws `config-missing`, `config-invalid`. */
  configuration(): Promise<Configuration>;
}

/** A value option given once, or undefined. */
export function textOption(options: Invocation['options'], name: string): string | undefined {
  const value = options[name];
  return typeof value === 'string' ? value : undefined;
}

/** The values of a repeatable option. */
export function listOption(options: Invocation['options'], name: string): readonly string[] {
  const value = options[name];
  return Array.isArray(value) ? (value as readonly string[]) : [];
}

/** A flag. */
export function flagOption(options: Invocation['options'], name: string): boolean {
  return options[name] === true;
}
