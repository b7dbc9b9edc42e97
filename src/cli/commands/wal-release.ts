import { resolveSecret } from '../../config/secrets.ts';
import { formatSize } from '../../config/sizes.ts';
import { HoldfastError } from '../../errors.ts';
import { connect, type Connection } from '../../postgres/connection.ts';
import { describeTarget, parseConnectionTarget } from '../../postgres/connection-target.ts';
import { inspectWal, type WalFacts } from '../../postgres/inspect-wal.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import { type CommandSpec, flagOption, type Invocation } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { secretSources } from '../open-repository.ts';
import { readReceiverStatus } from '../../wal/receiver-status.ts';

export const walRelease: CommandSpec = {
  name: 'wal release',
  group: 'Set up',
  summary: 'drop the replication slot, so that servers keep no more WAL for Holdfast',
  details: `On every configured server that has it. Refused while somebody streams from it: stop "holdfast wal receive" first.
To be done before Holdfast is taken away, and after changing to push; a slot left behind fills the disk of the
server. WAL that was not received by then is given up: take a base backup when you stream again. Repositories are
not touched. Running it again is harmless.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [{ flags: '--dry-run', summary: 'say what would be dropped, and drop nothing' }],
  examples: [
    { command: 'holdfast wal release app --dry-run', does: 'which slots there are, and what they keep' },
    { command: 'holdfast wal release app', does: 'drop them' },
  ],
  run,
};

interface Released {
  server: string;
  outcome: 'dropped' | 'would-drop' | 'absent';
  slot: string;
  restartLsn: string | null;
  /** What the server may remove now. */
  heldBytes: number | null;
}

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const { environment, signal, output } = context;
  const configuration = await context.configuration();
  const cluster = configuredCluster(configuration, name);
  const dryRun = flagOption(options, 'dryRun');
  const { slot } = cluster.wal;
  const receiver = await readReceiverStatus(configuration.stateDirectory, name);
  const released: Released[] = [];
  const failures: { server: string; error: HoldfastError }[] = [];
  for (const reference of cluster.servers) {
    const url = await resolveSecret(reference, secretSources({ configuration, environment }));
    try {
      await using connection = await connect(url, { signal, applicationName: 'holdfast wal release' });
      released.push(
        await release(connection, slot, dryRun, receiver?.alive === true ? receiver.pid : undefined),
      );
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      failures.push({ server: describeTarget(parseConnectionTarget(url)), error });
    }
  }
  output.result(
    {
      cluster: name,
      slot,
      dryRun,
      servers: released,
      failed: failures.map(({ server, error }) => ({ server, code: error.code, message: error.message })),
    },
    () => released.map((one) => releasedText(one)).join('\n'),
  );
  const [failure, ...others] = failures;
  if (failure === undefined) {
    if (!dryRun && cluster.wal.mode === 'stream') {
      output.note(
        `cluster ${name} is still configured to stream: "holdfast wal receive ${name}" would make the slot again`,
      );
    }
    return;
  }
  for (const { error } of others) output.warn(error.message);
  throw failure.error;
}

async function release(
  connection: Connection,
  name: string,
  dryRun: boolean,
  receiverPid: number | undefined,
): Promise<Released> {
  const { server } = connection;
  const facts = await inspectWal(connection, name);
  const { slot } = facts;
  const about = {
    server,
    slot: name,
    restartLsn: slot?.restartLsn === undefined ? null : formatLsn(slot.restartLsn),
    heldBytes: slot?.heldBytes === undefined ? null : Number(slot.heldBytes),
  };
  if (slot === undefined) return { ...about, outcome: 'absent' };
  if (slot.type !== 'physical') {
    throw new HoldfastError(
      'server-setting',
      `the slot "${name}" on ${server} is a logical one, and so not Holdfast's`,
      {
        hint: 'give wal.slot the name of a slot of its own',
      },
    );
  }
  if (slot.active) throw held(server, name, facts, receiverPid);
  if (dryRun) return { ...about, outcome: 'would-drop' };
  try {
    await connection.query('SELECT pg_drop_replication_slot($1)', [name]);
  } catch (error) {
    const state = error instanceof HoldfastError ? error.context['sqlState'] : undefined;
    // Somebody else dropped it, or took it, since it was looked at.
    if (state === '42704') return { ...about, outcome: 'absent' };
    if (state === '55006') throw held(server, name, await inspectWal(connection, name), receiverPid);
    throw error;
  }
  return { ...about, outcome: 'dropped' };
}

function held(
  server: string,
  name: string,
  { slot, holder }: WalFacts,
  receiverPid: number | undefined,
): HoldfastError {
  const from = holder?.clientAddress === undefined ? 'on that host' : `from ${holder.clientAddress}`;
  const who =
    holder === undefined
      ? `process ${slot?.activePid ?? 'unknown'} of the server`
      : `${holder.applicationName === '' ? holder.user : holder.applicationName} (process ${holder.pid} of the server, ${from})`;
  return new HoldfastError(
    'receiver-running',
    `the slot "${name}" on ${server} is in use by ${who}; nothing was dropped there`,
    {
      hint:
        receiverPid === undefined
          ? 'stop "holdfast wal receive" where it runs, then run this again'
          : `stop "holdfast wal receive" on this host (process ${receiverPid}), then run this again`,
      context: { server, slot: name, pid: slot?.activePid ?? null },
    },
  );
}

function releasedText({ server, slot, outcome, restartLsn, heldBytes }: Released): string {
  const kept =
    heldBytes === null
      ? ''
      : `, which kept ${formatSize(heldBytes)} of WAL${restartLsn === null ? '' : ` from ${restartLsn} on`}`;
  switch (outcome) {
    case 'absent':
      return `${server} has no slot "${slot}"`;
    case 'would-drop':
      return `${server}: would drop the slot "${slot}"${kept}`;
    case 'dropped':
      return `${server}: dropped the slot "${slot}"${kept}; the server removes it at its next checkpoint`;
    default:
      return outcome satisfies never;
  }
}
