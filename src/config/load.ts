import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, resolve } from 'node:path';
import { LineCounter, parseDocument } from 'yaml';

import { HoldfastError, systemErrorCode, errorText } from '../errors.ts';
import type { Configuration, RepositoryConfiguration } from './configuration.ts';
import { explainIssues, type Finding } from './explain-issues.ts';
import { configurationSchema, type ConfigurationFile } from './schema.ts';
import { absoluteFrom } from './secrets.ts';
import { defaultStateDirectory } from './state-directory.ts';

type Environment = Readonly<Record<string, string | undefined>>;

/** Nobody writes a configuration this long; a mistaken path (a dump, a device) may well be. */
const MAX_BYTES = 1024 * 1024;

/** Reads and checks a configuration file. Throws `config-missing` or `config-invalid` with file and line. */
export async function loadConfiguration(file: string, environment: Environment): Promise<Configuration> {
  return parseConfiguration(await readText(file), resolve(file), environment);
}

async function readText(file: string): Promise<string> {
  try {
    const info = await stat(file);
    if (!info.isFile() || info.size > MAX_BYTES) {
      throw new HoldfastError('config-invalid', `${file} is not a configuration file`);
    }
    return await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof HoldfastError) throw error;
    if (systemErrorCode(error) === 'ENOENT') throw missing(file, error);
    throw new HoldfastError('config-invalid', `cannot read the configuration: ${errorText(error)}`, {
      hint: `make ${file} readable for the user that runs holdfast`,
      cause: error,
    });
  }
}

function missing(file: string, cause: unknown): HoldfastError {
  return new HoldfastError('config-missing', `there is no configuration at ${file}`, {
    hint: 'write one with "holdfast init", or name it with --config FILE',
    cause,
  });
}

/** The same for a text; `file` is where it comes from (absolute), for messages and relative paths. */
export function parseConfiguration(text: string, file: string, environment: Environment): Configuration {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: true });
  const [fault] = document.errors;
  if (fault !== undefined) {
    const line = lines.linePos(fault.pos[0]).line;
    throw new HoldfastError('config-invalid', `${file}:${line}: ${fault.message}`, {
      hint: 'the file is YAML: check indentation, colons and quotes',
    });
  }
  const checked = configurationSchema.safeParse(document.toJS({ maxAliasCount: 100 }) ?? {}, {
    reportInput: true,
  });
  if (!checked.success) {
    const lineOf = (path: Finding['path']): number => {
      for (let length = path.length; length > 0; length -= 1) {
        const at = keyOffset(document, path.slice(0, length));
        if (at !== undefined) return lines.linePos(at).line;
      }
      return 1;
    };
    throw invalid(file, explainIssues(checked.error.issues), lineOf);
  }
  return fromFile(checked.data, file, environment);
}

/** Where a key stands in the text. */
function keyOffset(document: ReturnType<typeof parseDocument>, path: Finding['path']): number | undefined {
  const parent = path.length === 1 ? document.contents : document.getIn(path.slice(0, -1), true);
  const last = path.at(-1);
  if (typeof parent !== 'object' || parent === null || !('items' in parent)) return undefined;
  const items = parent.items as readonly { key?: { value?: unknown; range?: number[] }; range?: number[] }[];
  if (typeof last === 'number') return items[last]?.range?.[0];
  return items.find((pair) => pair.key?.value === last)?.key?.range?.[0];
}

function invalid(
  file: string,
  findings: Finding[],
  lineOf: (path: Finding['path']) => number,
): HoldfastError {
  const suggestions = findings.flatMap((finding) => finding.suggestion ?? []);
  const texts = findings.map((finding) => `${basename(file)}:${lineOf(finding.path)}: ${finding.message}`);
  return new HoldfastError('config-invalid', texts.join('; '), {
    hint: suggestions.length > 0 ? suggestions.join('; ') : 'docs/configuration.md describes every key',
    context: { file, findings: findings.length },
  });
}

function fromFile(checked: ConfigurationFile, file: string, environment: Environment): Configuration {
  const { clusters, encryption, retention, schedule, drill, alerts } = checked;
  const { identity } = encryption;
  return {
    file,
    clusterNames: Object.keys(clusters),
    clusters,
    repositories: withRequired(checked),
    recipients: encryption.recipients,
    ...(identity !== undefined && {
      identity: identity.startsWith('env:')
        ? identity
        : absoluteFrom(dirname(file), identity.replace(/^file:(\/\/(?=\/))?/, '')),
    }),
    stateDirectory: checked.state ?? defaultStateDirectory(environment),
    retention,
    schedule,
    drill,
    alerts,
  };
}

/** Where no repository says whether it is required, all are; where one does, the silent ones are not. */
function withRequired(checked: ConfigurationFile): RepositoryConfiguration[] {
  const entries = Object.entries(checked.repositories);
  const silent = !entries.some(([, repository]) => repository.required === true);
  return entries.map(([name, repository]) => ({
    name,
    url: repository.url,
    required: repository.required ?? silent,
    ...(repository.storageClass !== undefined && { storageClass: repository.storageClass }),
  }));
}
