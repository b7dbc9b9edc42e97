import assert from 'node:assert/strict';
import { test } from 'node:test';

import { blake3Hex } from '../stream/hash.ts';
import { IDENTITY } from '../../test/harness/synthetic-backup.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import type { BackupRecord } from './backup-record.ts';
import { decodeChunk, encodeChunk, entryKey, HASH_BYTES, type MapEntry } from './block-map.ts';
import { packKey } from './layout.ts';
import {
  type ChunkReference,
  cutChunks,
  packsOfChunks,
  readChunk,
  readEntries,
  readIndex,
  readReferences,
  writeChunks,
  writeIndex,
  writeReferences,
} from './map-index.ts';
import { PackWriter } from './pack-writer.ts';
import type { Repository } from './repository.ts';

const RUN = '20260101T000000Z-0000';
const KIB = 1024;

function fileEntry(path: string, blocks: number, seed = 0): MapEntry {
  const frame = { run: RUN, pack: 1, offset: seed, bytes: 500 };
  return {
    kind: 'file',
    path,
    mode: 0o600,
    sizeBytes: blocks * 8192,
    crc32c: seed,
    extents: blocks === 0 ? [] : [{ frame, plainOffset: 0, hashes: Buffer.alloc(blocks * HASH_BYTES, seed) }],
  };
}

/** Directories of files, in the order of a map. */
function manyEntries(directories: string[], files: number, random: () => number): MapEntry[] {
  const entries: MapEntry[] = directories.map((path) => ({ kind: 'directory', path, mode: 0o700 }));
  for (const directory of directories) {
    for (let file = 0; file < files; file += 1) {
      entries.push(fileEntry(`${directory}/f${file}`, Math.floor(random() ** 3 * 60), file));
    }
  }
  return inOrder(entries);
}

function inOrder(entries: MapEntry[]): MapEntry[] {
  return entries.sort((a, b) => (entryKey(a) < entryKey(b) ? -1 : 1));
}

async function* stream(entries: readonly MapEntry[]): AsyncGenerator<MapEntry> {
  yield* entries;
}

async function hashes(entries: readonly MapEntry[]): Promise<string[]> {
  const chunks = await Array.fromAsync(cutChunks(stream(entries)));
  return chunks.map((chunk) => blake3Hex(encodeChunk(chunk)));
}

test('cutChunks() loses nothing, keeps the order, and cuts within its bounds', async () => {
  for (let seed = 0; seed < 10; seed += 1) {
    const entries = manyEntries(['base', 'base/1', 'base/5', 'global', 'pg_xact'], 700, seededRandom(seed));
    const chunks = await Array.fromAsync(cutChunks(stream(entries)));
    assert.deepEqual(chunks.flat(), entries);
    for (const [index, chunk] of chunks.entries()) {
      const tops = new Set(chunk.map(({ path }) => path.split('/', 1)[0]));
      assert.equal(tops.size, 1, [...tops].join());
      const { length } = encodeChunk(chunk);
      assert.ok(length <= 600 * KIB, `${length} bytes`);
      const next = chunks[index + 1]?.[0]?.path.split('/', 1)[0];
      if (next !== undefined && tops.has(next)) assert.ok(length >= 20 * KIB, `${length} bytes`);
    }
  }
});

test('cutChunks() ends a chunk of large entries in time', async () => {
  const hard = Buffer.alloc(HASH_BYTES);
  const extents = Array.from({ length: 2048 }, (_, at) => {
    return {
      frame: { run: RUN, pack: 1_000_000, offset: 2 ** 40 + at, bytes: 2 ** 20 },
      plainOffset: 2 ** 20,
      hashes: hard,
    };
  });
  const spans = Array.from({ length: 60 }, (_, span): MapEntry => ({
    kind: 'span',
    path: 'base/1/2',
    span,
    extents,
  }));
  const chunks = await Array.fromAsync(cutChunks(stream(spans)));
  for (const chunk of chunks) assert.ok(encodeChunk(chunk).length <= 1024 * KIB);
  assert.equal(chunks.flat().length, 60);
});

test('cutChunks() leaves the chunks of other top-level directories as they were, whatever happens in one', async () => {
  const random = seededRandom(4);
  const before = manyEntries(['base', 'base/1', 'base/5', 'global', 'pg_multixact', 'pg_xact'], 500, random);
  const untouched = new Set(await hashes(before.filter(({ path }) => !path.startsWith('global'))));
  for (let round = 0; round < 10; round += 1) {
    const after = inOrder([
      ...before.filter(({ path }) => !path.startsWith('global/') || random() < 0.9),
      ...Array.from({ length: 20 }, (_, at) => fileEntry(`global/new${at}`, 3, round)),
    ]);
    const now = new Set(await hashes(after));
    for (const hash of untouched) assert.ok(now.has(hash));
  }
});

