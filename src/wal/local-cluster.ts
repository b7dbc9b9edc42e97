import { open, readdir } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { HoldfastError } from '../errors.ts';
import { CONTROL_DATA_BYTES, type ControlData, readControlData } from '../postgres/control-data.ts';
import type { SystemIdentifier } from '../postgres/system-identifier.ts';
import { LONG_HEADER_BYTES, readWalLongHeader } from '../postgres/wal-page.ts';
import { classifyWalFile } from '../postgres/wal-segment.ts';

const TORN_READS = 5;
const TORN_READ_PAUSE_MS = 20;

/**
 * The control data of a data directory, read again where a concurrent write tore it; undefined where there is none that
 * can be understood.
 */
export async function localControlData(dataDirectory: string): Promise<ControlData | undefined> {
  for (let attempt = 1; attempt <= TORN_READS; attempt += 1) {
    const bytes = await readStart(join(dataDirectory, 'global', 'pg_control'), CONTROL_DATA_BYTES);
    if (bytes === undefined) return undefined;
    try {
      return readControlData(bytes);
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code !== 'checksum-mismatch') return undefined;
    }
    await sleep(TORN_READ_PAUSE_MS);
  }
  return undefined;
}

/**
 * Which cluster a file in `pg_wal` belongs to, where its own bytes do not say: the data directory's control file, else a
 * WAL segment beside it. Undefined where neither is there.
 */
export async function systemIdentifierBeside(walFile: string): Promise<SystemIdentifier | undefined> {
  const directory = dirname(resolve(walFile));
  const control = await localControlData(dirname(directory));
  if (control !== undefined) return control.systemIdentifier;
  for (const name of await readdir(directory)) {
    if (classifyWalFile(name)?.kind !== 'segment') continue;
    const bytes = await readStart(join(directory, name), LONG_HEADER_BYTES);
    try {
      if (bytes !== undefined) return readWalLongHeader(bytes).systemIdentifier;
    } catch {
      // A segment that was only just made has no header yet: the next one may.
    }
  }
  return undefined;
}

/** The first bytes of a file; undefined where it is missing, shorter, or may not be read. */
async function readStart(path: string, length: number): Promise<Buffer | undefined> {
  try {
    const handle = await open(path, 'r');
    try {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, 0);
      return bytesRead === length ? buffer : undefined;
    } finally {
      await handle.close();
    }
  } catch {
    return undefined;
  }
}
