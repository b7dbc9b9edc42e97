import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { type ErrorCode, HoldfastError } from '../errors.ts';
import { readBackupRecord } from '../repository/backup-record.ts';
import { MARKER_KEY, recordKey } from '../repository/layout.ts';
import { openRepository } from '../repository/repository.ts';
import { verifyStored } from '../repository/sealed-object.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { type SealChoice, testRepository } from '../../test/harness/backup.ts';
import { IDENTITY, readFiles, storeFiles, type SyntheticEntry } from '../../test/harness/synthetic-backup.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { readReferences } from '../repository/map-index.ts';
import { commitDataDirectory } from './data-tree.ts';
import { writeBackupFiles } from './write-files.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const random = seededRandom(5);
const [FIRST, SECOND, THIRD] = ['20260101T000000Z-0000', '20260102T000000Z-0000', '20260103T000000Z-0000'];
const DETECTED: ErrorCode[] = [
  'object-damaged',
  'object-missing',
  'key-wrong',
  'repository-missing',
  'backup-unknown',
];

type Files = Record<string, Buffer>;

function noise(sizeBytes: number): Buffer {
  return Buffer.from(Array.from({ length: sizeBytes }, () => Math.floor(random() * 256)));
}

const before: Files = {
  'base/1/1': noise(30_000),
  'base/1/2': noise(20_000),
  'global/pg_control': noise(600),
};
const after: Files = { ...before, 'base/1/2': noise(20_500), 'global/pg_control': noise(600) };

function* entries(files: Files): Generator<SyntheticEntry> {
  for (const path of ['base', 'base/1', 'global', 'pg_notify']) yield { path, directory: true };
  for (const [path, content] of Object.entries(files)) yield { path, pieces: [content] };
}

/** Two backups; the second refers to packs of the first. */
async function makeRepository(seal: SealChoice): Promise<Map<string, Buffer>> {
  const objects = new Map<string, Buffer>();
  const repository = await testRepository({ storage: createMemoryStorage(objects), seal });
  const { record: previous } = await storeFiles(repository, FIRST, entries(before));
  const { record } = await storeFiles(repository, SECOND, entries(after), { previous });
  assert.ok(record.stored.newBlocks > 0 && record.stored.newBlocks < 10);
  return objects;
}

/** Restores the second backup; throws, or the files are what they must be. */
async function restoreSecond(objects: Map<string, Buffer>, seal: SealChoice): Promise<void> {
  const keys = await testRepository({ seal });
  const repository = await openRepository('local', createMemoryStorage(objects), keys);
  const record = await readBackupRecord(repository.storage, IDENTITY, SECOND);
  const scratchDirectory = await mkdtemp(join(tmpdir(), 'hf-damage-'));
  try {
    await writeBackupFiles({
      repository,
      record,
      targetDirectory: scratchDirectory,
      tablespaceMapping: new Map(),
      delta: true,
      scratchDirectory: tmpdir(),
    });
    await commitDataDirectory(scratchDirectory);
    for (const [path, content] of Object.entries(after)) {
      assert.ok((await readFile(join(scratchDirectory, path))).equals(content), `${path} was restored wrong`);
    }
  } finally {
    await rm(scratchDirectory, { recursive: true });
  }
}

interface Damage {
  what: string;
  bytes: Buffer | undefined;
}

function* damages(bytes: Buffer): Generator<Damage> {
  yield { what: 'removed', bytes: undefined };
  const { length } = bytes;
  for (const at of new Set([0, 1, length >> 1, length - 17, length - 1])) {
    if (at >= 0) yield { what: `cut to ${at} of ${length} bytes`, bytes: bytes.subarray(0, at) };
  }
  const flips = Math.min(length, 12 * SCALE);
  for (let flip = 0; flip < flips; flip += 1) {
    const at = Math.floor(((flip + random()) * length) / flips);
    const flipped = Buffer.from(bytes);
    const bit = 1 << Math.floor(random() * 8);
    flipped.writeUInt8((flipped[at] ?? 0) ^ bit, at);
    yield { what: `bit ${bit} of byte ${at} of ${length} flipped`, bytes: flipped };
  }
}

