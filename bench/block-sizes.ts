import { cp, mkdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { archiveWith, type Lab, type LabServer, settle } from './lab.ts';
import { runTransactions } from './rounds.ts';
import { type Holdfast, holdfastTool } from './tools.ts';

export interface BlockSizeResult {
  blockBytes: number;
  first: Taken;
  same: Taken;
  changed: Taken;
}

export interface Taken {
  wallMs: number;
  cpuMs: number;
  peakBytes: number;
  newBytes: number;
}

const KIB = [8, 16, 32, 64, 128];

/**
 * A first, an unchanged and a changed backup with every block size, each size in a repository of its own. Timed inside
 * the process, without its start.
 */
export async function sweepBlockSizes(lab: Lab, server: LabServer): Promise<BlockSizeResult[]> {
  const program = await stagedProgram(lab);
  const places = KIB.map((kib) => ({ kib, name: `blocks-${kib}`, taken: [] as Taken[] }));
  const tools = new Map<string, Holdfast>();
  for (const { name } of places) {
    const tool = await holdfastTool(lab, server, name);
    await tool.reset();
    tools.set(name, tool);
  }
  for (const step of ['first backup', 'nothing changed', 'after 20,000 transactions']) {
    if (step.startsWith('after')) {
      await archiveWith(lab, server, '/bin/true');
      await runTransactions(lab, server, 20_000);
    }
    for (const { kib, name, taken } of places) {
      await archiveWith(lab, server, tools.get(name)?.archiveCommand ?? '');
      await settle(lab, server);
      const repository = join(lab.scratch, name);
      const words = [program, repository, `${repository}-state`, server.url, `${kib * 1024}`];
      const { stdout, cpuMs, peakBytes } = await lab.run(lab.node, words);
      const { wallMs, newBytes } = JSON.parse(stdout) as { wallMs: number; newBytes: number };
      taken.push({ wallMs, newBytes, cpuMs, peakBytes });
      lab.say(`blocks of ${kib} KiB, ${step}: ${(wallMs / 1000).toFixed(2)} s`);
    }
  }
  await archiveWith(lab, server, '/bin/true');
  for (const { name } of places) await rm(join(lab.scratch, name), { recursive: true, force: true });
  return places.flatMap(({ kib, taken: [first, same, changed] }) =>
    first && same && changed ? [{ blockBytes: kib * 1024, first, same, changed }] : [],
  );
}

/** The program of one backup, where the lab's user can read it: beside the launcher. */
async function stagedProgram(lab: Lab): Promise<string> {
  const name = 'block-size-backup.ts';
  const staged = join(dirname(dirname(lab.launcher)), 'bench', name);
  const own = join(import.meta.dirname, name);
  if (staged !== own) {
    await mkdir(dirname(staged), { recursive: true });
    await cp(own, staged);
  }
  return staged;
}
