import { join } from 'node:path';

import { archiveWith, bytesBelow, type Lab, type LabServer, settle } from './lab.ts';
import type { Measured } from './measure.ts';
import type { Holdfast, Tool } from './tools.ts';

/** What one step took of one tool in one round. */
export interface StepResult extends Measured {
  /** What the repository grew by, with the WAL and without it. */
  allBytes: number;
  backupBytes: number;
  /** What the tool itself says it stored. */
  reportedBytes: number;
}

export const STEPS = {
  firstHoldfast: 'Holdfast: first backup',
  firstPgbackrest: 'pgBackRest: full',
  sameHoldfast: 'Holdfast: backup, nothing changed',
  sameFull: 'pgBackRest: full, nothing changed',
  sameIncremental: 'pgBackRest: incremental, nothing changed',
  changedHoldfast: 'Holdfast: backup after 20,000 transactions',
  changedIncremental: 'pgBackRest: incremental after 20,000 transactions',
  restoreHoldfast: 'Holdfast: restore',
  restorePgbackrest: 'pgBackRest: restore',
  floorRead: 'floor: pg_basebackup -Ft, thrown away',
  floorRestore: 'floor: cp -r and sync',
} as const;
export type Step = keyof typeof STEPS;

export type Results = Record<Step, StepResult[]>;

/** Nobody's WAL is measured while the transactions run. */
const ARCHIVE_NOTHING = '/bin/true';
const CLIENTS = 4;

/** Runs every step with both tools `repetitions` times, the order of the tools alternating. */
export async function runRounds(
  lab: Lab,
  server: LabServer,
  tools: { holdfast: Holdfast; pgbackrest: Tool },
  repetitions: number,
): Promise<Results> {
  const results = Object.fromEntries(Object.keys(STEPS).map((step) => [step, []])) as unknown as Results;
  for (let round = 0; round < repetitions; round += 1) {
    await runRound({ lab, server, ...tools, results, holdfastFirst: round % 2 === 0 });
  }
  return results;
}

interface Round {
  lab: Lab;
  server: LabServer;
  holdfast: Holdfast;
  pgbackrest: Tool;
  results: Results;
  holdfastFirst: boolean;
}

async function runRound(round: Round): Promise<void> {
  const { lab, server, holdfast, pgbackrest } = round;
  const alternate = async (ours: () => Promise<void>, theirs: () => Promise<void>): Promise<void> => {
    for (const turn of round.holdfastFirst ? [ours, theirs] : [theirs, ours]) await turn();
  };
  const first = async (tool: Tool, step: Step): Promise<void> => {
    await tool.reset();
    await backup(round, tool, step, 'full');
  };
  await alternate(
    () => first(holdfast, 'firstHoldfast'),
    () => first(pgbackrest, 'firstPgbackrest'),
  );
  await alternate(
    () => backup(round, holdfast, 'sameHoldfast', 'incremental'),
    async () => {
      await backup(round, pgbackrest, 'sameIncremental', 'incremental');
      await backup(round, pgbackrest, 'sameFull', 'full');
    },
  );
  await archiveWith(lab, server, ARCHIVE_NOTHING);
  await runTransactions(lab, server, 20_000);
  await alternate(
    () => backup(round, holdfast, 'changedHoldfast', 'incremental'),
    () => backup(round, pgbackrest, 'changedIncremental', 'incremental'),
  );
  await settle(lab, server);
  record(
    round,
    'floorRead',
    await lab.run(
      join(lab.binaries.directory, 'pg_basebackup'),
      ['-d', server.url, '-D', '-', '-Ft', '-X', 'none', '-c', 'fast'],
      { discard: true },
    ),
  );
  const contents: number[] = [];
  const restore = async (tool: Tool, step: Step): Promise<void> => {
    const directory = await lab.fresh('restored');
    await settle(lab, server);
    record(round, step, await tool.restore(directory));
    contents.push(await bytesBelow(join(directory, 'base')));
  };
  await alternate(
    () => restore(holdfast, 'restoreHoldfast'),
    () => restore(pgbackrest, 'restorePgbackrest'),
  );
  if (contents[0] !== contents[1]) {
    throw new Error(`the restored data differ in size: ${contents.join(' and ')} bytes`);
  }
  await settle(lab, server);
  const copied = await lab.run('cp', ['-r', 'restored', 'copied']);
  const synced = await lab.run('sync', []);
  record(round, 'floorRestore', {
    ...copied,
    wallMs: copied.wallMs + synced.wallMs,
    cpuMs: copied.cpuMs + synced.cpuMs,
  });
  await lab.run('rm', ['-r', 'restored', 'copied']);
}

async function backup(round: Round, tool: Tool, step: Step, kind: 'full' | 'incremental'): Promise<void> {
  const { lab, server } = round;
  await archiveWith(lab, server, tool.archiveCommand);
  await settle(lab, server);
  const before = await tool.stored();
  const measured = await tool.backup(kind);
  const after = await tool.stored();
  record(round, step, measured, {
    allBytes: after.allBytes - before.allBytes,
    backupBytes: after.backupBytes - before.backupBytes,
    reportedBytes: measured.reportedBytes,
  });
}

function record(
  { lab, results }: Round,
  step: Step,
  measured: Measured,
  bytes = { allBytes: 0, backupBytes: 0, reportedBytes: 0 },
): void {
  results[step].push({ ...measured, ...bytes });
  lab.say(`${STEPS[step]}: ${(measured.wallMs / 1000).toFixed(2)} s`);
}

/** pgbench's standard transaction, `count` times. */
export async function runTransactions(lab: Lab, server: LabServer, count: number): Promise<void> {
  await pgbench(lab, server, ['-n', '-c', `${CLIENTS}`, '-j', '2', '-t', `${count / CLIENTS}`]);
}

export async function pgbench(lab: Lab, server: LabServer, words: string[]): Promise<void> {
  await lab.run(join(lab.binaries.directory, 'pgbench'), [...words, 'postgres'], {
    environment: {
      ...lab.environment,
      PGHOST: server.instance.socketDirectory,
      PGPORT: `${server.instance.port}`,
      PGUSER: 'postgres',
    },
  });
}
