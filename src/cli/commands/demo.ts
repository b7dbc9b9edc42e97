import { chown, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { formatDuration } from '../../config/durations.ts';
import { assert, HoldfastError } from '../../errors.ts';
import { findBinaries, type PostgresBinaries } from '../../postgres/binaries.ts';
import { connect } from '../../postgres/connection.ts';
import { initDataDirectory, startInstance, stopInstance } from '../../postgres/instance.ts';
import { makeServerDirectory, serverUser, type ServerUser } from '../../postgres/server-user.ts';
import { type CommandSpec, flagOption, type Invocation } from '../command.ts';
import { startProgram } from '../demo/background-program.ts';
import { type Program, runProgram } from '../demo/run-program.ts';
import { CREATE_SHOP, digestOrders, dropOrders, type OrdersDigest, trade } from '../demo/shop.ts';
import { launcherFor } from '../demo/stage-program.ts';
import type { Output } from '../output.ts';

export const demo: CommandSpec = {
  name: 'demo',
  group: 'Learn',
  summary: 'all of it on a scratch cluster, told as it happens',
  details: `Makes a PostgreSQL cluster in a scratch directory, streams its WAL, backs it up twice while it works, loses a
table to a wrong DROP, and restores the cluster to one transaction before. Leaves nothing running and nothing
behind. Needs PostgreSQL's server programs: the machine's, else those that came with "npm ci".`,
  arguments: [],
  options: [{ flags: '--keep', summary: 'keep the scratch directory (servers are stopped all the same)' }],
  examples: [{ command: 'holdfast demo', does: 'takes well under two minutes' }],
  run,
};

/** What "restore base --start --json" ends with, as far as the demonstration uses it. */
interface RestoreResult {
  backup: string;
  dataDirectory: string;
  reached: { lsn: string; timeline: number; lastCommitTime: string | null };
  server: { url: string; socketDirectory: string };
}

async function run({ options, context }: Invocation): Promise<void> {
  const startedMs = performance.now();
  const { output, signal, environment } = context;
  const user = await serverUser();
  const binaries = await findBinaries({ user });
  const scratch = await makeServerDirectory(user, 'holdfast-demo-');
  const source = join(scratch, 'cluster');
  const restored = join(scratch, 'restored');
  try {
    const program: Program = {
      launcher: await launcherFor(user, scratch),
      directory: scratch,
      user,
      environment: environmentOf(environment, binaries),
      signal,
    };
    const result = await tell({ output, binaries, scratch, source, restored, user, program, signal });
    const elapsed = formatDuration(performance.now() - startedMs);
    output.result({ ...result, elapsedMs: Math.round(performance.now() - startedMs) }, () =>
      [
        '',
        `Restored   the whole cluster, table "orders" with all ${result.rows} rows, from backup ${result.backup}`,
        `To         LSN ${result.lsn}, last commit ${result.lastCommitTime ?? 'unknown'}: one transaction before the DROP (xid ${result.xid})`,
        `Took       ${formatDuration(result.restoreMs)} from the command to a server that answers; the whole demonstration ${elapsed}`,
        `Checked    every block against its hash, every WAL segment against its own; the reached LSN, timeline and last`,
        `           commit against the plan's; and "orders" against its digest from before the DROP: ${result.digest}`,
      ].join('\n'),
    );
  } finally {
    await stopInstance(restored, 'immediate').catch(() => undefined);
    await stopInstance(source, 'immediate').catch(() => undefined);
    if (flagOption(options, 'keep')) output.note(`kept: ${scratch}`);
    else await rm(scratch, { recursive: true, force: true });
  }
}

interface Stage {
  output: Output;
  binaries: PostgresBinaries;
  scratch: string;
  source: string;
  restored: string;
  user: ServerUser | undefined;
  program: Program;
  signal: AbortSignal;
}

interface Ending {
  backup: string;
  lsn: string;
  timeline: number;
  lastCommitTime: string | null;
  xid: string;
  rows: number;
  digest: string;
  restoreMs: number;
}

async function tell(stage: Stage): Promise<Ending> {
  const { output, binaries, scratch, source, user, signal } = stage;
  const say = (line: string): void => output.note(`    ${line}`);
  const holdfast = (...words: string[]): Promise<string> => {
    output.note(
      `\n$ holdfast ${words
        .filter((word) => word !== '--json')
        .map(shown)
        .join(' ')}`,
    );
    return runProgram(stage.program, words, say);
  };

  output.note(
    `A PostgreSQL ${binaries.version} cluster (${originOf(binaries)}) in ${scratch}, with a small shop in it: 200,000 orders.`,
  );
  await initDataDirectory({ binaries, dataDirectory: source, user, checksums: true });
  const sockets = join(scratch, 'run');
  await mkdir(sockets);
  if (user !== undefined) await chown(sockets, user.uid, user.gid);
  const server = await startInstance({
    binaries,
    dataDirectory: source,
    user,
    socketDirectory: sockets,
    signal,
  });
  const url = server.url({ database: 'postgres' });

  output.note('\nSet up: write a configuration, make the repository, see what the server needs.');
  const prepared = JSON.parse(
    await initialize(stage, [
      'init',
      '--yes',
      '--wal',
      'stream',
      '--cluster',
      'shop',
      '--server',
      url,
      '--repository',
      `local=file://${join(scratch, 'repository')}`,
      '--state',
      join(scratch, 'state'),
    ]),
  ) as { servers: { settings: string }[] };
  const settings = (prepared.servers[0]?.settings ?? '').split('\n').filter((line) => line !== '');
  if (settings.length > 0) {
    output.note('What it asks for:');
    await using database = await connect(url, { signal });
    for (const statement of settings) {
      say(statement);
      await database.query(statement);
    }
  }

  output.note('\nReceive WAL from now on: this goes on beside everything that follows.');
  output.note('\n$ holdfast wal receive shop &');
  await using receiver = await startProgram(stage.program, ['wal', 'receive', 'shop'], say, (line) =>
    line.startsWith('streaming from'),
  );
  await using shop = await connect(url, { signal });
  for (const statement of CREATE_SHOP) await shop.query(statement);
  await holdfast('backup', 'base', 'shop');

  output.note(
    '\nThe shop goes on: 2,000 transactions. Then the next backup: complete, for the price of what changed.',
  );
  await trade(shop, 2000);
  await holdfast('backup', 'base', 'shop');
  await holdfast('list', 'shop');

  output.note('\nMore business, and then a migration goes wrong: DROP TABLE orders.');
  await trade(shop, 500);
  const before = await digestOrders(shop);
  const xid = await dropOrders(shop);
  say(`transaction ${xid} dropped ${before.orders} orders; nobody has noticed yet`);
  await shop.query(
    "INSERT INTO customers SELECT n, 'customer ' || n, now() FROM generate_series(5001, 5100) AS n",
  );
  const storedMs = await waitUntilStored(shop);
  output.note(
    `The last commit was in the repository ${(storedMs / 1000).toFixed(1)} s later, though its WAL segment is far from full:`,
  );
  await holdfast('wal', 'status', 'shop');
  await holdfast('window', 'shop');

  output.note(
    '\nBack to one transaction before, beside the cluster that runs on. First the plan, then the restore.',
  );
  const target = [
    'restore',
    'base',
    'shop',
    '--to',
    stage.restored,
    '--target-xid',
    xid,
    '--target-exclusive',
  ];
  await holdfast(...target, '--dry-run');
  const restoreStartedMs = performance.now();
  const result = lastJsonLine(await holdfast(...target, '--start', '--json'));
  const restoreMs = performance.now() - restoreStartedMs;
  const after = await digestOfRestored(result, signal);
  if (after.orders !== before.orders || after.digest !== before.digest) {
    throw new HoldfastError(
      'restore-incomplete',
      `the restored table has ${after.orders} rows with digest ${after.digest}, the lost one had ${before.orders} with ${before.digest}`,
    );
  }
  await stopInstance(stage.restored, 'fast');
  await rm(result.server.socketDirectory, { recursive: true, force: true });
  await receiver.stop();
  await server.stop('fast');
  const { reached } = result;
  return { backup: result.backup, ...reached, xid, rows: after.orders, digest: after.digest, restoreMs };
}

/** `init` ends with a check, which has to fail here: the server is not set up yet. Its answer is there all the same. */
async function initialize(stage: Stage, words: string[]): Promise<string> {
  stage.output.note(`\n$ holdfast ${words.map(shown).join(' ')}`);
  return runProgram(stage.program, [...words, '--json', '--quiet'], () => undefined, [0, 3]);
}

/** Milliseconds until the receiver has told the server that everything written so far is safe. */
async function waitUntilStored(shop: { query: (text: string) => Promise<object[]> }): Promise<number> {
  const startedMs = performance.now();
  const [row] = (await shop.query('SELECT pg_current_wal_lsn()::text AS lsn')) as { lsn: string }[];
  const text = `SELECT restart_lsn >= '${row?.lsn ?? '0/0'}' AS stored FROM pg_replication_slots WHERE slot_name = 'holdfast'`;
  for (;;) {
    const [slot] = (await shop.query(text)) as { stored: boolean }[];
    if (slot?.stored === true) return performance.now() - startedMs;
    assert(performance.now() - startedMs < 30_000, 'the WAL was not stored within 30 s');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function digestOfRestored(result: RestoreResult, signal: AbortSignal): Promise<OrdersDigest> {
  await using database = await connect(result.server.url, { signal });
  return await digestOrders(database);
}

function lastJsonLine(printed: string): RestoreResult {
  const line = printed.trimEnd().split('\n').at(-1) ?? '';
  return JSON.parse(line) as RestoreResult;
}

/**
 * The user's own PG* variables must not lead the demonstration to another server; and a copy of this program, made where
 * the checkout cannot be reached, finds the same PostgreSQL.
 */
function environmentOf(
  environment: Readonly<Record<string, string | undefined>>,
  binaries: PostgresBinaries,
): Record<string, string | undefined> {
  const kept = Object.entries(environment).filter(([name]) => !name.startsWith('PG'));
  return { ...Object.fromEntries(kept), PATH: `${binaries.directory}:${environment['PATH'] ?? ''}` };
}

function originOf(binaries: PostgresBinaries): string {
  return binaries.origin === 'machine' ? 'the programs of this machine' : 'the programs that came with npm';
}

function shown(word: string): string {
  return /^[\w./:=@%+,-]+$/.test(word) ? word : `'${word}'`;
}
