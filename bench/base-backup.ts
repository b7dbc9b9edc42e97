/**
 * `npm run bench`: backups, restores and WAL commands side by side with pgBackRest, on a scratch cluster. Prints the
 * goals and writes docs/performance.md; a run with less than the defaults only prints. Needs PostgreSQL 15 and
 * pgbackrest; as root, servers and both tools run as the user postgres. In the environment:
 *
 * - HOLDFAST_BENCH_SCALE: pgbench's scale (100)
 * - HOLDFAST_BENCH_REPEAT: rounds (3)
 * - HOLDFAST_BENCH_FILES: relations of the cluster with many files (200000; 0 leaves it out)
 * - HOLDFAST_BENCH_BLOCKS: 0 leaves out the sweep of block sizes
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { sweepBlockSizes } from './block-sizes.ts';
import { judge } from './goals.ts';
import { archiveWith, type Lab, withLab, withServer } from './lab.ts';
import { describeMachine } from './machine.ts';
import { measureManyFiles } from './many-files.ts';
import { performancePage, type Report, verdictTable } from './page.ts';
import { pgbench, runRounds } from './rounds.ts';
import { type Holdfast, holdfastTool, pgbackrestTool } from './tools.ts';
import { measureWal } from './wal.ts';
import { walPartOf } from './wal-page.ts';

const DEFAULTS = { scale: 100, repetitions: 3, files: 200_000, blocks: 1 };
const asked = {
  scale: numberFrom('HOLDFAST_BENCH_SCALE', DEFAULTS.scale),
  repetitions: numberFrom('HOLDFAST_BENCH_REPEAT', DEFAULTS.repetitions),
  files: numberFrom('HOLDFAST_BENCH_FILES', DEFAULTS.files),
  blocks: numberFrom('HOLDFAST_BENCH_BLOCKS', DEFAULTS.blocks),
};

const SETTINGS = {
  shared_buffers: '256MB',
  fsync: 'on',
  autovacuum: 'off',
  archive_mode: 'on',
  archive_command: '/bin/true',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  wal_keep_size: '1GB',
};

const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopping.abort(new Error(`stopped by ${signal}`)));
}
const startedMs = performance.now();
try {
  const report = await withLab(stopping.signal, say, runBench);
  say(`done in ${Math.round((performance.now() - startedMs) / 1000)} s`);
  console.log(`\n${verdictTable(report.verdicts)}`);
  if ((Object.keys(DEFAULTS) as (keyof typeof DEFAULTS)[]).every((key) => asked[key] >= DEFAULTS[key])) {
    const page = join(import.meta.dirname, '..', 'docs', 'performance.md');
    await writeFile(page, performancePage(report) + walPartOf(await readFile(page, 'utf8')));
    say('docs/performance.md written');
  } else {
    console.log(performancePage(report));
    say('less than the defaults: docs/performance.md is left as it is');
  }
} catch (error) {
  if (!stopping.signal.aborted) throw error;
  say('stopped; nothing is left behind');
  process.exitCode = 130;
}

async function runBench(lab: Lab): Promise<Report> {
  const machine = await describeMachine(lab);
  const main = await withServer(lab, 'cluster', SETTINGS, async (server) => {
    await pgbench(lab, server, ['-i', '-q', '-s', `${asked.scale}`]);
    say(`pgbench at scale ${asked.scale} loaded`);
    const holdfast = await holdfastTool(lab, server, 'holdfast');
    const pgbackrest = await pgbackrestTool(lab, server, 'pgbackrest');
    const [database] = await server.sql<{ bytes: number }>(
      'SELECT sum(pg_database_size(oid))::float8 AS bytes FROM pg_database',
    );
    const results = await runRounds(lab, server, { holdfast, pgbackrest }, asked.repetitions);
    const wal = await measureWal(lab, server, { holdfast, pgbackrest });
    const otherCommands = [...wal.memory, ...(await measureOthers(holdfast))];
    for (const name of ['holdfast', 'pgbackrest']) await lab.fresh(name);
    const blockSizes = asked.blocks > 0 ? await sweepBlockSizes(lab, server) : [];
    await archiveWith(lab, server, '/bin/true');
    const versions = [
      `PostgreSQL ${lab.binaries.version}`,
      `Holdfast ${holdfast.version}, Node ${process.versions.node}`,
      `pgBackRest ${pgbackrest.version}`,
    ];
    return { results, wal, otherCommands, blockSizes, versions, databaseBytes: database?.bytes ?? 0 };
  });
  const manyFiles = asked.files > 0 ? await measureManyFiles(lab, asked.files) : undefined;
  const everything = { ...main, manyFiles };
  return {
    ...everything,
    date: new Date().toISOString().slice(0, 10),
    machine,
    scale: asked.scale,
    repetitions: asked.repetitions,
    verdicts: judge(everything),
  };
}

/** Memory of the commands that are not timed. */
async function measureOthers(holdfast: Holdfast): Promise<Report['otherCommands']> {
  const others: Report['otherCommands'][number][] = [];
  const add = async (name: string, words: string[]): Promise<void> => {
    others.push({ name, peakBytes: (await holdfast.command(...words)).peakBytes });
  };
  await add('list', ['list', 'bench']);
  await add('window', ['window', 'bench']);
  return others;
}

function numberFrom(variable: string, otherwise: number): number {
  const text = process.env[variable] ?? '';
  if (text === '') return otherwise;
  if (!/^\d+$/.test(text)) throw new Error(`${variable} is not a whole number: ${text}`);
  return Number(text);
}

function say(line: string): void {
  console.error(`[${Math.round((performance.now() - startedMs) / 1000)} s] ${line}`);
}
