import { HoldfastError } from '../../errors.ts';
import { type CommandSpec, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { namedRepository } from '../open-repository.ts';
import { accountCluster } from '../window/account-cluster.ts';
import { type WindowJson, windowJson } from '../window/window-json.ts';
import { windowText } from '../window/window-text.ts';

export const window: CommandSpec = {
  name: 'window',
  group: 'Look',
  summary: 'what can be restored now, and why not the rest',
  details: `Per repository and branch of timelines: every stretch of WAL that a backup leads into, from where that is
consistent to the last record that is stored, tails included; the tree of timelines; and every gap with its cause and
what to do. Reads listings and headers only (what it read from headers is remembered in the state directory) and needs
no key for a cluster that was never promoted. Ends with 0 where the newest WAL can be restored from at least one
repository, gaps of the past or not; with 40 where no backup leads there.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [
    { flags: '--repository <name>', summary: 'only this repository' },
    { flags: '--system-identifier <number>', summary: 'which history, where a name has several' },
  ],
  examples: [
    { command: 'holdfast window app', does: 'from when to when app can be restored' },
    {
      command: 'holdfast window app --json | jq ".repositories[].gaps[] | select(.blocking)"',
      does: 'what keeps the present from being restorable',
    },
  ],
  run,
};

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const configuration = await context.configuration();
  configuredCluster(configuration, name);
  const only = textOption(options, 'repository');
  const systemIdentifier = textOption(options, 'systemIdentifier');
  const repositories =
    only === undefined ? configuration.repositories : [namedRepository(configuration, only)];
  const found = await accountCluster(context, configuration, repositories, {
    cluster: name,
    systemIdentifier,
  });
  const failures = found.flatMap(({ failure }) => failure ?? []);
  const [failure] = failures;
  if (failure !== undefined && failures.length === found.length) throw failure;
  for (const { repository, account } of found) {
    if (account === undefined) continue;
    const { segments, headersRead } = account.cost;
    context.output.debug(`${repository}: ${segments} segments, ${headersRead} headers read`);
  }
  const result = windowJson(name, found, new Date());
  context.output.result(result, () => windowText(result));
  const gap = presentFailure(result);
  if (gap !== undefined) throw gap;
}

/** The error a window ends with where the present is out of reach. */
function presentFailure({ cluster, present, repositories }: WindowJson): HoldfastError | undefined {
  if (present === null || present.state === 'reachable' || present.state === 'unknown') return undefined;
  const context = { cluster, timeline: present.timeline, state: present.state };
  const blocking = repositories.flatMap(({ gaps }) => gaps.filter((gap) => gap.blocking));
  if (present.state === 'orphan') {
    const problem = repositories
      .flatMap(({ problems }) => problems)
      .find((one) => one.includes('history file'));
    return new HoldfastError(
      'wal-gap',
      `the newest timeline of cluster ${cluster}, ${present.timeline}, cannot be restored: its history file is missing`,
      { hint: problem ?? `holdfast backup base ${cluster}`, context },
    );
  }
  const [first] = blocking;
  const reason =
    first === undefined
      ? present.state === 'no-backup'
        ? `no base backup leads to timeline ${present.timeline}`
        : 'wal is missing behind the last base backup'
      : `${first.firstMissing} is ${first.cause === 'damaged' ? 'damaged' : 'missing'}, and no base backup begins behind it`;
  const copy = blocking.find(({ fix }) => fix?.startsWith('holdfast wal catch-up') === true)?.fix;
  return new HoldfastError('wal-gap', `the present of cluster ${cluster} cannot be restored: ${reason}`, {
    hint: `make a new start now: holdfast backup base ${cluster}${typeof copy === 'string' ? `; or fetch what is missing: ${copy}` : ''}`,
    context,
  });
}
