import { HoldfastError } from '../errors.ts';
import { crc32c } from '../stream/crc32c.ts';
import { blake3Hex, createBlake3 } from '../stream/hash.ts';
import { decompressFrame } from '../stream/zstd.ts';
import { type BackupRecord } from './backup-record.ts';
import { decodeChunk, encodeChunk, entryKey, type MapEntry } from './block-map.ts';
import { type ClusterIdentity, packKey, runPrefix } from './layout.ts';
import type { PackWriter } from './pack-writer.ts';
import type { Repository } from './repository.ts';
import { collect, openSealed, openSealedRange, putSealed, type StoredObject } from './sealed-object.ts';

/** One chunk of a backup's block map: where it lies, and its first entry's key. */
export interface ChunkReference {
  first: string;
  run: string;
  pack: number;
  offset: number;
  bytes: number;
  plainBytes: number;
  /** BLAKE3-256 of the plain chunk: equal chunks of two backups are one. */
  hash: string;
}

/** A chunk is cut between these, at places that depend on its own content only. */
const CHUNK_MIN_BYTES = 32 * 1024;
const CHUNK_MAX_BYTES = 512 * 1024;

/** No chunk is larger: the one entry over the limit is a span with every block in another extent. */
const CHUNK_LIMIT_BYTES = 1024 * 1024;

/**
 * Groups ordered entries into chunks. Where it cuts depends on nearby keys alone, and always at a new top-level
 * directory, so that a change in one place leaves the chunks elsewhere byte for byte as they were.
 */
export async function* cutChunks(entries: AsyncIterable<MapEntry>): AsyncGenerator<MapEntry[]> {
  let chunk: MapEntry[] = [];
  let bytes = 0;
  let top = '';
  for await (const entry of entries) {
    const entryTop = entry.path.split('/', 1)[0] ?? '';
    if (chunk.length > 0 && (entryTop !== top || bytes >= CHUNK_MAX_BYTES)) {
      yield chunk;
      chunk = [];
      bytes = 0;
    }
    top = entryTop;
    chunk.push(entry);
    bytes += estimatedBytes(entry);
    if (bytes >= CHUNK_MIN_BYTES && crc32c(Buffer.from(entryKey(entry), 'latin1')) % 8 === 0) {
      yield chunk;
      chunk = [];
      bytes = 0;
    }
  }
  if (chunk.length > 0) yield chunk;
}

function estimatedBytes(entry: MapEntry): number {
  let bytes = entry.path.length + 16;
  if (entry.kind === 'file' || entry.kind === 'span') {
    for (const extent of entry.extents) bytes += 'zeroBlocks' in extent ? 2 : 16 + extent.hashes.length;
  }
  return bytes;
}

export interface KnownChunks {
  get(hash: string): Promise<ChunkReference | undefined> | ChunkReference | undefined;
}

/**
 * Writes a backup's block map: chunks that an earlier backup has already (`known`, by hash) are referred to,
 * the others go into map packs. `keep` is shown every chunk's plain bytes.
 */
export async function writeChunks(
  entries: AsyncIterable<MapEntry>,
  writer: PackWriter,
  known: KnownChunks,
  keep: (hash: string, plain: Buffer) => Promise<void> | undefined,
): Promise<ChunkReference[]> {
  const pending: Promise<ChunkReference>[] = [];
  for await (const chunk of cutChunks(entries)) {
    const plain = encodeChunk(chunk);
    const hash = blake3Hex(plain);
    const first = chunk[0] === undefined ? '' : entryKey(chunk[0]);
    await keep(hash, plain);
    const shared = await known.get(hash);
    if (shared !== undefined) {
      pending.push(Promise.resolve({ ...shared, first }));
      continue;
    }
    await writer.room();
    const { placed } = writer.add(plain);
    const reference = placed.then(({ run, pack, offset, bytes }): ChunkReference => {
      return { first, run, pack, offset, bytes, plainBytes: plain.length, hash };
    });
    reference.catch(() => undefined);
    pending.push(reference);
  }
  await writer.finish();
  return Promise.all(pending);
}

/** Keys (without the sealer's suffix) of the packs that chunks lie in. */
export function packsOfChunks(identity: ClusterIdentity, chunks: readonly ChunkReference[]): Set<string> {
  return new Set(chunks.map(({ run, pack }) => packKey(identity, run, 'm', pack)));
}

/** Stores the index (sealed: it names files) as JSON lines, in the order of the map. */
export function writeIndex(
  repository: Repository,
  identity: ClusterIdentity,
  run: string,
  chunks: readonly ChunkReference[],
  signal?: AbortSignal,
): Promise<StoredObject> {
  return putSealed(repository, `${runPrefix(identity, run)}index.jsonl`, jsonLines(chunks), signal);
}

/** Stores the references (clear: retention reads them without a key): every pack the backup needs, as JSON lines. */
export async function writeReferences(
  repository: Repository,
  identity: ClusterIdentity,
  run: string,
  packs: readonly StoredObject[],
  signal?: AbortSignal,
): Promise<StoredObject> {
  const key = `${runPrefix(identity, run)}references.jsonl`;
  const hash = createBlake3();
  const lines: Buffer[] = [];
  let sizeBytes = 0;
  for await (const line of jsonLines(packs)) {
    hash.update(line);
    sizeBytes += line.length;
    lines.push(line);
  }
  const result = await repository.storage.put(key, Buffer.concat(lines), {
    ifAbsent: true,
    ...(signal && { signal }),
  });
  if (!result.created || result.sizeBytes !== sizeBytes) {
    throw new HoldfastError('assertion', `${key} could not be written as its only writer`);
  }
  return { key, sizeBytes, hash: hash.hex() };
}

