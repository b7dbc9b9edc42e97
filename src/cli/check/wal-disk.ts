import { open, realpath, statfs } from 'node:fs/promises';
import { join } from 'node:path';

import { errorText } from '../../errors.ts';
import { CONTROL_DATA_BYTES, readControlData } from '../../postgres/control-data.ts';

/** The file system `pg_wal` really lies on, or why it cannot be seen from here. */
export type WalDisk =
  | { path: string; freeBytes: bigint; totalBytes: bigint; problem?: undefined }
  | { problem: string };

/**
 * Looks at the disk of a server's `pg_wal`, following the link it may be. `dataDirectory` must be that of the given
 * system identifier: an address on this host may lead into a container or through a tunnel.
 */
export async function readWalDisk(dataDirectory: string, systemIdentifier: string): Promise<WalDisk> {
  try {
    const own = await systemIdentifierOf(dataDirectory);
    if (own !== systemIdentifier)
      return { problem: `${dataDirectory} on this host belongs to another cluster` };
    const path = await realpath(join(dataDirectory, 'pg_wal'));
    const { bavail, blocks, bsize } = await statfs(path, { bigint: true });
    return { path, freeBytes: bavail * bsize, totalBytes: blocks * bsize };
  } catch (error) {
    return { problem: `pg_wal cannot be looked at: ${errorText(error)}` };
  }
}

/** The control file is replaced in place: a torn read is tried again. */
async function systemIdentifierOf(dataDirectory: string): Promise<string> {
  const file = await open(join(dataDirectory, 'global', 'pg_control'), 'r');
  try {
    for (let attempt = 1; ; attempt += 1) {
      const { buffer } = await file.read(Buffer.alloc(CONTROL_DATA_BYTES), 0, CONTROL_DATA_BYTES, 0);
      try {
        return readControlData(buffer).systemIdentifier;
      } catch (error) {
        if (attempt === 3) throw error;
      }
    }
  } finally {
    await file.close();
  }
}
