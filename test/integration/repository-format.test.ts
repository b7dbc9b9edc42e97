/**
 * `docs/repository-format.md` against the code: a reader in Python that was written from the page alone has to give what
 * Holdfast's own restore gives, and to refuse what the page says is to be refused.
 */
import assert from 'node:assert/strict';
import { chmod, copyFile, lstat, mkdir, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { pushWal } from '../../src/wal/push.ts';
import { type BackupRecord, writeBackupRecord } from '../../src/repository/backup-record.ts';
import {
  type Extent,
  type MapEntry,
  SPAN_BLOCKS,
  type StoredExtent,
} from '../../src/repository/block-map.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { packKey, recordKey, walHeaderKey } from '../../src/repository/layout.ts';
import {
  readEntries,
  readReferences,
  writeChunks,
  writeIndex,
  writeReferences,
} from '../../src/repository/map-index.ts';
import { PackWriter } from '../../src/repository/pack-writer.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { crc32c } from '../../src/stream/crc32c.ts';
import { blake3Hex } from '../../src/stream/hash.ts';
import { restoreFiles } from '../harness/backup.ts';
import { createCluster, giveToServer, scratchDirectory, type TestCluster } from '../harness/cluster.ts';
import { createFormatLab, type FormatLab, python, withChange } from '../harness/format-lab.ts';
import { seededRandom } from '../seeded-random.ts';

/** PostgreSQL's own, so that a file of 16 MiB needs more than one span. */
const BLOCK_BYTES = 8192;

/** Puts things into a cluster that a fresh one does not have. */
async function addAwkwardThings(cluster: TestCluster): Promise<void> {
  const outside = join(cluster.scratch, 'außen "\\');
  await mkdir(outside);
  await giveToServer(cluster.scratch);
  await cluster.sql('create table t as select i, md5(i::text) from generate_series(1, 3000) i');
  await cluster.sql(`create tablespace outside location '${outside}'`);
  await cluster.sql(`create tablespace inplace location ''`);
  await cluster.sql('create table o tablespace outside as select generate_series(1, 2000) as i');
  await cluster.sql('create table p tablespace inplace as select generate_series(1, 2000) as i');

  const put = async (name: Buffer | string, bytes: Buffer): Promise<void> => {
    const path = Buffer.concat([Buffer.from(`${cluster.dataDir}/`), Buffer.from(name)]);
    await writeFile(path, bytes);
    await chmod(path, 0o640);
  };
  const random = seededRandom(1);
  const holes = Buffer.alloc((SPAN_BLOCKS * 2 + 3) * BLOCK_BYTES + 77);
  for (const block of [0, 5, 6, SPAN_BLOCKS - 1, SPAN_BLOCKS, SPAN_BLOCKS * 2 + 3]) {
    for (let at = 0; at < 50; at += 1) holes[block * BLOCK_BYTES + at] = Math.floor(random() * 256);
  }
  await put('holes', holes);
  await put('just-small', holes.subarray(0, SPAN_BLOCKS * BLOCK_BYTES));
  await put('empty', Buffer.alloc(0));
  await put('short-zeros', Buffer.alloc(3 * BLOCK_BYTES + 100));
  await put(Buffer.from([0x22, 0x0a, 0xff, 0xc3, 0x5c, 0x20]), Buffer.from('a name in no character set'));
  await mkdir(join(cluster.dataDir, 'deep/er'), { recursive: true });
  await put('deep/er/file', Buffer.from('x'));
  await put('deep-er', Buffer.from('sorts between a directory and what is in it'));
  await giveToServer(cluster.dataDir);
}

/** Pushes what the lab does not: a partial segment, a backup history file, a timeline's history. */
async function pushOthers(lab: FormatLab, { wal, startLsn }: BackupRecord): Promise<void> {
  const directory = join(lab.cluster.dataDir, 'pg_wal');
  await copyFile(join(directory, wal.last), join(directory, `${wal.last}.partial`));
  await writeFile(join(directory, `${wal.first}.00000028.backup`), `START WAL LOCATION: ${startLsn}\n`);
  await writeFile(join(directory, '00000002.history'), '1\t0/3000000\tno reason\n');
  for (const name of [`${wal.last}.partial`, `${wal.first}.00000028.backup`, '00000002.history']) {
    await pushWal({
      path: join(directory, name),
      repositories: [lab.repository],
      cluster: { configured: [lab.identity.cluster] },
      host: 'test',
      now: () => new Date(),
    });
  }
}

async function walNames(lab: FormatLab): Promise<string[]> {
  return (await Array.fromAsync(listWal(lab.repository, lab.identity))).map(({ name }) => name);
}

/** Kind, mode and content of everything below a directory, by raw path. */
async function contentsOf(root: string): Promise<Map<string, string>> {
  const contents = new Map<string, string>();
  const visit = async (directory: Buffer): Promise<void> => {
    for (const name of await readdir(directory, { encoding: 'buffer' })) {
      const path = Buffer.concat([directory, Buffer.from('/'), name]);
      const stats = await lstat(path);
      const mode = (stats.mode & 0o7777).toString(8);
      const shown = path.subarray(Buffer.byteLength(root) + 1).toString('latin1');
      if (stats.isDirectory()) {
        contents.set(shown, `directory ${mode}`);
        await visit(path);
      } else if (stats.isSymbolicLink()) contents.set(shown, `link ${await readlink(path)}`);
      else contents.set(shown, `file ${mode} ${stats.size} ${blake3Hex(await readFile(path))}`);
    }
  };
  await visit(Buffer.from(root));
  return contents;
}

/** Both the data directory and the tablespace, as Holdfast restores them; nothing of it stays. */
async function ourRestore(
  lab: FormatLab,
  record: BackupRecord,
  moved: string,
): Promise<Map<string, string>[]> {
  const directory = join(lab.directory, 'ours');
  const tablespaces = new Map(record.tablespaces.map(({ location }) => [location, moved]));
  await restoreFiles(directory, record, { repository: lab.repository, tablespaces });
  const contents = [await contentsOf(directory), await contentsOf(moved)];
  await rm(directory, { recursive: true });
  await rm(moved, { recursive: true });
  return contents;
}

async function storedExtents(lab: FormatLab, record: BackupRecord): Promise<StoredExtent[]> {
  const packs = await readReferences(lab.repository, record);
  const entries = await Array.fromAsync(readEntries(lab.repository, record, packs));
  return entries
    .flatMap((entry) => ('extents' in entry ? entry.extents : []))
    .filter((extent) => 'hashes' in extent);
}

for (const kind of ['none', 'age'] as const) {
  describe(`the reader in Python, repository sealed with ${kind}`, { timeout: 600_000 }, () => {
    let lab: FormatLab;
    let first: BackupRecord;
    let second: BackupRecord;

    before(async () => {
      lab = await createFormatLab(kind);
      await addAwkwardThings(lab.cluster);
      first = await lab.backup({ blockSizeBytes: BLOCK_BYTES, label: 'größer "than" fiction' });
      await lab.cluster.sql('insert into t select i, md5(i::text) from generate_series(3001, 4000) i');
      second = await lab.backup({ blockSizeBytes: BLOCK_BYTES });
      await pushOthers(lab, second);
    });
    after(() => lab[Symbol.asyncDispose]());

    it('lists the backups that listBackups() lists', async () => {
      const { status, stdout, stderr } = await lab.read('list');
      assert.equal(status, 0, stderr);
      const { backups } = await listBackups(lab.repository, lab.identity);
      const expected = backups.map(({ id, label, startLsn, stopLsn, timeline, wal }) => {
        return { ...lab.identity, id, label, startLsn, stopLsn, timeline, wal };
      });
      const lines = stdout.trim().split('\n');
      assert.deepEqual(
        lines.map((line) => JSON.parse(line) as unknown),
        expected,
      );
      assert.equal(lines.length, 2);
    });

    it('rebuilds what writeBackupFiles() writes, and a server starts on it', async () => {
      const runs = new Set((await storedExtents(lab, second)).map(({ frame }) => frame.run));
      assert.deepEqual([...runs].sort(), [first.id, second.id], 'the second backup uses packs of both runs');
      assert.ok(first.stored.newBlocks > 5 * second.stored.newBlocks);

      await using cluster = await createCluster({ major: lab.cluster.major, start: false });
      const target = cluster.dataDir;
      await rm(target, { recursive: true });
      const moved = join(cluster.scratch, 'neuer "Ort" \\');
      const ours = await ourRestore(lab, second, moved);
      const [tablespace] = second.tablespaces;
      const mapping = `${tablespace?.oid}=${moved}`;
      const { status, stderr } = await lab.read('restore', second.id, target, '--tablespace', mapping);
      assert.equal(status, 0, stderr);
      assert.deepEqual([await contentsOf(target), await contentsOf(moved)], ours);

      for (const name of await walNames(lab)) {
        if (!/^[0-9A-F]{24}$/.test(name)) continue;
        assert.equal((await lab.read('wal', name, join(target, 'pg_wal', name))).status, 0);
      }
      await giveToServer(cluster.scratch);
      await cluster.start();
      const rows = await cluster.sql(
        'select (select count(*) from t)::int as t, (select count(*) from o)::int as o, (select count(*) from p)::int as p',
      );
      assert.deepEqual(rows, [{ t: 4000, o: 2000, p: 2000 }]);
    });

    it('lists and extracts every kind of WAL file as it was pushed', async () => {
      const { stdout } = await lab.read('wal-list');
      const names = await walNames(lab);
      assert.deepEqual(stdout.trim().split('\n').sort(), names.sort());
      const kinds = new Set<string>();
      for (const name of names) {
        const destination = join(lab.directory, 'extracted');
        const { status, stderr } = await lab.read('wal', name, destination);
        assert.equal(status, 0, stderr);
        const original = await readFile(join(lab.cluster.dataDir, 'pg_wal', name));
        assert.ok((await readFile(destination)).equals(original), name);
        kinds.add((await readWalHeader(lab.repository, lab.identity, name))?.kind ?? '');
      }
      assert.deepEqual([...kinds].sort(), ['backup-label', 'history', 'partial', 'segment']);
    });

    it('tells a WAL file that is not there from one that cannot be read', async () => {
      const destination = join(lab.directory, 'none');
      assert.equal((await lab.read('wal', '0000000F0000000000000001', destination)).status, 3);
      const name = second.wal.first;
      const header = await readWalHeader(lab.repository, lab.identity, name);
      await withChange(lab.pathOf(header?.stored.key ?? ''), undefined, async () => {
        assert.equal((await lab.read('wal', name, destination)).status, 1);
      });
      await assert.rejects(lstat(destination), { code: 'ENOENT' });
    });

    it('refuses every kind of object with a flipped byte or without its end', async () => {
      const { identity } = lab;
      const name = second.wal.first;
      const header = await readWalHeader(lab.repository, identity, name);
      const packs = [...(await readReferences(lab.repository, second)).values()].map(({ key }) => key);
      const packOfKind = (letter: 'b' | 'm', run: string): string =>
        packs.find((key) => key.startsWith(packKey(identity, run, letter, 1))) ?? '';
      const target = join(lab.directory, 'refused');
      const restore = restoreCommand(second, second.id, target);
      const wal = ['wal', name, target];
      const cases: [key: string, command: string[]][] = [
        ['holdfast.json', ['list']],
        [recordKey(identity, second.id), restore],
        [second.references.key, restore],
        [second.index.key, restore],
        [packOfKind('m', second.id), restore],
        [packOfKind('b', first.id), restore],
        [walHeaderKey(identity, name), wal],
        [header?.stored.key ?? '', wal],
      ];
      for (const [key, command] of cases) {
        const bytes = await readFile(lab.pathOf(key));
        const flipped = Buffer.from(bytes);
        const middle = Math.floor(bytes.length / 2);
        flipped[middle] = (flipped[middle] ?? 0) ^ 1;
        for (const changed of [flipped, bytes.subarray(0, -1), Buffer.concat([bytes, Buffer.alloc(1)])]) {
          await withChange(lab.pathOf(key), changed, async () => {
            const { status, stderr } = await lab.read(command[0] ?? '', ...command.slice(1));
            assert.equal(status, 1, `${key}, ${changed.length} of ${bytes.length} bytes`);
            assert.match(stderr, /^refused: Damaged: /);
            assert.ok(stderr.includes(key), `${stderr} names ${key}`);
          });
          await rm(target, { recursive: true, force: true });
          await rm(`${target}-space`, { recursive: true, force: true });
        }
      }
    });

    if (kind === 'age') {
      it('needs an identity for contents, and none for the list', async () => {
        const { cluster, systemIdentifier } = lab.identity;
        const target = join(lab.directory, 'sealed');
        const [command = '', ...rest] = restoreCommand(second, second.id, target);
        const { status, stderr } = await python(lab.root, command, cluster, systemIdentifier, ...rest);
        assert.equal(status, 1);
        assert.match(stderr, /does not open/);
        assert.equal((await python(lab.root, 'list')).status, 0);
      });

      it('leaves no file name of the cluster and no block hash readable in the repository', async () => {
        const hashes = (await storedExtents(lab, second)).slice(0, 50).map((e) => e.hashes.subarray(0, 16));
        const secrets = [Buffer.from('pg_hba.conf'), ...hashes];
        for (const entry of await readdir(lab.root, { recursive: true, withFileTypes: true })) {
          if (!entry.isFile()) continue;
          const bytes = await readFile(join(entry.parentPath, entry.name));
          for (const secret of secrets) assert.ok(!bytes.includes(secret), entry.name);
        }
      });
    } else {
      it('refuses maps that would write elsewhere, do not rise, or do not describe a file', async () => {
        const directory: MapEntry = { kind: 'directory', path: 'global', mode: 0o700 };
        const file = (path: string, sizeBytes: number, extents: Extent[] = []): MapEntry => {
          return { kind: 'file', path, mode: 0o600, sizeBytes, crc32c: 0, extents };
        };
        const zeros = (blocks: number): Extent => ({ zeroBlocks: blocks });
        const hostile: [entries: MapEntry[], reason: RegExp][] = [
          [[file('../escaped', 0)], /impossible path/],
          [[file('/escaped', 0)], /impossible path/],
          [[directory, file('global/../../escaped', 0)], /impossible path/],
          [[file('a\0b', 0)], /impossible path/],
          [[file('', 0)], /impossible path/],
          [[directory, file('a', 0)], /out of order/],
          [[directory, directory], /out of order/],
          [[file('a', BLOCK_BYTES)], /not described to its end/],
          [[file('a', BLOCK_BYTES, [zeros(2)])], /too many blocks/],
          [[file('a', BLOCK_BYTES + 1, [zeros(2)])], /short block among its zeros/],
          [[{ kind: 'span', path: 'a', span: 0, extents: [zeros(1)] }], /without a file/],
          [
            [file('a', 1), { kind: 'span', path: 'a', span: 0, extents: [zeros(1)] }],
            /span out of place|not described/,
          ],
          [[file('a', BLOCK_BYTES, [zeros(1)])], /CRC-32C/],
          [[file('a', 0)], /does not add up/],
        ];
        for (const [index, [entries, reason]] of hostile.entries()) {
          const id = `20000101T000000Z-${String(index).padStart(4, '0')}`;
          await forge(lab, second, id, entries);
          const target = join(lab.directory, 'hostile/target');
          const [command = '', ...rest] = restoreCommand(second, id, target);
          const { status, stderr } = await lab.read(command, ...rest);
          assert.equal(status, 1, `${index}`);
          assert.match(stderr, reason);
          await assert.rejects(lstat(join(lab.directory, 'hostile/escaped')), { code: 'ENOENT' });
          await assert.rejects(lstat('/escaped'), { code: 'ENOENT' });
          await rm(join(lab.directory, 'hostile'), { recursive: true, force: true });
          await rm(lab.pathOf(recordKey(lab.identity, id)));
        }
      });
    }
  });
}

describe('the hashes of the reader in Python', () => {
  it('are those of blake3Hex() and crc32c(), at every border of the tree', async () => {
    const directory = await scratchDirectory();
    const random = seededRandom(7);
    const bytes = Buffer.from(Array.from({ length: 1_100_000 }, () => Math.floor(random() * 256)));
    const sizes = [
      0,
      1,
      63,
      64,
      65,
      1023,
      1024,
      1025,
      2048,
      3073,
      5120,
      7169,
      32_767,
      32_768,
      2 ** 20,
      2 ** 20 + 1,
    ];
    sizes.push(bytes.length);
    const paths: string[] = [];
    for (const size of sizes) {
      paths.push(join(directory, String(size)));
      await writeFile(paths.at(-1) ?? '', bytes.subarray(0, size));
    }
    const { stdout } = await python('hash', ...paths);
    const expected = sizes.map((size) => {
      const part = bytes.subarray(0, size);
      return `${blake3Hex(part)} ${crc32c(part).toString(16).padStart(8, '0')}`;
    });
    assert.deepEqual(stdout.trim().split('\n'), expected);
    await rm(directory, { recursive: true });
  });
});

/** The tablespace goes beside the target: where it was, it still is. */
function restoreCommand({ tablespaces }: BackupRecord, id: string, target: string): string[] {
  const mappings = tablespaces.flatMap(({ oid }) => ['--tablespace', `${oid}=${target}-space`]);
  return ['restore', id, target, ...mappings];
}

/** Commits a backup whose map is made up. */
async function forge(lab: FormatLab, like: BackupRecord, id: string, entries: MapEntry[]): Promise<void> {
  const { repository, identity } = lab;
  const writer = new PackWriter(repository, identity, id, 'm');
  async function* source(): AsyncGenerator<MapEntry> {
    yield* entries;
  }
  const chunks = await writeChunks(source(), writer, new Map(), () => undefined);
  const index = await writeIndex(repository, identity, id, chunks);
  const references = await writeReferences(repository, identity, id, writer.packs);
  await writeBackupRecord(repository.storage, { ...like, id, index, references });
}
