/**
 * `node bench/wal-loss.ts`: what is lost when a primary and its receiver are killed together (kill -9) at a random moment
 * under pgbench's load, again and again. The age of the recovery point is the time of the kill minus the time of the last
 * commit that the repository holds, found by decoding the WAL in it; a few times a real restore has to agree. Whatever had
 * been reported as flushed must be there. Every other time the load is held to 100 transactions a second: segments then
 * take minutes, and it is the tails that count. Prints one JSON object. Needs PostgreSQL 15 and a build (`npm run build`). In
 * the environment:
 *
 * - HOLDFAST_BENCH_TRIALS: kills (60)
 * - HOLDFAST_BENCH_RESTORES: after how many of them a restore is made (3)
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chown, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { connect } from '../src/postgres/connection.ts';
import { initDataDirectory, type Instance, startInstance } from '../src/postgres/instance.ts';
import { formatLsn, type Lsn, lsnOf, parseLsn } from '../src/postgres/lsn.ts';
import { parseWalSegmentName, segmentStart, walSegmentName } from '../src/postgres/wal-segment.ts';
import { createWalSummarizer } from '../src/postgres/wal-summary.ts';
import type { ClusterIdentity } from '../src/repository/layout.ts';
import { openRepository, type Repository } from '../src/repository/repository.ts';
import { chainTails, findTailChain, readTailChain } from '../src/repository/wal-tail.ts';
import { noneOpener, noneSealer } from '../src/seal/none.ts';
import { createLocalStorage } from '../src/storage/local.ts';
import { readReceiverStatus } from '../src/wal/receiver-status.ts';
import { findNewestWal } from '../src/wal/stored-end.ts';
import { type Lab, withLab } from './lab.ts';
import { describeMachine } from './machine.ts';
import { percentile } from './statistics.ts';

const CLUSTER = 'bench';
const SEGMENT_SIZE = 16 * 1024 * 1024;
const SCALE = 10;
const SETTINGS = {
  shared_buffers: '256MB',
  fsync: 'on',
  max_wal_size: '1GB',
  wal_level: 'replica',
  archive_mode: 'off',
};
/** Between the moment at which everything runs and the kill: two intervals of tails. */
const LEAST_MS = 1000;
const MOST_MS = 11_000;
/** Transactions a second of the load that is held. */
const HELD_TO = 100;
const SAMPLE_EVERY_MS = 50;
const GOALS = { p50Seconds: 4, p99Seconds: 10, lostReported: 0 };

const trials = Number(process.env['HOLDFAST_BENCH_TRIALS'] ?? 60);
const restores = Math.min(trials, Number(process.env['HOLDFAST_BENCH_RESTORES'] ?? 3));

interface Sample {
  /** Rows up to this one were committed before `lsn`. */
  row: number;
  lsn: Lsn;
  /** What the server was told to be flushed, by then. */
  flushed: Lsn | undefined;
}

interface Trial {
  load: 'full' | 'held';
  ranMs: number;
  ageMs: number;
  storedLsn: string;
  /** The highest position that the server or the receiver's status had been told to be flushed. */
  reportedLsn: string;
  lostReportedBytes: number;
  restored?: { rows: number; reportedRow: number; missingRows: number; isSameEnd: boolean };
}

interface Bench {
  lab: Lab;
  dataDirectory: string;
  socketDirectory: string;
  stateDirectory: string;
  configFile: string;
  repository: Repository;
  identity: ClusterIdentity;
}

const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopping.abort(new Error(`stopped by ${signal}`)));
}
const say = (line: string): void => console.error(`[${Math.round(performance.now() / 1000)} s] ${line}`);
console.log(JSON.stringify(await withLab(stopping.signal, say, measureAll), undefined, 2));