async function* jsonLines(values: readonly object[]): AsyncGenerator<Buffer> {
  let text = '';
  for (const value of values) {
    text += `${JSON.stringify(value)}\n`;
    if (text.length >= 64 * 1024) {
      yield Buffer.from(text);
      text = '';
    }
  }
  yield Buffer.from(text);
}

/** Reads the packs a backup needs, by their key without the sealer's suffix. Needs no key. */
export async function readReferences(
  repository: Repository,
  record: BackupRecord,
  signal?: AbortSignal,
): Promise<Map<string, StoredObject>> {
  const { storage } = repository;
  const packs = new Map<string, StoredObject>();
  const source = hashChecked(
    storage.get(record.references.key, { ...(signal && { signal }) }),
    record.references,
  );
  for await (const value of parseJsonLines(source, record.references.key)) {
    const { key, sizeBytes, hash } = value;
    // The hash of the whole is known only at its end.
    if (typeof key !== 'string' || typeof sizeBytes !== 'number' || typeof hash !== 'string')
      throw damaged(record.references.key, 'a line of it names no object');
    packs.set(key.replace(/\.(age|gpg)$/, ''), { key, sizeBytes, hash });
  }
  return packs;
}

/** Reads a backup's index. */
export async function readIndex(
  repository: Repository,
  record: BackupRecord,
  signal?: AbortSignal,
): Promise<ChunkReference[]> {
  const chunks: ChunkReference[] = [];
  for await (const value of parseJsonLines(openSealed(repository, record.index, signal), record.index.key)) {
    chunks.push(value as unknown as ChunkReference);
  }
  return chunks;
}

async function* hashChecked(source: AsyncIterable<Buffer>, stored: StoredObject): AsyncGenerator<Buffer> {
  const hash = createBlake3();
  for await (const chunk of source) {
    hash.update(chunk);
    yield chunk;
  }
  if (hash.hex() !== stored.hash) throw damaged(stored.key, 'it is not what was stored');
}

async function* parseJsonLines(
  source: AsyncIterable<Buffer>,
  key: string,
): AsyncGenerator<Record<string, unknown>> {
  let rest = '';
  for await (const chunk of source) {
    const lines = (rest + chunk.toString('latin1')).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      try {
        // The lines are UTF-8; cutting them as latin1 keeps characters whole over chunk borders.
        yield JSON.parse(Buffer.from(line, 'latin1').toString('utf8')) as Record<string, unknown>;
      } catch (error) {
        throw damaged(key, 'a line of it is not JSON', error);
      }
    }
  }
  if (rest !== '') throw damaged(key, 'it ends within a line');
}

/** Reads and checks the plain bytes of one chunk. */
export async function readChunk(
  repository: Repository,
  identity: ClusterIdentity,
  packs: ReadonlyMap<string, StoredObject>,
  chunk: ChunkReference,
  signal?: AbortSignal,
): Promise<Buffer> {
  const stored = packOf(packs, identity, chunk.run, 'm', chunk.pack);
  if (!(chunk.plainBytes <= CHUNK_LIMIT_BYTES && chunk.bytes <= 2 * CHUNK_LIMIT_BYTES)) {
    throw damaged(stored.key, 'a part of the block map is larger than it can be');
  }
  const frame = await collect(
    openSealedRange(repository, stored, chunk.offset, chunk.bytes, signal),
    chunk.bytes,
    stored.key,
  );
  const plain = await decompressFrame(frame, chunk.plainBytes);
  if (blake3Hex(plain) !== chunk.hash)
    throw damaged(stored.key, 'a part of the block map is not what was stored');
  return plain;
}

/** The stored object of a pack; a backup that names no such pack is damaged. */
export function packOf(
  packs: ReadonlyMap<string, StoredObject>,
  identity: ClusterIdentity,
  run: string,
  kind: 'b' | 'm',
  number: number,
): StoredObject {
  const key = packKey(identity, run, kind, number);
  const stored = packs.get(key);
  if (stored === undefined) throw damaged(key, 'the backup uses it without naming it');
  return stored;
}

/** All entries of a backup's map in order, a chunk at a time. */
export async function* readEntries(
  repository: Repository,
  record: BackupRecord,
  packs: ReadonlyMap<string, StoredObject>,
  signal?: AbortSignal,
): AsyncGenerator<MapEntry> {
  let last = '';
  for (const chunk of await readIndex(repository, record, signal)) {
    const entries = decodeChunk(await readChunk(repository, record, packs, chunk, signal));
    if (entries[0] === undefined || entryKey(entries[0]) !== chunk.first) {
      throw damaged(record.index.key, 'it names another beginning of a chunk than the chunk has');
    }
    for (const entry of entries) {
      const key = entryKey(entry);
      if (key <= last) {
        throw damaged(record.index.key, `its entries are out of order at ${JSON.stringify(entry.path)}`);
      }
      last = key;
      yield entry;
    }
  }
}

function damaged(key: string, what: string, cause?: unknown): HoldfastError {
  return new HoldfastError('object-damaged', `${key} is damaged: ${what}`, {
    hint: 'use another backup or another repository',
    context: { key },
    cause,
  });
}
