import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';

import type { BackupRecord } from '../repository/backup-record.ts';
import type { ChunkReference } from '../repository/map-index.ts';
import { blake3Hex } from '../stream/hash.ts';
import { IDENTITY } from '../../test/harness/synthetic-backup.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import { LocalChunkCache } from './chunk-cache.ts';

const CHUNKS = ['one', 'two', 'three'].map((text) => Buffer.from(text.repeat(100)));

function reference(plain: Buffer, at: number): ChunkReference {
  const hash = blake3Hex(plain);
  return {
    first: `base/\xff\u2028${at}\0`,
    run: 'r',
    pack: 1,
    offset: at,
    bytes: 9,
    plainBytes: plain.length,
    hash,
  };
}

async function filled(t: TestContext): Promise<{
  cache: LocalChunkCache;
  directory: string;
  record: BackupRecord;
  references: ChunkReference[];
}> {
  const state = await mkdtemp(join(tmpdir(), 'hf-cache-'));
  t.after(() => rm(state, { recursive: true, force: true }));
  const repository = await openTestRepository();
  const cache = new LocalChunkCache(state, repository, IDENTITY);
  const record = { ...IDENTITY, id: '20260101T000000Z-0000' } as BackupRecord;
  const references = CHUNKS.map(reference);
  for (const plain of CHUNKS) await cache.keep(blake3Hex(plain), plain);
  await cache.commit(record, references);
  const [name = ''] = await readdir(join(state, 'maps'));
  assert.ok(name.includes(repository.id) && name.includes(IDENTITY.systemIdentifier));
  return { cache, directory: join(state, 'maps', name), record, references };
}

test('LocalChunkCache gives back what it kept, to this backup only', async (t) => {
  const { cache, record, references } = await filled(t);
  assert.deepEqual(await cache.index(record), references);
  for (const plain of CHUNKS) assert.deepEqual(await cache.chunk(blake3Hex(plain)), plain);
  assert.equal(await cache.index({ ...record, id: '20260101T000000Z-0001' }), undefined);
  assert.equal(await cache.chunk(blake3Hex(Buffer.from('other'))), undefined);
});

test('LocalChunkCache ignores whatever was altered, truncated or taken away', async (t) => {
  const { cache, directory, record } = await filled(t);
  for (const name of await readdir(directory)) {
    const path = join(directory, name);
    const bytes = await readFile(path);
    const ask = async (): Promise<unknown> =>
      name.endsWith('.index') ? await cache.index(record) : await cache.chunk(name);
    assert.notEqual(await ask(), undefined);
    for (let at = 0; at < bytes.length; at += Math.ceil(bytes.length / 60)) {
      const altered = Buffer.from(bytes);
      altered.writeUInt8(altered.readUInt8(at) ^ (1 << (at % 8)), at);
      await writeFile(path, altered);
      assert.equal(await ask(), undefined, `byte ${at} of ${name}`);
      await writeFile(path, bytes);
      await truncate(path, at);
      assert.equal(await ask(), undefined, `${at} bytes of ${name}`);
    }
    await writeFile(path, Buffer.concat([bytes, Buffer.from('\n')]));
    assert.equal(await ask(), undefined, `one byte more of ${name}`);
    await rm(path);
    assert.equal(await ask(), undefined);
    await writeFile(path, bytes);
  }
});

test('LocalChunkCache.commit() forgets what only earlier backups used', async (t) => {
  const { cache, directory, record, references } = await filled(t);
  const next = { ...record, id: '20260102T000000Z-0000' };
  await writeFile(join(directory, 'rubbish'), 'x');
  await cache.commit(next, references.slice(0, 1));
  assert.deepEqual((await readdir(directory)).sort(), [`${next.id}.index`, references[0]?.hash ?? ''].sort());
  assert.deepEqual(await cache.index(next), references.slice(0, 1));
  assert.equal(await cache.index(record), undefined);
});

test('LocalChunkCache is readable by its owner alone: it names files of the cluster', async (t) => {
  const { directory } = await filled(t);
  assert.equal((await stat(directory)).mode & 0o077, 0);
  for (const name of await readdir(directory))
    assert.equal((await stat(join(directory, name))).mode & 0o077, 0);
});