async function measureAll(lab: Lab): Promise<object> {
  const machine = await describeMachine(lab);
  const bench = await prepare(lab);
  const results: Trial[] = [];
  for (let number = 1; number <= trials; number += 1) {
    const isRestored =
      restores > 0 &&
      Math.floor((number * restores) / trials) > Math.floor(((number - 1) * restores) / trials);
    const trial = await runTrial(bench, number % 2 === 0 ? 'held' : 'full', isRestored);
    results.push(trial);
    lab.say(
      `${number}: ${trial.load} load, killed after ${(trial.ranMs / 1000).toFixed(1)} s, last commit ${(trial.ageMs / 1000).toFixed(2)} s old` +
        (trial.lostReportedBytes > 0 ? `, ${trial.lostReportedBytes} BYTES REPORTED AND LOST` : '') +
        (trial.restored === undefined ? '' : `, restored: ${JSON.stringify(trial.restored)}`),
    );
  }
  const agesOf = (some: readonly Trial[]): object => {
    const ages = some.map(({ ageMs }) => ageMs / 1000);
    return { p50: percentile(ages, 0.5), p99: percentile(ages, 0.99), max: Math.max(...ages) };
  };
  return {
    what: `${trials} kills of primary and receiver under pgbench's load, tailInterval 5s`,
    machine,
    postgresql: lab.binaries.version,
    ageSeconds: agesOf(results),
    ageSecondsFullLoad: agesOf(results.filter(({ load }) => load === 'full')),
    ageSecondsHeldLoad: agesOf(results.filter(({ load }) => load === 'held')),
    lostReported: results.filter(({ lostReportedBytes }) => lostReportedBytes > 0).length,
    restores: results.filter(({ restored }) => restored !== undefined).length,
    restoresWrong: results.filter(
      ({ restored }) => restored !== undefined && (restored.missingRows > 0 || !restored.isSameEnd),
    ).length,
    goals: GOALS,
    trials: results,
  };
}

/** A cluster with pgbench's tables, a repository in clear and a base backup. Nothing runs when it resolves. */
async function prepare(lab: Lab): Promise<Bench> {
  const { binaries, user, signal } = lab;
  const dataDirectory = await lab.fresh('cluster');
  await initDataDirectory({ binaries, dataDirectory, user, checksums: true, signal });
  const settings = Object.entries(SETTINGS).map(([key, value]) => `${key} = '${value}'\n`);
  await writeFile(join(dataDirectory, 'postgresql.conf'), settings.join(''), { flag: 'a' });
  const socketDirectory = await lab.fresh('run');
  const root = await lab.fresh('repository');
  const stateDirectory = await lab.fresh('state');
  const configFile = join(lab.scratch, 'holdfast.yaml');
  const bench = { lab, dataDirectory, socketDirectory, stateDirectory, configFile };
  const instance = await start(bench);
  const url = instance.url({ database: 'postgres' });
  await writeFile(
    configFile,
    `clusters:
  ${CLUSTER}:
    servers: ['${url}']
    wal: { mode: stream }
repositories:
  local: { url: 'file://${root}' }
encryption: { recipients: [] }
state: '${stateDirectory}'
`,
  );
  await holdfast(bench, 'init', '--yes', '--quiet').catch(() => undefined);
  await lab.run(
    join(binaries.directory, 'pgbench'),
    ['-i', '-q', '-s', `${SCALE}`, 'postgres'],
    loadEnvironment(bench),
  );
  await using connection = await connect(url, { signal });
  await connection.query(
    'CREATE TABLE marks (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())',
  );
  const [row] = await connection.query<{ id: string }>(
    'SELECT system_identifier::text AS id FROM pg_control_system()',
  );
  await chown(configFile, user?.uid ?? process.getuid?.() ?? 0, user?.gid ?? process.getgid?.() ?? 0);
  const receiver = startReceiver(bench);
  try {
    await untilFlushed(bench, await flushPosition(url));
    await holdfast(bench, 'backup', 'base', CLUSTER, '--quiet');
  } finally {
    await receiver.kill();
    await instance.stop('fast');
  }
  const keys = { sealer: noneSealer, opener: async () => noneOpener };
  const repository = await openRepository('local', createLocalStorage(root), keys);
  return { ...bench, repository, identity: { cluster: CLUSTER, systemIdentifier: row?.id ?? '' } };
}

