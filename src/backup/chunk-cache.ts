import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { ChunkReference } from '../repository/map-index.ts';
import type { ChunkCache } from '../repository/previous-backup.ts';
import type { Repository } from '../repository/repository.ts';
import { blake3Hex } from '../stream/hash.ts';

/**
 * The block map of the last backup, plain, in the state directory: a host that can seal but not open what it sealed
 * still knows which blocks it has stored. Only ever a help: what is missing or altered is ignored, and the blocks are
 * stored again.
 */
export class LocalChunkCache implements ChunkCache {
  readonly #directory: string;

  constructor(stateDirectory: string, repository: Repository, identity: ClusterIdentity) {
    const name = `${identity.cluster}-${identity.systemIdentifier}-${repository.id}`;
    this.#directory = join(stateDirectory, 'maps', name);
  }

  async index(record: BackupRecord): Promise<ChunkReference[] | undefined> {
    const text = await read(join(this.#directory, indexName(record.id)));
    if (text === undefined) return undefined;
    const end = text.lastIndexOf('\n', text.length - 2) + 1;
    const body = text.subarray(0, end);
    if (text.toString('latin1', end) !== `${blake3Hex(body)}\n`) return undefined;
    return JSON.parse(body.toString('utf8')) as ChunkReference[];
  }

  async chunk(hash: string): Promise<Buffer | undefined> {
    const plain = await read(join(this.#directory, hash));
    return plain !== undefined && blake3Hex(plain) === hash ? plain : undefined;
  }

  /** Keeps a chunk. May be repeated. */
  async keep(hash: string, plain: Buffer): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    await writeFile(join(this.#directory, hash), plain, { mode: 0o600 });
  }

  /** Makes `record` the backup that is known, and forgets chunks that only others used. */
  async commit(record: BackupRecord, chunks: readonly ChunkReference[]): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const body = Buffer.from(`${JSON.stringify(chunks)}\n`);
    const path = join(this.#directory, indexName(record.id));
    await writeFile(`${path}.new`, Buffer.concat([body, Buffer.from(`${blake3Hex(body)}\n`)]), {
      mode: 0o600,
    });
    await rename(`${path}.new`, path);
    const used = new Set([indexName(record.id), ...chunks.map(({ hash }) => hash)]);
    for (const name of await readdir(this.#directory)) {
      if (!used.has(name)) await rm(join(this.#directory, name), { force: true });
    }
  }
}

function indexName(backupId: string): string {
  return `${backupId}.index`;
}

async function read(path: string): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
