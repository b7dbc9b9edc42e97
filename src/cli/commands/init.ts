import { existsSync } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

import type { Configuration } from '../../config/configuration.ts';
import { loadConfiguration, parseConfiguration } from '../../config/load.ts';
import { HoldfastError, errorText } from '../../errors.ts';
import { initializeRepository } from '../../repository/repository.ts';
import { checkFailed, runChecks } from '../check/run-checks.ts';
import { formatFinding, summarizeFindings, type Finding } from '../check/finding.ts';
import { type CommandContext, type CommandSpec, type Invocation, textOption } from '../command.ts';
import { answersOf, DESCRIBING_OPTIONS } from '../init/answers.ts';
import { chooseWalMode, type SetupSight } from '../init/choose-wal-mode.ts';
import { configurationText } from '../../config/configuration-text.ts';
import { formatSetup, serverSetups } from '../init/server-setup.ts';
import { keysOf, storageOf } from '../open-repository.ts';

/** As the configuration has it where nothing is said. */
const DEFAULT_SLOT = 'holdfast';

export const init: CommandSpec = {
  name: 'init',
  group: 'Set up',
  summary: 'write a configuration, prepare its repositories, say what the server needs',
  details: `Writes holdfast.yaml (never over an existing one), makes the repositories it names, prints the SQL for the role
and the server's settings, and ends with "check". WAL is streamed where a server lets us open a replication connection
and does not archive yet, else pushed by its archive_command; --wal decides otherwise. Where the configuration
exists already, only its repositories are prepared and nothing else is changed; running it again is harmless.`,
  arguments: [],
  options: [
    { flags: '--cluster <name>', summary: 'what to call the cluster (default main)' },
    {
      flags: '--server <url>',
      summary: 'postgres://USER@HOST/DATABASE of the primary or a standby',
      repeatable: true,
    },
    {
      flags: '--wal <mode>',
      summary: 'how WAL arrives: stream (a program that runs) or push (archive_command)',
      choices: ['stream', 'push'],
    },
    {
      flags: '--repository <name=url>',
      summary: 'where backups go, e.g. local=/var/backups/holdfast',
      repeatable: true,
    },
    { flags: '--recipient <age1…>', summary: 'public key to seal backups for', repeatable: true },
    { flags: '--identity <file>', summary: 'secret key to read them with; made if it is not there' },
    { flags: '--encryption <kind>', summary: 'none: store in clear', choices: ['none'] },
    { flags: '--state <dir>', summary: 'where this host keeps notes (default ~/.local/state/holdfast)' },
    { flags: '--yes', summary: 'ask nothing' },
  ],
  examples: [
    {
      command: 'holdfast init --cluster app --server postgres://holdfast@localhost/postgres',
      does: 'the shortest way: one cluster, one directory, no encryption',
    },
    {
      command:
        'holdfast init --config /etc/holdfast/holdfast.yaml --cluster app --server postgres://holdfast@db1/postgres --server postgres://holdfast@db2/postgres --repository local=/var/backups/holdfast --recipient age1…',
      does: 'a primary and a standby, sealed for a key that is kept elsewhere',
    },
  ],
  run,
};

async function run({ options, context }: Invocation): Promise<void> {
  const { output, environment, signal } = context;
  const file = resolve(context.directory, context.configFile ?? 'holdfast.yaml');
  const isNew = !existsSync(file);
  const seen = new Map<string, SetupSight>();
  const configuration = isNew
    ? await writeConfiguration(file, options, context, seen)
    : await loadConfiguration(file, environment);
  if (!isNew) {
    output.note(`${file} is there already and stays as it is`);
    const ignored = DESCRIBING_OPTIONS.filter((name) => isGiven(options[name]));
    if (ignored.length > 0) {
      output.warn(`${ignored.map((name) => `--${name}`).join(', ')} changed nothing: edit ${file} instead`);
    }
  }
  const prepared = await prepareRepositories(configuration, context);
  const setups = serverSetups(configuration, seen);
  if (!output.json) for (const setup of setups) output.note(`\n${formatSetup(setup)}`);
  output.note('Checking:\n');
  const findings: Finding[] = await runChecks({
    configuration,
    environment,
    signal,
    found: (finding) => {
      if (!output.json) output.event('finding', finding, formatFinding(finding));
    },
  });
  const failure = checkFailed(findings);
  output.result(
    {
      config: file,
      created: isNew,
      repositories: prepared,
      servers: setups,
      check: { ok: failure === undefined, findings },
    },
    () => `\n${summarizeFindings(findings)}`,
  );
  if (failure !== undefined) throw failure;
}