function damaged(objects: Map<string, Buffer>, key: string, { bytes }: Damage): Map<string, Buffer> {
  const copy = new Map(objects);
  if (bytes === undefined) copy.delete(key);
  else copy.set(key, bytes);
  return copy;
}

const seals: SealChoice[] = ['none', 'age'];

for (const seal of seals) {
  test(`writeBackupFiles() notices damage to every object of a backup, sealed with ${seal}`, async () => {
    const objects = await makeRepository(seal);
    await restoreSecond(objects, seal);
    const other = new RegExp(`${FIRST}\\.json|${FIRST}/(index|references)`);
    const kinds = new Set<string>();
    for (const [key, bytes] of objects) {
      if (other.test(key)) continue;
      const isOlderPack = key.includes(FIRST);
      kinds.add(
        key
          .replace(/^.*\/(?=.)/, '')
          .replace(/\.age$/, '')
          .replace(SECOND, 'record'),
      );
      for (const damage of damages(bytes)) {
        const where = `${key}: ${damage.what}`;
        const outcome = await restoreSecond(damaged(objects, key, damage), seal).then(
          () => 'restored',
          (error: unknown) => error,
        );
        // Only in an older pack may be what this backup does not use; what it does use was compared.
        if (outcome === 'restored' && isOlderPack) continue;
        assert.ok(outcome instanceof HoldfastError, `${where}: ${String(outcome)}`);
        assert.ok(DETECTED.includes(outcome.code), `${where}: ${outcome.code}: ${outcome.message}`);
      }
    }
    assert.deepEqual([...kinds].sort(), [
      'b000001.pack',
      'holdfast.json',
      'index.jsonl',
      'm000001.pack',
      'record.json',
      'references.jsonl',
    ]);
  });

  test(`verifyStored() notices every damage to a stored object without a key, sealed with ${seal}`, async () => {
    const objects = await makeRepository(seal);
    const repository = await testRepository({ storage: createMemoryStorage(objects), seal });
    const record = await readBackupRecord(repository.storage, IDENTITY, SECOND);
    const packs = await readReferences(repository, record);
    for (const stored of [record.index, record.references, ...packs.values()]) {
      await verifyStored(repository.storage, stored);
      for (const damage of damages(objects.get(stored.key) ?? Buffer.alloc(0))) {
        const storage = createMemoryStorage(damaged(objects, stored.key, damage));
        await assert.rejects(verifyStored(storage, stored), failsWith('object-damaged', 'object-missing'));
      }
    }
  });

  test(`takeBaseBackup()'s next backup is whole whatever of the maps before it is damaged, sealed with ${seal}`, async () => {
    const objects = await makeRepository(seal);
    const { storage } = await testRepository({ storage: createMemoryStorage(objects), seal });
    const previous = await readBackupRecord(storage, IDENTITY, SECOND);
    for (const [key, bytes] of objects) {
      if (key === MARKER_KEY || key === recordKey(IDENTITY, SECOND)) continue;
      for (const damage of damages(bytes)) {
        // A pack of blocks with a wrong bit and its full length is found by reading it: by a verification, not here.
        if (/\/b[0-9]+\.pack/.test(key) && damage.bytes?.length === bytes.length) continue;
        const copy = damaged(objects, key, damage);
        const repository = await testRepository({ storage: createMemoryStorage(copy), seal });
        const { record } = await storeFiles(repository, THIRD, entries(after), {
          blockSizeBytes: 512,
          previous,
        });
        const found = await readFiles(repository, record).catch((error: unknown) => {
          throw new Error(`${key}: ${damage.what}`, { cause: error });
        });
        assert.deepEqual(Object.fromEntries(found), after);
      }
    }
  });
}
