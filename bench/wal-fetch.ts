/**
 * Recovery of a server through `wal fetch` and through pgBackRest's asynchronous `archive-get`, taking turns: wall clock
 * from the start of the server until it has replayed the last of the segments. Prints JSON. Needs PostgreSQL 15,
 * pgbackrest and a build. In the environment:
 *
 * - HOLDFAST_BENCH_SEGMENTS: segments of 16 MiB full of pgbench's WAL (200)
 * - HOLDFAST_BENCH_REPEAT: recoveries with each tool (3)
 * - HOLDFAST_BENCH_SCALE: pgbench's scale (20)
 */
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { connect } from '../src/postgres/connection.ts';
import { startInstance } from '../src/postgres/instance.ts';
import { archiveWith, type Lab, type LabServer, withLab, withServer } from './lab.ts';
import { describeMachine } from './machine.ts';
import { pgbench } from './rounds.ts';
import { median } from './statistics.ts';
import { holdfastTool, pgbackrestTool, type Tool } from './tools.ts';
import { GATHERING, gatherWal } from './waiting-wal.ts';

const SEGMENTS = numberFrom('HOLDFAST_BENCH_SEGMENTS', 200);
const REPEAT = numberFrom('HOLDFAST_BENCH_REPEAT', 3);
const SCALE = numberFrom('HOLDFAST_BENCH_SCALE', 20);

/** Of the recovering server: as it comes, but for checkpoints, which would hit one run and not another. */
const RECOVERING = {
  shared_buffers: '256MB',
  max_wal_size: '64GB',
  checkpoint_timeout: '1h',
  archive_mode: 'off',
  autovacuum: 'off',
};

interface Contender {
  name: string;
  tool: Tool;
  restoreCommand: (dataDirectory: string) => string;
  /** Brings everything but the repository to its first state. */
  clear: () => Promise<unknown>;
}

const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopping.abort(new Error(`stopped by ${signal}`)));
}
const result = await withLab(stopping.signal, (line) => console.error(line), run);
console.log(JSON.stringify(result, undefined, 2));
process.exit(0);

async function run(lab: Lab): Promise<unknown> {
  // pg_basebackup waits until its WAL is archived.
  return withServer(lab, 'server', { ...GATHERING, archive_command: '/bin/true' }, async (server) => {
    await pgbench(lab, server, ['-i', '-q', '-s', `${SCALE}`]);
    const base = await coldCopy(lab, server);
    const names = await gatherWal(lab, server, SEGMENTS);
    lab.say(`${names.length} segments`);
    const label = await readFile(join(base, 'backup_label'), 'utf8');
    const start = /\(file ([0-9A-F]{24})\)/.exec(label)?.[1] ?? '';
    const contenders = await prepare(lab, server, start, names.at(-1) ?? '');
    const last = names.at(-1) ?? '';
    const [row] = await server.sql<{ lsn: string }>(
      // The end of the last segment, by PostgreSQL's own arithmetic.
      `SELECT ('0/0'::pg_lsn + (('x' || substr('${last}', 9, 8))::bit(32)::bigint * 256
               + ('x' || substr('${last}', 17, 8))::bit(32)::bigint) * 16777216 + 16777216 - 65536)::text AS lsn`,
    );
    const walls: Record<string, number[]> = {};
    for (let round = 0; round < REPEAT; round += 1) {
      const turns = round % 2 === 0 ? contenders : contenders.toReversed();
      for (const contender of turns) {
        const wallMs = await recover(lab, base, contender, row?.lsn ?? '');
        (walls[contender.name] ??= []).push(Math.round(wallMs));
        lab.say(`${contender.name}: ${(wallMs / 1000).toFixed(2)} s`);
      }
    }
    const [ours, theirs] = contenders.map(({ name }) => median(walls[name] ?? []));
    return {
      machine: await describeMachine(lab),
      segments: names.length,
      segmentBytes: 16 * 1024 * 1024,
      versions: Object.fromEntries(contenders.map(({ tool }) => [tool.name, tool.version])),
      wallMs: walls,
      ratio: ours === undefined || theirs === undefined ? null : Number((theirs / ours).toFixed(2)),
      goal: 1,
    };
  });
}

/** The data directory before the WAL, and without the files of a server that runs. */
async function coldCopy(lab: Lab, server: LabServer): Promise<string> {
  const base = await lab.fresh('base');
  await lab.run(join(lab.binaries.directory, 'pg_basebackup'), [
    '-d',
    server.url,
    '-D',
    base,
    '-X',
    'none',
    '-c',
    'fast',
  ]);
  await archiveWith(lab, server, GATHERING['archive_command'] ?? '');
  return base;
}

async function prepare(lab: Lab, server: LabServer, first: string, last: string): Promise<Contender[]> {
  const holdfast = await holdfastTool(lab, server, 'holdfast');
  const pgbackrest = await pgbackrestTool(lab, server, 'pgbackrest');
  const spool = join(lab.scratch, 'pgbackrest-spool');
  const wal = join(server.dataDirectory, 'pg_wal');
  const names = (await readdir(wal)).filter((name) => /^[0-9A-F]{24}$/.test(name));
  for (const tool of [holdfast, pgbackrest]) {
    await tool.reset();
    for (const name of names.toSorted()) {
      if (name >= first && name <= last) await tool.walPush(join(wal, name));
    }
    lab.say(`${tool.name}: everything archived`);
  }
  return [
    {
      name: 'holdfast',
      tool: holdfast,
      restoreCommand: () => `${lab.launcher} wal fetch %f %p --config ${lab.scratch}/holdfast.yaml`,
      clear: async () => undefined,
    },
    {
      name: 'pgbackrest',
      tool: pgbackrest,
      restoreCommand: (dataDirectory) =>
        `pgbackrest --config=${lab.scratch}/pgbackrest.conf --stanza=bench --pg1-path=${dataDirectory} --archive-async archive-get %f %p`,
      clear: () => lab.run('sh', ['-c', `rm -rf ${spool}/*`]),
    },
  ];
}

async function recover(lab: Lab, base: string, contender: Contender, lsn: string): Promise<number> {
  const { binaries, user, signal, environment } = lab;
  const dataDirectory = await lab.fresh('recovering');
  await contender.clear();
  await lab.run('cp', ['-a', `${base}/.`, dataDirectory]);
  await lab.run('touch', [join(dataDirectory, 'standby.signal')]);
  await lab.run('sync', [], { onlyTime: true });
  const socketDirectory = await lab.fresh('recovering-run');
  const startedMs = performance.now();
  const instance = await startInstance({
    binaries,
    dataDirectory,
    user,
    socketDirectory,
    settings: { ...RECOVERING, restore_command: contender.restoreCommand(dataDirectory) },
    env: { ...environment },
    deadlineMs: 600_000,
    signal,
  });
  try {
    await using connection = await connect(instance.url({ database: 'postgres' }), { signal });
    for (;;) {
      const [row] = await connection.query<{ done: boolean; at: string }>(
        `SELECT pg_last_wal_replay_lsn() >= '${lsn}' AS done, pg_last_wal_replay_lsn()::text AS at`,
      );
      if (row?.done === true) return performance.now() - startedMs;
      await sleep(20, undefined, { signal });
    }
  } finally {
    await instance.stop('immediate');
    await rm(dataDirectory, { recursive: true, force: true, maxRetries: 5 });
  }
}

function numberFrom(name: string, standard: number): number {
  const value = Number(process.env[name] ?? standard);
  if (!Number.isInteger(value) || value < 1) throw new Error(`${name} must be a positive number`);
  return value;
}