function isGiven(value: Invocation['options'][string]): boolean {
  return Array.isArray(value) ? value.length > 0 : value !== undefined;
}

async function writeConfiguration(
  file: string,
  options: Invocation['options'],
  context: CommandContext,
  seen: Map<string, SetupSight>,
): Promise<Configuration> {
  const { output, environment, directory, signal } = context;
  const { madeIdentity, ...answers } = await answersOf(options, directory, new Date());
  const sources = { environment, baseDirectory: dirname(file) };
  const asked = textOption(options, 'wal');
  let wal: 'push' | 'stream' = 'push';
  if (asked !== 'push') {
    const looked = await chooseWalMode(answers.servers, sources, DEFAULT_SLOT, signal);
    if (looked.sight !== undefined) seen.set(answers.cluster, looked.sight);
    wal = asked === 'stream' ? asked : looked.mode;
    if (asked === undefined)
      output.note(`${wal === 'stream' ? 'WAL is streamed' : 'WAL is pushed'}: ${looked.reason}`);
  }
  const text = configurationText({ ...answers, wal });
  const configuration = parseConfiguration(text, file, environment);
  try {
    await writeNew(file, text);
  } catch (error) {
    throw new HoldfastError('config-invalid', `cannot write ${file}: ${errorText(error)}`, {
      hint: `make ${dirname(file)}, or name another place with --config FILE`,
      cause: error,
    });
  }
  output.note(`wrote ${file}`);
  if (madeIdentity !== undefined) {
    output.warn(
      `made the secret key ${madeIdentity}: without it no backup can ever be read. Copy it to a safe place off this host now`,
    );
  }
  return configuration;
}

/** Durable when it resolves; an existing file is never replaced. */
async function writeNew(file: string, text: string): Promise<void> {
  const handle = await open(file, 'wx', 0o640);
  try {
    await handle.writeFile(text);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Only here is a missing root made: anywhere else it may be a disk that is not mounted. Durable when it resolves. */
async function makeDirectory(path: string): Promise<void> {
  const first = await mkdir(path, { recursive: true, mode: 0o750 });
  if (first === undefined) return;
  const parent = await open(dirname(first), 'r');
  try {
    await parent.sync();
  } finally {
    await parent.close();
  }
}

async function prepareRepositories(
  configuration: Configuration,
  context: CommandContext,
): Promise<{ name: string; url: string; created: boolean }[]> {
  const { output, environment, signal } = context;
  const opener = { configuration, environment };
  const keys = await keysOf(opener);
  const prepared: { name: string; url: string; created: boolean }[] = [];
  for (const configured of configuration.repositories) {
    let storage;
    try {
      storage = await storageOf(configured, opener);
    } catch (error) {
      // Named for a later version; the check at the end says so.
      if (configured.required || !(error instanceof HoldfastError)) throw error;
      continue;
    }
    if (configured.url.startsWith('file:')) await makeDirectory(fileURLToPath(configured.url));
    const { created } = await initializeRepository(configured.name, storage, keys, new Date(), signal);
    output.note(`${created ? 'made' : 'found'} repository ${configured.name} at ${storage.description}`);
    prepared.push({ name: configured.name, url: storage.description, created });
  }
  return prepared;
}
