/** `holdfast wal receive` as a process of its own, and what its repositories hold. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { HoldfastError } from '../../src/errors.ts';
import { type Lsn, lsnOf, parseLsn } from '../../src/postgres/lsn.ts';
import { type TimelineId, timelineOf } from '../../src/postgres/timeline.ts';
import { parseWalSegmentName, segmentStart, walSegmentName } from '../../src/postgres/wal-segment.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import { openRepository, type Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../../src/repository/wal-file.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { findTailChain, listTails, readTailChain } from '../../src/repository/wal-tail.ts';
import { noneOpener, noneSealer } from '../../src/seal/none.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { openTestRepository } from '../wal-lab.ts';
import { scratchDirectory, type TestCluster } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';

const MAX_BYTES = 64 * 2 ** 20;
export const SLOT = 'holdfast';

export interface ReceiverLabOptions {
  /** Of the servers, in any order. */
  urls: readonly string[];
  /** Default: one required repository `local`. */
  repositories?: readonly { name: string; required?: boolean; root?: string }[];
  tailInterval?: string;
}

export interface ReceiverStart {
  arguments?: readonly string[];
  /** Default: the lab's. Another one is like another host. */
  stateDirectory?: string;
  urls?: readonly string[];
}

export interface ReceiverProcess extends AsyncDisposable {
  readonly pid: number;
  readonly child: ChildProcess;
  /** What it printed so far, one object for each line of JSON. */
  readonly events: Record<string, unknown>[];
  readonly text: () => string;
  /** Its exit status; null after a signal. */
  readonly ended: Promise<number | null>;
  hasEnded(): boolean;
  /** Waits for an event that fits, also an earlier one; fails when the process ends. */
  event(kind: string, fits?: (event: Record<string, unknown>) => boolean): Promise<Record<string, unknown>>;
  kill(): Promise<void>;
  /** SIGTERM; its exit status and how long it took. */
  end(): Promise<{ status: number | null; ms: number }>;
}

export interface ReceiverLab extends AsyncDisposable {
  readonly directory: string;
  readonly stateDirectory: string;
  readonly roots: Readonly<Record<string, string>>;
  start(options?: ReceiverStart): Promise<ReceiverProcess>;
  repository(name?: string): Promise<Repository>;
  /** Runs another command with the configuration of the last receiver; its result. Fails unless it ends with 0. */
  holdfast(...words: string[]): Promise<Record<string, unknown>>;
  /** Makes repositories anew where they are not. */
  initialize(): Promise<void>;
}

export async function createReceiverLab(options: ReceiverLabOptions): Promise<ReceiverLab> {
  const { repositories = [{ name: 'local' }], tailInterval = '200ms' } = options;
  const directory = await scratchDirectory();
  const roots: Record<string, string> = {};
  const initialize = async (): Promise<void> => {
    for (const { name, root = join(directory, name) } of repositories) {
      roots[name] = root;
      await mkdir(root, { recursive: true });
      await openTestRepository(createLocalStorage(root), name);
    }
  };
  await initialize();
  const stateDirectory = join(directory, 'state');
  const launcher = await reachableLauncher();
  let count = 0;
  const started: ReceiverProcess[] = [];
  return {
    directory,
    stateDirectory,
    roots,
    initialize,
    async start({ arguments: words = [], stateDirectory: state = stateDirectory, urls = options.urls } = {}) {
      count += 1;
      const config = join(directory, `holdfast-${count}.yaml`);
      await writeFile(
        config,
        [
          'clusters:',
          '  app:',
          `    servers: [${urls.map((url) => `"${url}"`).join(', ')}]`,
          `    wal: { mode: stream, slot: ${SLOT}, tailInterval: ${tailInterval} }`,
          'repositories:',
          ...repositories.map(
            ({ name, required }) =>
              `  ${name}: { url: "file://${roots[name]}"${required === undefined ? '' : `, required: ${required}`} }`,
          ),
          `state: ${state}`,
          '',
        ].join('\n'),
      );
      const process_ = startProcess(launcher, [
        'wal',
        'receive',
        'app',
        '--config',
        config,
        '--json',
        ...words,
      ]);
      started.push(process_);
      return process_;
    },
    async holdfast(...words) {
      const config = join(directory, `holdfast-${count}.yaml`);
      await using other = startProcess(launcher, [...words, '--config', config, '--json']);
      assert.equal(await other.ended, 0, other.text());
      return other.events.at(-1) ?? {};
    },
    async repository(name = repositories[0]?.name ?? '') {
      const keys = { sealer: noneSealer, opener: async () => noneOpener };
      return openRepository(name, createLocalStorage(roots[name] ?? ''), keys);
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(started.map(async (one) => one.kill()));
    },
  };
}

