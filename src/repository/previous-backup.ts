import { HoldfastError } from '../errors.ts';
import type { BackupRecord } from './backup-record.ts';
import {
  ChunkView,
  type Extent,
  fileKey,
  type FileEntry,
  HASH_BYTES,
  type MapEntry,
  spanKey,
} from './block-map.ts';
import { packKey, runPrefix } from './layout.ts';
import { type ChunkReference, readChunk, readIndex, readReferences } from './map-index.ts';
import type { Repository } from './repository.ts';
import type { StoredObject } from './sealed-object.ts';

/** Plain chunks kept on the host, for hosts that can write to a repository but not read it. */
export interface ChunkCache {
  index(record: BackupRecord): Promise<ChunkReference[] | undefined>;
  chunk(hash: string): Promise<Buffer | undefined>;
}

/** Chunks kept in memory, about; the maps of 300,000 small files fit. */
const KEPT_BYTES = 24 * 1024 * 1024;

/**
 * The backup that a new one is compared with. It is a help, not a dependency: where it cannot be read (no key, lost
 * cache, a pack gone) blocks are simply stored again. `unusable` tells why, for the log.
 */
export class PreviousBackup {
  readonly record: BackupRecord;
  readonly chunks: readonly ChunkReference[];
  readonly packs: ReadonlyMap<string, StoredObject>;
  readonly unusable: string[];
  readonly #repository: Repository;
  readonly #cache: ChunkCache | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #kept = new Map<number, ChunkView>();
  /** Chunks that were read, and those of them that are not what was stored. */
  readonly #looked = new Set<number>();
  readonly #damaged = new Set<number>();
  readonly #unreadable = new Set<number>();
  #places: Map<string, number> | undefined;
  #keptBytes = 0;
  #lastAsked = { run: '', pack: 0, isHeld: false };

  private constructor(
    repository: Repository,
    record: BackupRecord,
    chunks: readonly ChunkReference[],
    packs: ReadonlyMap<string, StoredObject>,
    options: { cache?: ChunkCache; unusable: string[]; signal?: AbortSignal },
  ) {
    this.#repository = repository;
    this.record = record;
    this.chunks = chunks;
    this.packs = packs;
    this.unusable = options.unusable;
    this.#cache = options.cache;
    this.#signal = options.signal;
  }

  /**
   * Opens a backup to compare with. Packs that the store no longer has at their full size are not relied on. Undefined,
   * with the reason told to `say`, where the backup is of no use.
   */
  static async open(
    repository: Repository,
    record: BackupRecord,
    options: { cache?: ChunkCache; signal?: AbortSignal; say: (text: string) => void },
  ): Promise<PreviousBackup | undefined> {
    const { cache, signal, say } = options;
    try {
      const packs = await readReferences(repository, record, signal);
      const chunks = (await cache?.index(record)) ?? (await readIndex(repository, record, signal));
      const unusable = await dropMissing(repository, record, packs, signal);
      for (const key of unusable)
        say(`${key}, which backup ${record.id} needs, is missing or damaged: its blocks are stored again`);
      return new PreviousBackup(repository, record, chunks, packs, {
        ...(cache && { cache }),
        unusable,
        ...(signal && { signal }),
      });
    } catch (error) {
      if (!isTolerable(error)) throw error;
      say(`backup ${record.id} cannot be compared with (${error.message}): everything is stored anew`);
      return undefined;
    }
  }

