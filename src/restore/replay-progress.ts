import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { Lsn } from '../postgres/lsn.ts';
import { readControlData } from '../postgres/control-data.ts';

/**
 * About how far a server in recovery has come, by its control file; undefined where that cannot be read just now (the
 * server may be writing it). For progress only.
 */
export async function readReplayed(dataDirectory: string): Promise<Lsn | undefined> {
  try {
    const control = readControlData(await readFile(join(dataDirectory, 'global/pg_control')));
    const { minRecoveryPoint, redo } = control;
    return minRecoveryPoint > redo ? minRecoveryPoint : redo;
  } catch {
    return undefined;
  }
}
