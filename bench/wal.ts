import { readdir } from 'node:fs/promises';
import { join } from 'node:path';

import { archiveWith, type Lab, type LabServer, settle } from './lab.ts';
import { pgbench } from './rounds.ts';
import type { Holdfast, Tool } from './tools.ts';

export interface WalResults {
  segments: number;
  push: { holdfast: number[]; pgbackrest: number[] };
  fetch: { holdfast: number[]; pgbackrest: number[] };
  /** Of Holdfast's two commands, from the run that is not timed. */
  memory: { name: string; peakBytes: number }[];
}

const SEGMENTS = 12;

/**
 * `wal push` and `wal fetch` of segments full of pgbench's WAL, each a process of its own from start to end, the tools
 * taking turns. One more segment goes first, to look at memory.
 */
export async function measureWal(
  lab: Lab,
  server: LabServer,
  { holdfast, pgbackrest }: { holdfast: Holdfast; pgbackrest: Tool },
): Promise<WalResults> {
  await archiveWith(lab, server, '/bin/true');
  const names = await fullSegments(lab, server);
  await settle(lab, server);
  const results: WalResults = {
    segments: names.length - 1,
    push: { holdfast: [], pgbackrest: [] },
    fetch: { holdfast: [], pgbackrest: [] },
    memory: [],
  };
  const directory = await lab.fresh('fetched');
  const [watched = '', ...timed] = names;
  for (const words of [
    ['wal', 'push', join(server.dataDirectory, 'pg_wal', watched)],
    ['wal', 'fetch', watched, join(directory, watched)],
  ]) {
    const { peakBytes } = await holdfast.command(...words);
    results.memory.push({ name: words.slice(0, 2).join(' '), peakBytes });
  }
  for (const [index, name] of timed.entries()) {
    const turns = [holdfast, pgbackrest];
    for (const tool of index % 2 === 0 ? turns : turns.reverse()) {
      const path = join(server.dataDirectory, 'pg_wal', name);
      const copy = join(directory, `${name}.${tool.name}`);
      const push = await tool.walPush(path);
      const fetch = await tool.walFetch(name, copy);
      await lab.run('cmp', [path, copy], { onlyTime: true });
      const kind = tool === holdfast ? 'holdfast' : 'pgbackrest';
      results.push[kind].push(push.wallMs);
      results.fetch[kind].push(fetch.wallMs);
    }
  }
  lab.say(`wal push and wal fetch of ${results.segments} segments measured`);
  return results;
}

/** Names of complete segments that neither repository has; the server keeps them (wal_keep_size). */
async function fullSegments(lab: Lab, server: LabServer): Promise<string[]> {
  await server.sql('SELECT pg_switch_wal()');
  const first = await currentSegment(server);
  for (;;) {
    // After a checkpoint every page changed goes into WAL whole: the most a segment of this load ever holds.
    await server.sql('CHECKPOINT');
    await pgbench(lab, server, ['-n', '-c', '4', '-j', '2', '-T', '2']);
    const current = await currentSegment(server);
    const names = (await readdir(join(server.dataDirectory, 'pg_wal')))
      .filter((name) => /^[0-9A-F]{24}$/.test(name) && name >= first && name < current)
      .sort();
    if (names.length > SEGMENTS) return names.slice(0, SEGMENTS + 1);
  }
}

async function currentSegment(server: LabServer): Promise<string> {
  const [row] = await server.sql<{ name: string }>(
    'SELECT pg_walfile_name(pg_current_wal_insert_lsn()) AS name',
  );
  return row?.name ?? '';
}