/** Ended, at the latest, with this process. */
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

function startProcess(launcher: string, words: string[]): ReceiverProcess {
  const child = spawn(launcher, words, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, HOLDFAST_SOURCE: '1' },
  });
  running.add(child);
  const events: Record<string, unknown>[] = [];
  let text = '';
  let line = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
    const lines = `${line}${chunk}`.split('\n');
    line = lines.pop() ?? '';
    for (const one of lines) events.push(JSON.parse(one) as Record<string, unknown>);
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  let isOver = false;
  const ended = new Promise<number | null>((resolve) => {
    child.once('close', (status) => {
      isOver = true;
      running.delete(child);
      resolve(status);
    });
  });
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL');
    await ended;
  };
  return {
    pid: child.pid ?? 0,
    child,
    events,
    text: () => text,
    ended,
    hasEnded: () => isOver,
    async event(kind, fits = () => true) {
      let found: Record<string, unknown> | undefined;
      await eventually(
        `an event "${kind}"`,
        () => {
          found = events.find((one) => one['event'] === kind && fits(one));
          assert.ok(found !== undefined || !isOver, `the receiver ended: ${text}`);
          return found !== undefined;
        },
        () => text,
      );
      return found ?? {};
    },
    kill,
    async end() {
      const begin = performance.now();
      child.kill('SIGTERM');
      return { status: await ended, ms: performance.now() - begin };
    },
    [Symbol.asyncDispose]: kill,
  };
}

/** Polls; fails after `seconds`. */
export async function eventually(
  what: string,
  condition: () => boolean | Promise<boolean>,
  more: () => string = () => '',
  seconds = 25,
): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, `not within ${seconds} s: ${what}\n${more()}`);
    await sleep(20);
  }
}

export async function identityOf(cluster: TestCluster): Promise<ClusterIdentity> {
  const [row] = await cluster.sql<{ id: string }>(
    'SELECT system_identifier::text AS id FROM pg_control_system()',
  );
  return { cluster: 'app', systemIdentifier: row?.id ?? '' };
}

export async function currentLsn(cluster: TestCluster): Promise<Lsn> {
  const [row] = await cluster.sql<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
  return parseLsn(row?.lsn ?? '');
}

/** What the server was told is flushed: the greater of the slot's position and what its sender shows. */
export async function flushedLsn(cluster: TestCluster): Promise<Lsn> {
  const [row] = await cluster.sql<{ lsn: string | null }>(
    `SELECT greatest((SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '${SLOT}'),
                     (SELECT max(flush_lsn) FROM pg_stat_replication WHERE application_name = '${SLOT}'))::text AS lsn`,
  );
  return parseLsn(row?.lsn ?? '0/0');
}

/** Waits until the server knows that everything it has now is stored. */
export async function untilFlushed(cluster: TestCluster, receiver: ReceiverProcess, lsn?: Lsn): Promise<Lsn> {
  const wanted = lsn ?? (await currentLsn(cluster));
  await eventually(
    'flushed',
    async () => {
      assert.ok(!receiver.hasEnded(), receiver.text());
      return (await flushedLsn(cluster)) >= wanted;
    },
    receiver.text,
  );
  return wanted;
}

export interface StoredWal {
  /** Names of complete segments, in order. */
  segments: string[];
  histories: string[];
  /** Up to where the timeline is stored without a hole, from its first segment on, tails included. */
  end: Lsn;
  bytes: Buffer;
  start: Lsn;
}

/**
 * The stored WAL of a timeline, every byte verified, and without a hole: fails where there is one before the newest
 * segment, or where tails lie behind one.
 */
