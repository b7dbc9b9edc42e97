/**
 * `node bench/wal-stream.ts`: how fast WAL that waits on a server is streamed into a repository. The same segments are
 * retained by a slot, received by `wal receive` into a sealed and into an unsealed repository, and archived with
 * pgBackRest's asynchronous push, by turns. Then the receiver's memory over many small segments. Prints one JSON object.
 * Needs PostgreSQL 15, pgbackrest and a build (`npm run build`). In the environment:
 *
 * - HOLDFAST_BENCH_SEGMENTS: how many of 16 MiB wait (128; 0 leaves this out)
 * - HOLDFAST_BENCH_REPEAT: rounds (3)
 * - HOLDFAST_BENCH_CONTENT: pages, records or both (both)
 * - HOLDFAST_BENCH_SMALL: how many segments of 1 MiB the memory is looked at for (2000; 0 leaves this out)
 */
import { generateIdentity } from '../src/seal/identity.ts';
import { formatLsn, type Lsn } from '../src/postgres/lsn.ts';
import { parseWalSegmentName, segmentStart } from '../src/postgres/wal-segment.ts';
import { type Lab, type LabServer, settle, withLab, withServer } from './lab.ts';
import { describeMachine } from './machine.ts';
import { pgbench } from './rounds.ts';
import { median, slopeOf } from './statistics.ts';
import { type Holdfast, holdfastTool, PGBACKREST_ASYNC, pgbackrestTool, type Tool } from './tools.ts';
import { archiveAgain, GATHERING, gatherWal, type WalContent } from './waiting-wal.ts';

const MIB = 1024 * 1024;
const SEGMENT_BYTES = 16 * MIB;
const SCALE = 20;
const SLOT = 'holdfast';
/** A slot that nobody uses: it keeps the WAL from its beginning, and every receiver begins with a copy of it. */
const KEEPER = 'keeper';
const GOAL = 1.2;
const MEMORY_GOAL_BYTES = 150 * MIB;
/** The first segments warm up the heap. */
const WARM_UP_SHARE = 0.2;

const asked = {
  segments: Number(process.env['HOLDFAST_BENCH_SEGMENTS'] ?? 128),
  rounds: Number(process.env['HOLDFAST_BENCH_REPEAT'] ?? 3),
  contents: contentsOf(process.env['HOLDFAST_BENCH_CONTENT'] ?? 'both'),
  small: Number(process.env['HOLDFAST_BENCH_SMALL'] ?? 2000),
};

type Contender = 'sealed' | 'unsealed' | 'pgbackrest';

interface Turn {
  contender: Contender;
  wallMs: number;
  segmentsPerSecond: number;
  /** Of Holdfast's process alone; the server's share is not in it. */
  cpuMsPerSegment: number | undefined;
  peakBytes: number | undefined;
  storedBytesPerSegment: number;
}

const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopping.abort(new Error(`stopped by ${signal}`)));
}
const say = (line: string): void => console.error(`[${Math.round(performance.now() / 1000)} s] ${line}`);
console.log(JSON.stringify(await withLab(stopping.signal, say, measureAll), undefined, 2));

async function measureAll(lab: Lab): Promise<object> {
  const machine = await describeMachine(lab);
  const throughput: object[] = [];
  if (asked.segments > 0) {
    for (const content of asked.contents) throughput.push(await measureThroughput(lab, content));
  }
  const memory = asked.small > 0 ? await measureMemory(lab) : undefined;
  return { machine, postgresql: lab.binaries.version, throughput, memory };
}

async function measureThroughput(lab: Lab, content: WalContent): Promise<object> {
  return withServer(lab, `cluster-${content}`, { ...GATHERING }, async (server) => {
    await pgbench(lab, server, ['-i', '-q', '-s', `${SCALE}`]);
    await server.sql(`SELECT pg_create_physical_replication_slot('${KEEPER}', true)`);
    const names = await gatherWal(lab, server, asked.segments, content);
    const [from, to] = [startOf(names[0], SEGMENT_BYTES), startOf(names.at(-1), SEGMENT_BYTES, 1n)];
    await server.sql(`SELECT pg_replication_slot_advance('${KEEPER}', '${formatLsn(from)}')`);
    const tools: Record<Contender, Tool> = {
      sealed: await holdfastTool(lab, server, 'sealed', generateIdentity().recipient),
      unsealed: await holdfastTool(lab, server, 'unsealed'),
      pgbackrest: await pgbackrestTool(lab, server, 'pgbackrest', PGBACKREST_ASYNC),
    };
    const contenders = Object.keys(tools) as Contender[];
    const turns: Turn[] = [];
    for (let round = 0; round < asked.rounds; round += 1) {
      for (const contender of round % 2 === 0 ? contenders : contenders.toReversed()) {
        const tool = tools[contender];
        await tool.reset();
        const measured =
          contender === 'pgbackrest'
            ? { wallMs: await archiveAgain(lab, server, names, tool.archiveCommand) }
            : await receive(lab, server, tool as Holdfast, to);
        const { allBytes } = await tool.stored();
        const turn = turnOf(contender, names.length, measured, allBytes);
        turns.push(turn);
        lab.say(
          `${content}, ${contender}: ${turn.segmentsPerSecond.toFixed(1)} segments/s` +
            `, ${turn.cpuMsPerSegment?.toFixed(0) ?? '?'} ms of processor time each` +
            `, ${(turn.storedBytesPerSegment / MIB).toFixed(2)} MiB each, peak ${Math.round((turn.peakBytes ?? 0) / MIB)} MiB`,
        );
        // Room for the next one; what is compared is never there together.
        await lab.fresh(contender);
      }
    }
    const rate = (contender: Contender): number =>
      median(turns.filter((turn) => turn.contender === contender).map((turn) => turn.segmentsPerSecond));
    return {
      what: `${names.length} segments of 16 MiB, mostly ${content}, retained on the server`,
      segmentsPerSecond: Object.fromEntries(contenders.map((one) => [one, rate(one)])),
      ratioSealed: rate('sealed') / rate('pgbackrest'),
      ratioUnsealed: rate('unsealed') / rate('pgbackrest'),
      goal: GOAL,
      versions: { holdfast: tools.sealed.version, pgbackrest: tools.pgbackrest.version },
      turns,
    };
  });
}

