/**
 * `node bench/wal-push.ts`: how fast waiting WAL is archived. The same full segments of pgbench's WAL are marked ready
 * again and again, and the server archives them with Holdfast's `wal push` and with pgBackRest's asynchronous one by turns.
 * Prints one JSON object. Needs PostgreSQL 15, pgbackrest and a build (`npm run build`). In the environment:
 *
 * - HOLDFAST_BENCH_SEGMENTS: how many wait (64)
 * - HOLDFAST_BENCH_REPEAT: rounds (3)
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { type Lab, type LabServer, withLab, withServer } from './lab.ts';
import { describeMachine } from './machine.ts';
import { pgbench } from './rounds.ts';
import { holdfastTool, PGBACKREST_ASYNC, pgbackrestTool, type Tool } from './tools.ts';
import { archiveAgain, GATHERING, gatherWal } from './waiting-wal.ts';

const SEGMENT_MIB = 16;
const SCALE = 20;
const segments = Number(process.env['HOLDFAST_BENCH_SEGMENTS'] ?? 64);
const rounds = Number(process.env['HOLDFAST_BENCH_REPEAT'] ?? 3);
/** Within two seconds of a change, Holdfast takes a configuration for one that is still changing. */
const CONFIGURATION_RESTS_MS = 3000;

interface Turn {
  tool: Tool['name'];
  wallMs: number;
  segmentsPerSecond: number;
  storedBytes: number;
}

const stopping = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => stopping.abort(new Error(`stopped by ${signal}`)));
}
const say = (line: string): void => console.error(`[${Math.round(performance.now() / 1000)} s] ${line}`);
console.log(JSON.stringify(await withLab(stopping.signal, say, measureAll), undefined, 2));

async function measureAll(lab: Lab): Promise<object> {
  const machine = await describeMachine(lab);
  return withServer(lab, 'cluster', { ...GATHERING }, async (server) => {
    await pgbench(lab, server, ['-i', '-q', '-s', `${SCALE}`]);
    const names = await gatherWal(lab, server, segments);
    const holdfast = await holdfastTool(lab, server, 'holdfast');
    const pgbackrest = await pgbackrestTool(lab, server, 'pgbackrest', PGBACKREST_ASYNC);
    const turns: Turn[] = [];
    for (let round = 0; round < rounds; round += 1) {
      const tools = round % 2 === 0 ? [holdfast, pgbackrest] : [pgbackrest, holdfast];
      for (const tool of tools) turns.push(await takeTurn(lab, server, tool, names));
    }
    const rate = (tool: Tool): number =>
      median(turns.filter((turn) => turn.tool === tool.name).map((turn) => turn.segmentsPerSecond));
    return {
      what: `${segments} segments of ${SEGMENT_MIB} MiB of pgbench's WAL wait for the archiver`,
      machine,
      versions: {
        postgresql: lab.binaries.version,
        holdfast: holdfast.version,
        pgbackrest: pgbackrest.version,
      },
      segmentsPerSecond: { holdfast: rate(holdfast), pgbackrest: rate(pgbackrest) },
      ratio: rate(holdfast) / rate(pgbackrest),
      goal: 0.7,
      turns,
    };
  });
}

/** Into a new empty repository. */
async function takeTurn(lab: Lab, server: LabServer, tool: Tool, names: readonly string[]): Promise<Turn> {
  await rm(join(lab.scratch, '.cache', 'holdfast', 'wal-pushed'), { recursive: true, force: true });
  await tool.reset();
  await sleep(CONFIGURATION_RESTS_MS, undefined, { signal: lab.signal });
  const wallMs = await archiveAgain(lab, server, names, tool.archiveCommand);
  const { allBytes } = await tool.stored();
  const segmentsPerSecond = (names.length * 1000) / wallMs;
  lab.say(`${tool.name}: ${segmentsPerSecond.toFixed(1)} segments a second`);
  return { tool: tool.name, wallMs, segmentsPerSecond, storedBytes: allBytes };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;
}