  /**
   * The chunk of this hash, if a new map may share it: its pack is still there, and it could be read, or only a key is
   * missing to read it. To be asked after the last look at files: what those found damaged is known then.
   */
  async sharedChunk(hash: string): Promise<ChunkReference | undefined> {
    this.#places ??= new Map(this.chunks.map((chunk, at) => [chunk.hash, at]));
    const at = this.#places.get(hash);
    const chunk = at === undefined ? undefined : this.chunks[at];
    if (at === undefined || chunk === undefined || !this.#holds(chunk.run, 'm', chunk.pack)) return undefined;
    if (!this.#looked.has(at)) await this.#load(at);
    return this.#damaged.has(at) ? undefined : chunk;
  }

  async file(path: string): Promise<FileEntry | undefined> {
    const entry = await this.#find(fileKey(path));
    return entry?.kind === 'file' ? entry : undefined;
  }

  async span(path: string, span: number): Promise<Extent[]> {
    const entry = await this.#find(spanKey(path, span));
    return entry?.kind === 'span' ? entry.extents : [];
  }

  /** False for blocks in a pack that is gone: they must be stored again. Neighbouring blocks mostly share a pack. */
  holdsBlocksOf(run: string, pack: number): boolean {
    const last = this.#lastAsked;
    if (last.run === run && last.pack === pack) return last.isHeld;
    const isHeld = this.#holds(run, 'b', pack);
    this.#lastAsked = { run, pack, isHeld };
    return isHeld;
  }

  #holds(run: string, kind: 'b' | 'm', pack: number): boolean {
    return this.packs.has(packKey(this.record, run, kind, pack));
  }

  async #find(key: string): Promise<MapEntry | undefined> {
    const at = lastAtOrBefore(this.chunks, key);
    if (at < 0) return undefined;
    return (await this.#load(at))?.find(key);
  }

  async #load(at: number): Promise<ChunkView | undefined> {
    const kept = this.#kept.get(at);
    if (kept !== undefined) {
      this.#kept.delete(at);
      this.#kept.set(at, kept);
      return kept;
    }
    const chunk = await this.#readChunk(at);
    if (chunk === undefined) return undefined;
    this.#kept.set(at, chunk);
    this.#keptBytes += chunk.sizeBytes;
    for (const [oldest, { sizeBytes }] of this.#kept) {
      if (this.#keptBytes <= KEPT_BYTES || this.#kept.size === 1) break;
      this.#kept.delete(oldest);
      this.#keptBytes -= sizeBytes;
    }
    return chunk;
  }

  async #readChunk(at: number): Promise<ChunkView | undefined> {
    const chunk = this.chunks[at];
    // What could not be read once is not tried again for each of its files.
    if (chunk === undefined || this.#unreadable.has(at)) return undefined;
    this.#looked.add(at);
    try {
      const plain =
        (await this.#cache?.chunk(chunk.hash)) ??
        (await readChunk(this.#repository, this.record, this.packs, chunk, this.#signal));
      return new ChunkView(plain);
    } catch (error) {
      if (!isTolerable(error)) throw error;
      // A damaged seal looks like that of another key.
      if (error.code !== 'key-missing') this.#damaged.add(at);
      this.#unreadable.add(at);
      this.unusable.push(error.message);
      return undefined;
    }
  }
}

/** Walks the blocks of a file's earlier version in order, beside the new one's. */
export class PriorBlocks {
  readonly #extents: readonly Extent[];
  readonly #blockSizeBytes: number;
  #extent = 0;
  #firstBlock = 0;

  constructor(extents: readonly Extent[], blockSizeBytes: number) {
    this.#extents = extents;
    this.#blockSizeBytes = blockSizeBytes;
  }

  /** Where block `block` (rising from call to call) lies, if it had this hash; undefined if not. */
  find(
    block: number,
    hash: Buffer,
  ):
    | { frame: { run: string; pack: number; offset: number; bytes: number }; plainOffset: number }
    | undefined {
    for (;;) {
      const extent = this.#extents[this.#extent];
      if (extent === undefined) return undefined;
      const blocks = 'zeroBlocks' in extent ? extent.zeroBlocks : extent.hashes.length / HASH_BYTES;
      const index = block - this.#firstBlock;
      if (index >= blocks) {
        this.#extent += 1;
        this.#firstBlock += blocks;
        continue;
      }
      if ('zeroBlocks' in extent) return undefined;
      if (hash.compare(extent.hashes, index * HASH_BYTES, (index + 1) * HASH_BYTES) !== 0) return undefined;
      return { frame: extent.frame, plainOffset: extent.plainOffset + index * this.#blockSizeBytes };
    }
  }
}

function lastAtOrBefore(chunks: readonly ChunkReference[], key: string): number {
  let low = 0;
  let high = chunks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const chunk = chunks[middle];
    if (chunk !== undefined && chunk.first <= key) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Removes the packs that the store lacks, or has at another size, from `packs`; one listing per run that is used. */
async function dropMissing(
  repository: Repository,
  record: BackupRecord,
  packs: Map<string, StoredObject>,
  signal?: AbortSignal,
): Promise<string[]> {
  const runs = new Set([...packs.keys()].map((key) => key.split('/').at(-2) ?? ''));
  const sizes = new Map<string, number>();
  for (const run of runs) {
    for await (const { key, sizeBytes } of repository.storage.list(runPrefix(record, run), {
      ...(signal && { signal }),
    })) {
      sizes.set(key, sizeBytes);
    }
  }
  const missing: string[] = [];
  for (const [plainKey, stored] of packs) {
    if (sizes.get(stored.key) === stored.sizeBytes) continue;
    packs.delete(plainKey);
    missing.push(stored.key);
  }
  return missing;
}

/** The previous backup is only a help: without a key or with damage, do without it. Trouble with the store is trouble. */
function isTolerable(error: unknown): error is HoldfastError {
  return (
    error instanceof HoldfastError &&
    ['key-missing', 'key-wrong', 'object-missing', 'object-damaged'].includes(error.code)
  );
}
