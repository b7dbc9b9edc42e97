/**
 * `docs/repository-format.md` against the code: a reader in Python that was written from the page alone has to give what
 * Holdfast's own restore gives, and to refuse what the page says is to be refused.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { chmod, copyFile, lstat, mkdir, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';

import { takeBaseBackup } from '../../src/backup/base-backup.ts';
import { systemClock } from '../../src/clock.ts';
import { type Instance, socketUrl, startInstance } from '../../src/postgres/instance.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { type BackupRecord, writeBackupRecord } from '../../src/repository/backup-record.ts';
import { type Extent, type MapEntry, SPAN_BLOCKS } from '../../src/repository/block-map.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { type ClusterIdentity, packKey, recordKey, walHeaderKey } from '../../src/repository/layout.ts';
import {
  readEntries,
  readReferences,
  writeChunks,
  writeIndex,
  writeReferences,
} from '../../src/repository/map-index.ts';
import { PackWriter } from '../../src/repository/pack-writer.ts';
import { initializeRepository, type Repository } from '../../src/repository/repository.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { commitDataDirectory } from '../../src/restore/data-tree.ts';
import { writeBackupFiles } from '../../src/restore/write-files.ts';
import { createIdentityFile, type Identity, readIdentityFile } from '../../src/seal/identity.ts';
import { openerFor, sealerFor } from '../../src/seal/sealers.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { crc32c } from '../../src/stream/crc32c.ts';
import { blake3Hex } from '../../src/stream/hash.ts';
import { pushWal } from '../../src/wal/push.ts';
import { createCluster, giveToServer, scratchDirectory, type TestCluster } from '../harness/cluster.ts';
import { seededRandom } from '../seeded-random.ts';

const READER = fileURLToPath(new URL('../vectors/read_repository.py', import.meta.url));
/** PostgreSQL's own, so that a file of 16 MiB needs more than one span. */
const BLOCK_BYTES = 8192;

interface Run {
  status: number | null;
  stdout: string;
  stderr: string;
}

