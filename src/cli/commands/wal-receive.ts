import { parseLsn } from '../../postgres/lsn.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { resolveSecret } from '../../config/secrets.ts';
import { HoldfastError } from '../../errors.ts';
import { systemClock } from '../../clock.ts';
import { type ReceiverEvent, runReceiver } from '../../wal/receive/run-receiver.ts';
import { type CommandSpec, flagOption, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { openNamed, requiredRepositories, secretSources } from '../open-repository.ts';

export const walReceive: CommandSpec = {
  name: 'wal receive',
  group: 'Back up',
  summary: 'stream WAL into the repositories, seconds behind the commit',
  details: `Runs until it is ended (Ctrl-C, SIGTERM): what has come is stored first, and the status is 0. Streams from the
primary, or a standby where there is no primary, through a replication slot that it makes and owns, and follows
failovers. The server is told that WAL is safe only when every required repository has it. A store or a server
that is away is waited for; the server keeps the WAL meanwhile. Goes on where the repositories end, never later.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [
    { flags: '--until <lsn>', summary: 'end when everything before this position is stored' },
    {
      flags: '--accept-gap',
      summary:
        'where the server no longer has the WAL to go on with: go on behind it (then take a base backup)',
    },
    {
      flags: '--timeline <number>',
      summary: 'follow a server on this timeline although a newer one is stored already',
    },
  ],
  examples: [
    { command: 'holdfast wal receive app', does: 'receive the WAL of app until Ctrl-C' },
    {
      command: 'holdfast wal receive app --accept-gap',
      does: 'after the slot was lost; "holdfast backup base app" makes the present restorable again',
    },
  ],
  run,
};

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const { environment, output, signal } = context;
  const configuration = await context.configuration();
  const cluster = configuredCluster(configuration, name);
  const until = textOption(options, 'until');
  const timeline = textOption(options, 'timeline');
  if (timeline !== undefined && !/^[1-9]\d{0,9}$/.test(timeline)) {
    throw new HoldfastError('usage-invalid', `"${timeline}" is not the number of a timeline`);
  }
  const sources = secretSources({ configuration, environment });
  const opener = { configuration, environment, signal };
  const urls = await Promise.all(cluster.servers.map(async (server) => resolveSecret(server, sources)));
  const required = await Promise.all(
    requiredRepositories(configuration).map(async (repository) => openNamed(repository, opener)),
  );
  await runReceiver({
    cluster: name,
    urls,
    slot: cluster.wal.slot,
    tailIntervalMs: cluster.wal.tailInterval,
    required,
    optional: configuration.repositories
      .filter((repository) => !repository.required)
      .map((repository) => ({
        name: repository.name,
        open: async () => openNamed(repository, { configuration, environment }),
      })),
    stateDirectory: configuration.stateDirectory,
    acceptGap: flagOption(options, 'acceptGap'),
    ...(until !== undefined && { until: parseLsn(until) }),
    ...(timeline !== undefined && { onTimeline: timelineOf(Number(timeline)) }),
    clock: systemClock,
    signal,
    report: (event) => tell(event, output),
  });
  output.result({ cluster: name, ended: true }, () => '');
}

function tell(event: ReceiverEvent, output: Invocation['context']['output']): void {
  if (output.json) {
    output.event(event.event, event, '');
    return;
  }
  switch (event.event) {
    case 'streaming':
      output.note(
        `streaming from ${event.server}, timeline ${event.timeline}, from ${event.lsn} (slot ${event.slot})`,
      );
      break;
    case 'switched':
      output.note(`timeline ${event.from} ended at ${event.lsn}; going on with timeline ${event.to}`);
      break;
    case 'stored':
      output.debug(`stored ${event.segment}`);
      break;
    case 'salvaged':
      output.note(
        `stored ${event.sizeBytes} bytes of ${event.segment} that an earlier receiver had left behind`,
      );
      break;
    case 'problem': {
      const where = event.repository === undefined ? '' : `repository ${event.repository}: `;
      if (event.text === undefined) output.note(`${where}works again`);
      else output.warn(`${where}${event.text}${event.hint === undefined ? '' : ` (${event.hint})`}`);
      break;
    }
    case 'warning':
      output.warn(event.text);
      break;
    case 'note':
      output.note(event.text);
      break;
    default:
      event satisfies never;
  }
}
