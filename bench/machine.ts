import { readFile } from 'node:fs/promises';
import { availableParallelism, cpus, release, totalmem } from 'node:os';

import type { Lab } from './lab.ts';

/** What the figures depend on, without anything that tells whose machine it is. */
export async function describeMachine(lab: Lab): Promise<string[]> {
  const { stdout: fileSystem } = await lab.run('findmnt', ['-n', '-o', 'FSTYPE', '-T', lab.scratch]);
  const hypervisor = /^flags\s*:.*\bhypervisor\b/m.test(await readFile('/proc/cpuinfo', 'utf8'));
  return [
    `${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${availableParallelism()} cores${hypervisor ? ' (virtual machine)' : ''}`,
    `${Math.round(totalmem() / 2 ** 30)} GiB of memory`,
    `Linux ${release()}`,
    `file system ${fileSystem.trim()}`,
  ];
}
