import { HoldfastError } from '../../errors.ts';
import { listHistories } from '../../repository/choose-cluster.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { catchUp, type CaughtUp } from '../../wal/catch-up.ts';
import { takeCatchUpLock } from '../../wal/catch-up-lock.ts';
import { type CommandContext, type CommandSpec, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { namedRepository, openNamed, requiredRepositories } from '../open-repository.ts';

export const walCatchUp: CommandSpec = {
  name: 'wal catch-up',
  group: 'Back up',
  summary: 'copy the WAL that a repository lacks from those that have it',
  details: `Copies sealed objects as they are, verified on the way, so it needs no key and no server. Nothing is replaced or
deleted. "wal push" starts it by itself for an optional repository that was away; run it by hand for a new one.
Ends with 0 when each of the repositories has everything, with 3 when one is still behind.`,
  arguments: [{ name: 'cluster', summary: 'which cluster' }],
  options: [
    {
      flags: '--repository <name>',
      summary: 'the one to bring up to date; default: every one that is not required',
    },
  ],
  examples: [
    { command: 'holdfast wal catch-up app', does: 'brings the optional repositories up to date' },
    { command: 'holdfast wal catch-up app --repository offsite --json', does: 'one of them, for a script' },
  ],
  run,
};

async function run({ arguments: [cluster = ''], options, context }: Invocation): Promise<void> {
  const { environment, output, signal } = context;
  const configuration = await context.configuration();
  configuredCluster(configuration, cluster);
  const opener = { configuration, environment, signal };
  const only = textOption(options, 'repository');
  const targets =
    only === undefined
      ? configuration.repositories.filter(({ required }) => !required)
      : [namedRepository(configuration, only)];
  const repositories: (CaughtUp & ClusterIdentity)[] = [];
  for (const target of targets) {
    const others = requiredRepositories(configuration).filter(({ name }) => name !== target.name);
    const wanted = others.length > 0 ? others : configuration.repositories.filter((one) => one !== target);
    const sources = await Promise.all(wanted.map(async (one) => openNamed(one, opener)));
    for (const identity of await historiesOf(sources, cluster, signal)) {
      const { stateDirectory } = configuration;
      await using _lock = await takeCatchUpLock(stateDirectory, identity.systemIdentifier, target.name);
      const result = await copyTo(sources, identity, {
        context,
        stateDirectory,
        to: { name: target.name, open: async () => openNamed(target, opener) },
      });
      repositories.push({ ...result, ...identity });
    }
  }
  output.result(
    { cluster, repositories: repositories.map((one) => ({ ...one, reason: one.reason ?? null })) },
    () => repositories.map(line).join('\n'),
  );
  const behind = repositories.find(({ complete }) => !complete);
  if (behind === undefined) return;
  throw new HoldfastError(
    'repository-behind',
    `repository ${behind.repository} still lacks wal: ${behind.reason}`,
    {
      hint: `mend that and run "holdfast wal catch-up ${cluster}" again; meanwhile the other repositories have it`,
      context: { repository: behind.repository },
    },
  );
}

async function copyTo(
  sources: readonly Repository[],
  identity: ClusterIdentity,
  run: {
    context: CommandContext;
    stateDirectory: string;
    to: { name: string; open: () => Promise<Repository> };
  },
): Promise<CaughtUp> {
  const { context, stateDirectory, to } = run;
  const progress = context.output.progress(`wal to ${to.name}`);
  let doneBytes = 0;
  try {
    return await catchUp({
      identity,
      sources,
      to,
      stateDirectory,
      now: () => new Date(),
      onCopied(name, storedBytes) {
        doneBytes += storedBytes;
        progress.update({ doneBytes, detail: name });
      },
      signal: context.signal,
    });
  } finally {
    progress.end();
  }
}

async function historiesOf(
  sources: readonly Repository[],
  cluster: string,
  signal: AbortSignal,
): Promise<ClusterIdentity[]> {
  const found = new Map<string, ClusterIdentity>();
  for (const source of sources) {
    for await (const identity of listHistories(source, signal)) {
      if (identity.cluster === cluster) found.set(identity.systemIdentifier, identity);
    }
  }
  return [...found.values()];
}

function line({ repository, copied, complete, reason }: CaughtUp): string {
  const files = copied === 1 ? '1 file' : `${copied} files`;
  return complete
    ? `${repository} has everything (${files} copied)`
    : `${repository} is behind after ${files}: ${reason}`;
}