async function runTrial(bench: Bench, rate: Trial['load'], isRestored: boolean): Promise<Trial> {
  const { lab } = bench;
  const instance = await start(bench);
  const url = instance.url({ database: 'postgres' });
  const receiver = startReceiver(bench);
  const load = [
    startLoad(bench, [
      '-c',
      '4',
      '-j',
      '2',
      '-b',
      'tpcb-like',
      ...(rate === 'full' ? [] : ['-R', `${HELD_TO}`]),
    ]),
    startLoad(bench, ['-c', '1', '-f', await marksScript(bench)]),
  ];
  const samples: Sample[] = [];
  try {
    await untilFlushed(bench, await flushPosition(url));
    const sampling = sampleInto(samples, url);
    const ranMs = LEAST_MS + Math.random() * (MOST_MS - LEAST_MS);
    await sleep(ranMs, undefined, { signal: lab.signal });
    const killedAtMs = Date.now();
    await Promise.all([receiver.kill(), instance.kill()]);
    await Promise.all(load.map(ended));
    await sampling;
    const stored = await storedEnd(bench);
    const status = await readReceiverStatus(bench.stateDirectory, CLUSTER);
    const told = samples.flatMap(({ flushed }) => (flushed === undefined ? [] : [flushed]));
    if (typeof status?.flushedLsn === 'string') told.push(parseLsn(status.flushedLsn));
    const reported = told.reduce((most, lsn) => (lsn > most ? lsn : most), lsnOf(0n));
    const trial: Trial = {
      load: rate,
      ranMs,
      ageMs: killedAtMs - Number(stored.commitTime) / 1000,
      storedLsn: formatLsn(stored.lsn),
      reportedLsn: formatLsn(reported),
      lostReportedBytes: reported > stored.lsn ? Number(reported - stored.lsn) : 0,
    };
    if (isRestored) trial.restored = await restoreAndCompare(bench, stored.commitTime, samples, reported);
    return trial;
  } finally {
    for (const child of load) child.kill('SIGKILL');
    await receiver.kill();
    await instance.stop('immediate');
  }
}

/** Up to where the repository holds the WAL, and the last commit in it, both read from the WAL itself. */
async function storedEnd({ repository, identity }: Bench): Promise<{ lsn: Lsn; commitTime: bigint }> {
  const newest = await findNewestWal(repository, identity, { segmentSize: SEGMENT_SIZE });
  if (newest === undefined) throw new Error('the repository holds no wal');
  const next =
    newest.segment === undefined
      ? undefined
      : parseWalSegmentName(newest.segment, SEGMENT_SIZE).segmentNumber + 1n;
  const name = next === undefined ? undefined : walSegmentName(newest.timeline, next, SEGMENT_SIZE);
  const chain = name && (await findTailChain(repository, identity, name));
  if (next === undefined || chain === undefined || chainTails(chain.tails) === undefined) {
    return { lsn: newest.lsn, commitTime: newest.lastCommitTime ?? 0n };
  }
  const start = segmentStart(next, SEGMENT_SIZE);
  const summarizer = createWalSummarizer({ start, segmentSize: SEGMENT_SIZE, partial: true });
  for await (const bytes of readTailChain(repository, chain)) summarizer.push(bytes);
  const end = parseLsn(summarizer.finish().endLsn);
  // What was reported may end within a record; all of its bytes are there.
  const lsn = lsnOf(start + BigInt(chain.end));
  if (lsn < end) throw new Error('the tails end before the records in them');
  return { lsn, commitTime: summarizer.lastCommitTime() ?? newest.lastCommitTime ?? 0n };
}

/** A real restore to the last record; it must have every row that had been committed before what was reported. */
async function restoreAndCompare(
  bench: Bench,
  lastCommit: bigint,
  samples: readonly Sample[],
  reported: Lsn,
): Promise<NonNullable<Trial['restored']>> {
  const { lab } = bench;
  const to = await lab.fresh('restored');
  const { stdout } = await holdfast(
    bench,
    'restore',
    'base',
    CLUSTER,
    '--to',
    to,
    '--start',
    '--json',
    '--quiet',
  );
  const result = JSON.parse(stdout.trimEnd().split('\n').at(-1) ?? '') as {
    server: { url: string };
    reached: { lastCommitTime: string };
  };
  const reportedRow = samples.reduce((most, { row, lsn }) => (lsn <= reported && row > most ? row : most), 0);
  const rowsOf = async (url: string, most: number): Promise<{ rows: number; sum: string }> => {
    await using connection = await connect(url, { signal: lab.signal });
    const [row] = await connection.query<{ rows: string; sum: string }>(
      `SELECT count(*)::text AS rows, coalesce(sum(id), 0)::text AS sum FROM marks WHERE id <= ${most}`,
    );
    return { rows: Number(row?.rows), sum: row?.sum ?? '' };
  };
  const restoredRows = await rowsOf(result.server.url, reportedRow);
  const everything = await rowsOf(result.server.url, Number.MAX_SAFE_INTEGER);
  await lab.run(join(lab.binaries.directory, 'pg_ctl'), ['stop', '-m', 'immediate', '-D', to]);
  await rm(to, { recursive: true, force: true, maxRetries: 5 });
  // The primary itself recovers from the kill: it has everything that was ever committed.
  const instance = await start(bench);
  const committed = await rowsOf(instance.url({ database: 'postgres' }), reportedRow);
  await instance.stop('fast');
  return {
    rows: everything.rows,
    reportedRow,
    missingRows:
      committed.sum === restoredRows.sum
        ? committed.rows - restoredRows.rows
        : Math.max(1, committed.rows - restoredRows.rows),
    isSameEnd: BigInt(Date.parse(result.reached.lastCommitTime)) === lastCommit / 1000n,
  };
}