function python(...args: string[]): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn('python3', ['-B', READER, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 240_000,
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
}

/** A repository with two backups of a small cluster, the second mostly places in the first's packs, and some WAL. */
class Lab implements AsyncDisposable {
  readonly directory: string;
  readonly cluster: TestCluster;
  readonly repository: Repository;
  readonly identity: ClusterIdentity;
  readonly identityFile: string | undefined;
  /** What was pushed, by name. */
  readonly wal = new Map<string, Buffer>();

  constructor(
    directory: string,
    cluster: TestCluster,
    repository: Repository,
    identity: ClusterIdentity,
    identityFile?: string,
  ) {
    this.directory = directory;
    this.cluster = cluster;
    this.repository = repository;
    this.identity = identity;
    this.identityFile = identityFile;
  }

  static async create(kind: 'none' | 'age'): Promise<Lab> {
    const directory = await scratchDirectory();
    await mkdir(join(directory, 'repository'));
    const recipients: string[] = [];
    let identities: Identity[] = [];
    let identityFile: string | undefined;
    if (kind === 'age') {
      identityFile = join(directory, 'identity.txt');
      recipients.push((await createIdentityFile(identityFile, new Date())).recipient);
      identities = await readIdentityFile(identityFile);
    }
    const { repository } = await initializeRepository(
      'local',
      createLocalStorage(join(directory, 'repository')),
      { sealer: await sealerFor(recipients), opener: (sealed) => openerFor(sealed, identities) },
      new Date(),
    );
    const cluster = await createCluster({ segmentSizeMb: 1 });
    const [row] = await cluster.sql<{ id: string }>(
      'select system_identifier::text as id from pg_control_system()',
    );
    const identity = { cluster: 'app', systemIdentifier: row?.id ?? '' };
    return new Lab(directory, cluster, repository, identity, identityFile);
  }

  get root(): string {
    return join(this.directory, 'repository');
  }

  pathOf(key: string): string {
    return join(this.root, key);
  }

  async push(name: string): Promise<void> {
    const path = join(this.cluster.dataDir, 'pg_wal', name);
    this.wal.set(name, await readFile(path));
    const { repository } = this;
    await pushWal({
      path,
      repositories: [repository],
      cluster: { configured: ['app'] },
      host: 'test',
      now: () => new Date(),
    });
  }

  async backup(): Promise<BackupRecord> {
    const pushes: Promise<void>[] = [];
    const record = await takeBaseBackup({
      repository: this.repository,
      identity: this.identity,
      server: { url: this.cluster.url, version: 0, versionText: '', role: 'primary', reason: 'the only one' },
      label: 'größer "than" fiction',
      pinned: false,
      stateDirectory: join(this.directory, 'state'),
      programVersion: '0',
      clock: systemClock,
      walTimeoutMs: 60_000,
      blockSizeBytes: BLOCK_BYTES,
      report: (event) => {
        if (event.event === 'waiting-for-wal') pushes.push(this.push(event.segment));
      },
    });
    await Promise.all(pushes);
    return record;
  }

  read(command: string, ...args: string[]): Promise<Run> {
    const key = this.identityFile === undefined ? [] : ['--identity', this.identityFile];
    const { cluster, systemIdentifier } = this.identity;
    return python(
      ...key,
      this.root,
      command,
      ...(command === 'list' ? [] : [cluster, systemIdentifier]),
      ...args,
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cluster[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** Puts files into the data directory that a fresh cluster does not have. */
async function addAwkwardFiles(cluster: TestCluster): Promise<void> {
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

async function ourRestore(lab: Lab, record: BackupRecord): Promise<Map<string, string>> {
  const targetDirectory = join(lab.directory, 'ours');
  await mkdir(targetDirectory, { mode: 0o700 });
  await writeBackupFiles({
    repository: lab.repository,
    record,
    targetDirectory,
    tablespaceMapping: new Map(),
    delta: false,
    scratchDirectory: lab.directory,
  });
  await commitDataDirectory(targetDirectory);
  const contents = await contentsOf(targetDirectory);
  await rm(targetDirectory, { recursive: true });
  return contents;
}

async function entriesOf(lab: Lab, record: BackupRecord): Promise<MapEntry[]> {
  const packs = await readReferences(lab.repository, record);
  return Array.fromAsync(readEntries(lab.repository, record, packs));
}

for (const kind of ['none', 'age'] as const) {
  describe(`the reader in Python, repository sealed with ${kind}`, { timeout: 600_000 }, () => {
    let lab: Lab;
    let first: BackupRecord;
    let second: BackupRecord;

    before(async () => {
      lab = await Lab.create(kind);
      const { cluster } = lab;
      await cluster.sql('create table t as select i, md5(i::text) from generate_series(1, 3000) i');
      await addAwkwardFiles(cluster);
      first = await lab.backup();
      await cluster.sql('insert into t select i, md5(i::text) from generate_series(3001, 4000) i');
      second = await lab.backup();
      await lab.push(await aPartial(cluster, second));
      await writeFile(join(cluster.dataDir, 'pg_wal/00000002.history'), '1\t0/3000000\tno reason\n');
      await lab.push('00000002.history');
      // A server that does not archive removes its own at once.
      const label = `${second.wal.first}.00000028.backup`;
      await writeFile(join(cluster.dataDir, 'pg_wal', label), `START WAL LOCATION: ${second.startLsn}\n`);
      await lab.push(label);
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

    it('rebuilds the data directory that writeBackupFiles() writes, and a server starts on it', async () => {
      const entries = await entriesOf(lab, second);
      const stored = entries.flatMap((entry) => ('extents' in entry ? entry.extents : [])).filter(isStored);
      const runs = new Set(stored.map(({ frame }) => frame.run));
      assert.deepEqual([...runs].sort(), [first.id, second.id], 'the second backup uses packs of both runs');
      assert.ok(entries.some((entry) => entry.kind === 'span' && entry.span === 2));
      assert.ok(first.stored.newBlocks > 5 * second.stored.newBlocks);

      const target = join(lab.directory, 'target');
      const { status, stderr } = await lab.read('restore', second.id, target);
      assert.equal(status, 0, stderr);
      const contents = await contentsOf(target);
      assert.deepEqual(contents, await ourRestore(lab, second));
      assert.equal(
        [...contents.values()].filter((text) => text.startsWith('file')).length,
        second.files.count,
      );

      for (const name of lab.wal.keys()) {
        if (!/^[0-9A-F]{24}$/.test(name)) continue;
        assert.equal((await lab.read('wal', name, join(target, 'pg_wal', name))).status, 0);
      }
      assert.equal(await countRows(lab, target), 4000);
    });

    it('lists and extracts every kind of WAL file as it was pushed', async () => {
      const { stdout } = await lab.read('wal-list');
      assert.deepEqual(stdout.trim().split('\n').sort(), [...lab.wal.keys()].sort());
      const kinds = new Set<string>();
      for (const [name, bytes] of lab.wal) {
        const destination = join(lab.directory, 'extracted');
        const { status, stderr } = await lab.read('wal', name, destination);
        assert.equal(status, 0, stderr);
        assert.ok((await readFile(destination)).equals(bytes), name);
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
      const restore = ['restore', second.id, target];
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
          });
          await rm(target, { recursive: true, force: true });
        }
      }
    });

    if (kind === 'age') {
      it('needs an identity for contents, and none for the list', async () => {
        const { cluster, systemIdentifier } = lab.identity;
        const target = join(lab.directory, 'sealed');
        const { status, stderr } = await python(
          lab.root,
          'restore',
          cluster,
          systemIdentifier,
          second.id,
          target,
        );
        assert.equal(status, 1);
        assert.match(stderr, /does not open/);
        assert.equal((await python(lab.root, 'list')).status, 0);
      });

      it('leaves no file name of the cluster and no block hash readable in the repository', async () => {
        const entries = await entriesOf(lab, second);
        const hashes = entries.flatMap((entry) => ('extents' in entry ? entry.extents : [])).filter(isStored);
        const secrets = [
          Buffer.from('pg_hba.conf'),
          ...hashes.slice(0, 50).map((e) => e.hashes.subarray(0, 16)),
        ];
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
          [[{ kind: 'link', path: 'base', target: '/etc' }], /link/],
          [[{ kind: 'link', path: 'pg_tblspc/1', target: '/etc' }], /link/],
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
          const { status, stderr } = await lab.read('restore', id, target);
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

function isStored(extent: Extent): extent is Extract<Extent, { hashes: Buffer }> {
  return 'hashes' in extent;
}

/** The last segment of a backup again, as the incomplete last one of a timeline that ended. */
async function aPartial(cluster: TestCluster, record: BackupRecord): Promise<string> {
  const segment = join(cluster.dataDir, 'pg_wal', record.wal.last);
  await copyFile(segment, `${segment}.partial`);
  return `${record.wal.last}.partial`;
}

/** Puts other bytes in an object's place, or nothing, for as long as `work` takes. */
async function withChange(path: string, bytes: Buffer | undefined, work: () => Promise<void>): Promise<void> {
  const original = await readFile(path);
  await (bytes === undefined ? rm(path) : writeFile(path, bytes));
  try {
    await work();
  } finally {
    await writeFile(path, original);
  }
}

/** Commits a backup whose map is made up. */
async function forge(lab: Lab, like: BackupRecord, id: string, entries: MapEntry[]): Promise<void> {
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

/** Starts a server on a directory that the reader rebuilt: it recovers to the end of the WAL it finds. */
async function countRows(lab: Lab, dataDirectory: string): Promise<number> {
  await giveToServer(dataDirectory);
  const user = await serverUser();
  const socketDirectory = await scratchDirectory();
  let instance: Instance | undefined;
  try {
    instance = await startInstance({
      binaries: lab.cluster.binaries,
      dataDirectory,
      user,
      socketDirectory,
      port: 0,
      logFile: join(socketDirectory, 'server.log'),
    });
    const { Client } = await import('pg');
    const client = new Client({ connectionString: socketUrl(socketDirectory, 5432, 'postgres', 'postgres') });
    await client.connect();
    try {
      const { rows } = await client.query<{ count: number }>('select count(*)::int as count from t');
      return rows[0]?.count ?? 0;
    } finally {
      await client.end();
    }
  } finally {
    await instance?.stop('immediate');
    await rm(socketDirectory, { recursive: true, force: true });
  }
}
