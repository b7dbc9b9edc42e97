import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';

import { entryKey, HASH_BYTES, type MapEntry } from '../repository/block-map.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { MapSpool } from './map-spool.ts';

async function spoolIn(t: TestContext): Promise<{ spool: MapSpool; directory: string }> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-spool-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return { spool: new MapSpool(directory), directory };
}

function file(path: string, run = 'r', sizeBytes = 10, crc32c = 77): MapEntry & { kind: 'file' } {
  const extents = [
    { frame: { run, pack: 1, offset: 0, bytes: 5 }, plainOffset: 3, hashes: Buffer.alloc(HASH_BYTES, 1) },
  ];
  return { kind: 'file', path, mode: 0o600, sizeBytes, crc32c, extents };
}

test('MapSpool gives entries in the order of the map, however they came, also when they do not fit into memory', async (t) => {
  const { spool, directory } = await spoolIn(t);
  await using _ = spool;
  const entries: MapEntry[] = [{ kind: 'directory', path: 'base', mode: 0o700 }];
  for (let at = 0; at < 40_000; at += 1) entries.push(file(`base/${at}\xff`, `run${at % 3}`));
  for (let span = 0; span < 20; span += 1) {
    entries.push({ kind: 'span', path: 'base/7\xff', span: span * 7, extents: [{ zeroBlocks: 2048 }] });
  }
  const random = seededRandom(1);
  const shuffled = entries
    .map((entry) => ({ entry, by: random() }))
    .sort((a, b) => a.by - b.by)
    .map(({ entry }) => entry);
  for (const entry of shuffled) await spool.add(entry);
  for (const entry of shuffled) if (entry.kind === 'file') await spool.addManifestFile(entry);
  assert.ok((await readdir(directory)).length > 0, 'nothing was spilled');
  const wanted = entries.sort((a, b) => (entryKey(a) < entryKey(b) ? -1 : 1));
  assert.deepEqual(await Array.fromAsync(spool.entries()), wanted);
});

test('MapSpool removes its scratch files', async (t) => {
  const { spool, directory } = await spoolIn(t);
  for (let at = 0; at < 40_000; at += 1) await spool.add(file(`base/${at}`));
  assert.notEqual((await readdir(directory)).length, 0);
  await spool[Symbol.asyncDispose]();
  assert.deepEqual(await readdir(directory), []);
});

const cases: [
  what: string,
  arrived: MapEntry[],
  manifest: (MapEntry & { kind: 'file' })[],
  message: RegExp,
][] = [
  [
    'a file that did not arrive',
    [file('a'), file('c')],
    [file('a'), file('b'), file('c')],
    /"b": it did not arrive/,
  ],
  ['a last file that did not arrive', [file('a')], [file('a'), file('b')], /"b": it did not arrive/],
  ['no file at all', [], [file('a')], /"a": it did not arrive/],
  ['a file that nobody sent', [file('a'), file('b')], [file('a')], /"b": it is not in the manifest/],
  ['a first file that nobody sent', [file('a'), file('b')], [file('b')], /"a": it is not in the manifest/],
  ['another size', [file('a', 'r', 9)], [file('a')], /"a": 9 bytes arrived of 10/],
  ['another content', [file('a', 'r', 10, 78)], [file('a')], /"a": its checksum is another/],
];
for (const [what, arrived, manifest, message] of cases) {
  test(`MapSpool refuses what differs from the manifest: ${what}`, async (t) => {
    const { spool } = await spoolIn(t);
    await using _ = spool;
    for (const entry of arrived) await spool.add(entry);
    for (const entry of manifest) await spool.addManifestFile(entry);
    await assert.rejects(Array.fromAsync(spool.entries()), (error: unknown) => {
      assert.ok(failsWith('checksum-mismatch')(error), String(error));
      assert.match((error as Error).message, message);
      return true;
    });
  });
}

test('MapSpool compares whole 32 bit checksums and sizes over 4 GiB', async (t) => {
  const { spool } = await spoolIn(t);
  await using _ = spool;
  const large = file('a', 'r', 2 ** 45 + 1, 0xffff_fffe);
  await spool.add(large);
  await spool.addManifestFile(large);
  assert.deepEqual(await Array.fromAsync(spool.entries()), [large]);
});