/** Everything from where the keeper holds it up to `until`, from the start of the program to its end. */
async function receive(
  lab: Lab,
  server: LabServer,
  holdfast: Holdfast,
  until: Lsn,
  resident?: (bytes: number) => void,
): Promise<{ wallMs: number; cpuMs: number; peakBytes: number }> {
  await dropSlot(server);
  await server.sql(`SELECT pg_copy_physical_replication_slot('${KEEPER}', '${SLOT}')`);
  await settle(lab, server);
  const measured = await lab.run(
    lab.launcher,
    ['wal', 'receive', 'bench', '--until', formatLsn(until), '--quiet', '--config', holdfast.configFile],
    resident && { resident },
  );
  await dropSlot(server);
  return measured;
}

async function dropSlot(server: LabServer): Promise<void> {
  await server.sql(
    `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '${SLOT}'`,
  );
}

function turnOf(
  contender: Contender,
  segments: number,
  measured: { wallMs: number; cpuMs?: number; peakBytes?: number },
  allBytes: number,
): Turn {
  const { wallMs, cpuMs, peakBytes } = measured;
  return {
    contender,
    wallMs,
    segmentsPerSecond: (segments * 1000) / wallMs,
    cpuMsPerSegment: cpuMs === undefined ? undefined : cpuMs / segments,
    peakBytes,
    storedBytesPerSegment: allBytes / segments,
  };
}

/** The receiver's resident memory while many small segments come, and how fast it grows after the first fifth of them. */
async function measureMemory(lab: Lab): Promise<object> {
  const work = async (server: LabServer): Promise<object> => {
    await pgbench(lab, server, ['-i', '-q', '-s', '10']);
    await server.sql(`SELECT pg_create_physical_replication_slot('${KEEPER}', true)`);
    const names = await gatherWal(lab, server, asked.small, 'records');
    const [from, to] = [startOf(names[0], MIB), startOf(names.at(-1), MIB, 1n)];
    await server.sql(`SELECT pg_replication_slot_advance('${KEEPER}', '${formatLsn(from)}')`);
    const holdfast = await holdfastTool(lab, server, 'small', generateIdentity().recipient);
    await holdfast.reset();
    const samples: { atMs: number; bytes: number }[] = [];
    const startedMs = performance.now();
    const measured = await receive(lab, server, holdfast, to, (bytes) => {
      samples.push({ atMs: performance.now() - startedMs, bytes });
    });
    const segmentsPerMs = names.length / measured.wallMs;
    const later = samples.filter(({ atMs }) => atMs > WARM_UP_SHARE * measured.wallMs);
    const slope = slopeOf(later.map(({ atMs, bytes }) => [atMs * segmentsPerMs, bytes] as const));
    lab.say(
      `memory: peak ${Math.round(measured.peakBytes / MIB)} MiB, ${(slope / 1024).toFixed(2)} KiB more with each segment`,
    );
    return {
      what: `${names.length} segments of 1 MiB, sealed`,
      segmentsPerSecond: segmentsPerMs * 1000,
      peakBytes: measured.peakBytes,
      goalBytes: MEMORY_GOAL_BYTES,
      slopeBytesPerSegment: slope,
      residentMiB: later
        .filter((_, index) => index % Math.ceil(later.length / 20) === 0)
        .map(({ bytes }) => Math.round(bytes / MIB)),
    };
  };
  return withServer(lab, 'cluster-small', { ...GATHERING }, work, { walSegmentSizeMb: 1 });
}

function startOf(name: string | undefined, segmentSize: number, plus = 0n): Lsn {
  return segmentStart(parseWalSegmentName(name ?? '', segmentSize).segmentNumber + plus, segmentSize);
}

function contentsOf(text: string): readonly WalContent[] {
  if (text === 'both') return ['records', 'pages'];
  if (text !== 'pages' && text !== 'records') throw new Error(`HOLDFAST_BENCH_CONTENT cannot be "${text}"`);
  return [text];
}