test('cutChunks() changes few chunks of a directory for a change within it', async () => {
  const random = seededRandom(9);
  const before = manyEntries(['base', 'base/1'], 6000, random);
  const old = new Set(await hashes(before));
  assert.ok(old.size > 20, `${old.size} chunks`);
  let changed = 0;
  const rounds = 40;
  for (let round = 0; round < rounds; round += 1) {
    const after = [...before];
    const at = 1 + Math.floor(random() * (after.length - 1));
    const kind = round % 3;
    if (kind === 0) after.splice(at, 1);
    else if (kind === 1) after[at] = fileEntry(after[at]?.path ?? '', 7, 250);
    else after.splice(at, 0, fileEntry(`${after[at - 1]?.path ?? ''}_fsm`, 3, 1));
    changed += (await hashes(inOrder(after))).filter((hash) => !old.has(hash)).length;
  }
  assert.ok(changed / rounds <= 6, `${changed / rounds} of ${old.size} chunks changed for each edit`);
});

test('cutChunks() of nothing is nothing', async () => {
  assert.deepEqual(await Array.fromAsync(cutChunks(stream([]))), []);
});

async function stored(
  repository: Repository,
  entries: readonly MapEntry[],
  known: ReadonlyMap<string, ChunkReference> = new Map(),
): Promise<{ record: BackupRecord; chunks: ChunkReference[]; kept: Map<string, Buffer> }> {
  const run = `2026010${known.size > 0 ? 2 : 1}T000000Z-0000`;
  const writer = new PackWriter(repository, IDENTITY, run, 'm');
  const kept = new Map<string, Buffer>();
  const chunks = await writeChunks(stream(entries), writer, known, async (hash, plain) => {
    kept.set(hash, Buffer.from(plain));
  });
  const index = await writeIndex(repository, IDENTITY, run, chunks);
  const references = await writeReferences(repository, IDENTITY, run, writer.packs);
  return { record: { ...IDENTITY, id: run, index, references } as BackupRecord, chunks, kept };
}

test('writeChunks() stores what readEntries() reads, and shows every chunk to be kept', async () => {
  const repository = await openTestRepository();
  const odd: MapEntry = { kind: 'directory', path: 'odd \xff\n"\\ \u00e9', mode: 0o700 };
  const entries = inOrder([...manyEntries(['base', 'base/1'], 2000, seededRandom(2)), odd]);
  const { record, chunks, kept } = await stored(repository, entries);
  const packs = await readReferences(repository, record);
  assert.deepEqual(await Array.fromAsync(readEntries(repository, record, packs)), entries);
  assert.deepEqual(await readIndex(repository, record), chunks);
  assert.deepEqual([...packsOfChunks(IDENTITY, chunks)], [...packs.keys()]);
  for (const { hash, plainBytes, first } of chunks) {
    const plain = kept.get(hash);
    assert.equal(plain?.length, plainBytes);
    assert.equal(entryKey(decodeChunk(plain ?? Buffer.alloc(0))[0] ?? odd), first);
  }
});

test('writeChunks() refers to known chunks instead of storing them', async () => {
  const repository = await openTestRepository();
  const entries = manyEntries(['base', 'base/1', 'global'], 1000, seededRandom(3));
  const first = await stored(repository, entries);
  const known = new Map(first.chunks.map((chunk) => [chunk.hash, chunk]));
  const changed = inOrder([...entries, fileEntry('global/new', 5)]);
  const second = await stored(repository, changed, known);
  const own = second.chunks.filter(({ run }) => run !== RUN);
  assert.equal(own.length, 1);
  assert.ok(own[0]?.first.startsWith('global'));
  const packs = new Map([
    ...(await readReferences(repository, first.record)),
    ...(await readReferences(repository, second.record)),
  ]);
  assert.deepEqual(await Array.fromAsync(readEntries(repository, second.record, packs)), changed);
});

test('readChunk() refuses a chunk that is not the one its reference means', async () => {
  const repository = await openTestRepository();
  const { record, chunks } = await stored(repository, manyEntries(['base', 'base/1'], 2000, seededRandom(2)));
  const packs = await readReferences(repository, record);
  const [chunk, other] = chunks;
  assert.ok(chunk && other);
  const wrong: Partial<ChunkReference>[] = [
    { hash: other.hash },
    { offset: other.offset, bytes: other.bytes },
    { bytes: chunk.bytes - 1 },
    { offset: chunk.offset + 1 },
    { pack: 2 },
    { run: '20260103T000000Z-0000' },
  ];
  for (const change of wrong) {
    const reading = readChunk(repository, IDENTITY, packs, { ...chunk, ...change });
    await assert.rejects(reading, failsWith('object-damaged', 'object-missing'), JSON.stringify(change));
  }
});

test('readReferences() names packs by their key without the suffix of a seal', async () => {
  const repository = await openTestRepository();
  const plain = packKey(IDENTITY, RUN, 'b', 1);
  const packs = [
    { key: `${plain}.age`, sizeBytes: 1, hash: 'a' },
    { key: packKey(IDENTITY, RUN, 'b', 2), sizeBytes: 2, hash: 'b' },
  ];
  const references = await writeReferences(repository, IDENTITY, RUN, packs);
  const record = { ...IDENTITY, id: RUN, references } as BackupRecord;
  const read = await readReferences(repository, record);
  assert.deepEqual([...read.keys()], [plain, packKey(IDENTITY, RUN, 'b', 2)]);
  assert.deepEqual([...read.values()], packs);
});