/** Asks again and again, until the server is gone, what is committed and what it was told to be flushed. */
async function sampleInto(samples: Sample[], url: string): Promise<void> {
  try {
    await using connection = await connect(url);
    for (;;) {
      const [row] = await connection.query<{ row: string; lsn: string; flushed: string | null }>(
        `SELECT coalesce(max(id), 0)::text AS row, pg_current_wal_flush_lsn()::text AS lsn,
           (SELECT max(flush_lsn)::text FROM pg_stat_replication WHERE application_name = 'holdfast') AS flushed FROM marks`,
      );
      if (row === undefined) return;
      const { flushed } = row;
      samples.push({
        row: Number(row.row),
        lsn: parseLsn(row.lsn),
        flushed: flushed === null ? undefined : parseLsn(flushed),
      });
      await sleep(SAMPLE_EVERY_MS);
    }
  } catch {
    // It was killed.
  }
}

async function start({
  lab,
  dataDirectory,
  socketDirectory,
}: Pick<Bench, 'lab' | 'dataDirectory' | 'socketDirectory'>): Promise<Instance> {
  const { binaries, user, environment, signal } = lab;
  return startInstance({ binaries, dataDirectory, user, socketDirectory, env: { ...environment }, signal });
}

function holdfast(
  { lab, configFile }: Pick<Bench, 'lab' | 'configFile'>,
  ...words: string[]
): ReturnType<Lab['run']> {
  return lab.run(lab.launcher, [...words, '--config', configFile]);
}

function startReceiver({ lab, configFile }: Pick<Bench, 'lab' | 'configFile'>): { kill(): Promise<void> } {
  const child = spawnAs(
    lab,
    lab.launcher,
    ['wal', 'receive', CLUSTER, '--quiet', '--config', configFile],
    lab.environment,
  );
  return {
    async kill() {
      if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
        process.kill(-child.pid, 'SIGKILL');
      }
      await ended(child);
    },
  };
}

function startLoad(bench: Bench, words: readonly string[]): ChildProcess {
  const program = join(bench.lab.binaries.directory, 'pgbench');
  return spawnAs(
    bench.lab,
    program,
    ['-n', '-T', '3600', ...words, 'postgres'],
    loadEnvironment(bench).environment,
  );
}

function spawnAs(
  lab: Lab,
  program: string,
  words: readonly string[],
  env: Readonly<Record<string, string>>,
): ChildProcess {
  const { user, scratch } = lab;
  return spawn(program, words, {
    cwd: scratch,
    env,
    detached: true,
    stdio: 'ignore',
    ...(user !== undefined && { uid: user.uid, gid: user.gid }),
  });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  await new Promise((resolve) => child.once('exit', resolve));
}

async function marksScript({ lab }: Bench): Promise<string> {
  const path = join(lab.scratch, 'marks.sql');
  await writeFile(path, 'INSERT INTO marks DEFAULT VALUES;\n');
  return path;
}

function loadEnvironment({ lab, socketDirectory }: Pick<Bench, 'lab' | 'socketDirectory'>): {
  environment: Record<string, string>;
} {
  return { environment: { ...lab.environment, PGHOST: socketDirectory, PGUSER: 'postgres' } };
}

async function flushPosition(url: string): Promise<Lsn> {
  await using connection = await connect(url);
  const [row] = await connection.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
  return parseLsn(row?.lsn ?? '');
}

/** The receiver is up to date when it has stored what was there when it was started. */
async function untilFlushed(
  { lab, stateDirectory }: Pick<Bench, 'lab' | 'stateDirectory'>,
  lsn: Lsn,
): Promise<void> {
  const deadline = performance.now() + 120_000;
  for (;;) {
    const status = await readReceiverStatus(stateDirectory, CLUSTER);
    if (status?.alive === true && status.flushedLsn !== null && parseLsn(status.flushedLsn) >= lsn) return;
    if (performance.now() > deadline)
      throw new Error(`the receiver has not stored ${formatLsn(lsn)}: ${JSON.stringify(status)}`);
    await sleep(50, undefined, { signal: lab.signal });
  }
}