export async function storedWal(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  timeline: TimelineId = timelineOf(1),
): Promise<StoredWal> {
  const segments: string[] = [];
  const histories: string[] = [];
  const parts: Buffer[] = [];
  let first: bigint | undefined;
  let next: bigint | undefined;
  for await (const entry of listWal(repository, identity)) {
    if (entry.kind === 'history') histories.push(entry.name);
    if (entry.timeline !== timeline || entry.kind !== 'segment') continue;
    const { segmentNumber } = parseWalSegmentName(entry.name, segmentSize);
    first ??= segmentNumber;
    if (next !== undefined) assert.equal(segmentNumber, next, `a hole before ${entry.name}`);
    next = segmentNumber + 1n;
    segments.push(entry.name);
    const header = await readWalHeader(repository, identity, entry.name);
    assert.ok(header !== undefined);
    parts.push(await readWholeWalFile(repository, header, MAX_BYTES));
  }
  const tailed = next ?? (await firstTail(repository, identity, segmentSize, timeline));
  if (tailed === undefined) {
    return { segments, histories, end: lsnOf(0n), start: lsnOf(0n), bytes: Buffer.alloc(0) };
  }
  const name = walSegmentName(timeline, tailed, segmentSize);
  const keys = async (): Promise<string> =>
    (await Array.fromAsync(listTails(repository, identity, { segment: name }), ({ key }) => key)).join();
  const before = await keys();
  const chain = await findTailChain(repository, identity, name);
  // Under a receiver that runs, it may have become a whole segment since the listing.
  const again = async (): Promise<StoredWal> => storedWal(repository, identity, segmentSize, timeline);
  try {
    if (chain !== undefined) parts.push(...(await Array.fromAsync(readTailChain(repository, chain))));
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'object-missing') return again();
    throw error;
  }
  // A listing is no snapshot: while tails are merged it may show neither the old nor the new.
  if ((await keys()) !== before || (await readWalHeader(repository, identity, name)) !== undefined) {
    return again();
  }
  const start = segmentStart(first ?? tailed, segmentSize);
  const bytes = Buffer.concat(parts);
  return { segments, histories, start, bytes, end: lsnOf(start + BigInt(bytes.length)) };
}

async function firstTail(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  timeline: TimelineId,
): Promise<bigint | undefined> {
  for await (const tail of listTails(repository, identity, { timeline })) {
    return parseWalSegmentName(tail.segment, segmentSize).segmentNumber;
  }
  return undefined;
}

/** Commits rows `n` one by one until it is told to stop; `acknowledged` grows with each. */
export async function startLoad(
  cluster: TestCluster,
  options: { bytes?: number; first?: number } = {},
): Promise<{ acknowledged: { n: number; lsn: Lsn }[]; stop: () => Promise<void> }> {
  const { bytes = 2000, first = 1 } = options;
  const client = await cluster.connect();
  const acknowledged: { n: number; lsn: Lsn }[] = [];
  const state = { going: true };
  const running_ = (async () => {
    for (let n = first; state.going; n += 1) {
      await client.query(`INSERT INTO load VALUES (${n}, repeat(md5('${n}'), ${Math.ceil(bytes / 32)}))`);
      // Positions only grow, so this is at or behind the end of the commit.
      const { rows } = await client.query<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
      acknowledged.push({ n, lsn: parseLsn(rows[0]?.lsn ?? '') });
    }
    // Servers are killed in the middle of it.
  })().catch(() => undefined);
  return {
    acknowledged,
    async stop() {
      state.going = false;
      await running_;
      await client.end().catch(() => undefined);
    },
  };
}

export async function createLoadTable(cluster: TestCluster): Promise<void> {
  await cluster.sql(
    'CREATE TABLE load (n int PRIMARY KEY, t text); ALTER TABLE load ALTER t SET STORAGE PLAIN',
  );
}

/** How often the loops of these tests run: `short` by default, more with HOLDFAST_TEST_SCALE. */
export function rounds(short: number): number {
  return Math.max(1, Math.round(short * Number(process.env['HOLDFAST_TEST_SCALE'] ?? '1')));
}
