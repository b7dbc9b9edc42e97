import assert from 'node:assert/strict';
import {
  chmod,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import type { Repository } from '../repository/repository.ts';
import { storeFiles, type SyntheticEntry } from '../../test/harness/synthetic-backup.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import { commitDataDirectory } from './data-tree.ts';
import { writeBackupFiles, type WriteFilesOptions } from './write-files.ts';

const BLOCK = 512;
const SPAN = 2048 * BLOCK;
const random = seededRandom(11);

function noise(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (let at = 0; at < sizeBytes; at += 1) bytes[at] = random() * 256;
  return bytes;
}

/** A hole in the middle, and an end that is no whole block. */
function withHoles(sizeBytes: number): Buffer {
  const bytes = noise(sizeBytes);
  bytes.fill(0, Math.floor(sizeBytes / 4), Math.floor(sizeBytes / 2));
  return bytes;
}

const FILES: Record<string, Buffer> = {
  PG_VERSION: Buffer.from('15\n'),
  'base/1/1000': withHoles(3 * BLOCK),
  'base/1/1001': Buffer.alloc(0),
  'base/1/1002': Buffer.alloc(20 * BLOCK),
  'base/1/1003': withHoles(2 * SPAN + 700),
  'base/1/1004': withHoles(SPAN),
  'global/pg_control': noise(8192),
  'global/pg_control.old': noise(100),
  'global/1262': noise(8192),
  'odd \xff\xfe\n name': noise(10),
};
const DIRECTORIES = ['base', 'base/1', 'global', 'pg_notify'];

function* entries(files = FILES): Generator<SyntheticEntry> {
  for (const path of DIRECTORIES) yield { path, directory: true };
  for (const [path, content] of Object.entries(files)) {
    yield { path, pieces: [content], mode: path === 'PG_VERSION' ? 0o640 : 0o600 };
  }
}

interface Target {
  repository: Repository;
  record: BackupRecord;
  root: string;
  data: string;
  write: (overrides?: Partial<WriteFilesOptions>) => ReturnType<typeof writeBackupFiles>;
}

async function target(t: TestContext, files = FILES): Promise<Target> {
  const root = await mkdtemp(join(tmpdir(), 'hf-write-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const repository = await openTestRepository();
  const { record } = await storeFiles(repository, '20260101T000000Z-0000', entries(files), {
    blockSizeBytes: BLOCK,
  });
  const data = join(root, 'data');
  await mkdir(data);
  const write = (overrides: Partial<WriteFilesOptions> = {}) =>
    writeBackupFiles({
      repository,
      record,
      targetDirectory: data,
      tablespaceMapping: new Map(),
      delta: false,
      scratchDirectory: root,
      ...overrides,
    });
  return { repository, record, root, data, write };
}

/** Every file below a directory, by its name as latin1; directories end with a slash. */
async function contents(directory: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  const walk = async (prefix: string): Promise<void> => {
    const place = Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(prefix, 'latin1')]);
    for (const entry of await readdir(place, { withFileTypes: true, encoding: 'buffer' })) {
      const path = prefix + entry.name.toString('latin1');
      if (entry.isDirectory()) {
        found[`${path}/`] = '';
        await walk(`${path}/`);
      } else {
        const bytes = await readFile(
          Buffer.concat([Buffer.from(`${directory}/`), Buffer.from(path, 'latin1')]),
        );
        found[path] = bytes.toString('latin1');
      }
    }
  };
  await walk('');
  return found;
}

function wanted(files = FILES): Record<string, string> {
  return Object.fromEntries([
    ...DIRECTORIES.map((path) => [`${path}/`, '']),
    ...Object.entries(files).map(([path, content]) => [path, content.toString('latin1')]),
  ]);
}

test('writeBackupFiles() writes every file as it was, and pg_control under a name of its own', async (t) => {
  const { data, write, record } = await target(t);
  const progress: number[] = [];
  const written = await write({ progress: (done) => progress.push(done) });
  const total = Object.values(FILES).reduce((sum, { length }) => sum + length, 0);
  assert.deepEqual([written.files, written.removed], [10, 0]);
  assert.equal(written.bytesWritten + written.bytesKept, total);
  assert.equal(progress.at(-1), record.files.sizeBytes);
  await assert.rejects(lstat(join(data, 'global/pg_control')), { code: 'ENOENT' });
  await commitDataDirectory(data);
  assert.deepEqual(await contents(data), wanted());
  assert.equal((await lstat(join(data, 'PG_VERSION'))).mode & 0o777, 0o640);
  assert.equal((await lstat(join(data, 'base/1/1000'))).mode & 0o777, 0o600);
  const { blocks } = await lstat(join(data, 'base/1/1002'));
  assert.equal(blocks, 0);
});

test('writeBackupFiles() refuses to overwrite anything without delta', async (t) => {
  const { data, write } = await target(t);
  await mkdir(join(data, 'base/1'), { recursive: true });
  await writeFile(join(data, 'base/1/1000'), 'mine');
  await assert.rejects(write());
  assert.equal(await readFile(join(data, 'base/1/1000'), 'utf8'), 'mine');
});

test('writeBackupFiles() with delta writes only what differs and removes what the backup has not', async (t) => {
  const { data, root, write } = await target(t);
  await write();
  await commitDataDirectory(data);
  const outside = join(root, 'outside');
  await mkdir(outside);
  await writeFile(join(outside, 'precious'), 'kept');

  const untouched = await write({ delta: true });
  assert.deepEqual([untouched.bytesWritten, untouched.removed], [0, 0]);
  await assert.rejects(lstat(join(data, 'global/pg_control')), { code: 'ENOENT' });

  await rm(join(data, 'base/1/1000'));
  await symlink(join(outside, 'precious'), join(data, 'base/1/1000'));
  await writeFile(join(data, 'base/1/1001'), noise(5000));
  await writeFile(join(data, 'base/1/1002'), noise(15 * BLOCK));
  await truncate(join(data, 'base/1/1003'), SPAN + 100);
  await writeFile(join(data, 'base/1/1004'), Buffer.concat([FILES['base/1/1004'] ?? noise(1), noise(900)]));
  await rm(join(data, 'pg_notify'), { recursive: true });
  await symlink(outside, join(data, 'pg_notify'));
  await rm(join(data, 'PG_VERSION'));
  await mkdir(join(data, 'PG_VERSION/deep'), { recursive: true });
  await writeFile(join(data, 'postmaster.pid'), '1');
  await mkdir(join(data, 'base/2/deep'), { recursive: true });
  await writeFile(join(data, 'base/2/deep/file'), 'x');
  await symlink(outside, join(data, 'base/link'));
  // Segments fetched ahead for a recovery that was killed together with everything else.
  const window = join(data, 'pg_wal/holdfast-prefetch/1-2');
  await mkdir(window, { recursive: true });
  await writeFile(join(window, `7-000000010000000000000001-${'a'.repeat(64)}`), 'x');
  await writeFile(join(data, 'pg_wal/holdfast-prefetch/owner'), 'x');
  await chmod(join(data, 'base'), 0o750);

  const written = await write({ delta: true });
  await commitDataDirectory(data);
  assert.deepEqual(await contents(data), wanted());
  assert.deepEqual(await contents(outside), { precious: 'kept' });
  assert.equal((await lstat(join(data, 'base'))).mode & 0o777, 0o700);
  assert.ok(written.bytesWritten < SPAN + 20 * BLOCK, `${written.bytesWritten} bytes`);
});

test('writeBackupFiles() with delta continues where a run was interrupted', async (t) => {
  const files = { ...FILES, 'base/1/2000': noise(16 * 2 ** 20) };
  const { data, write, record } = await target(t, files);
  const stop = new AbortController();
  const interrupted = write({ signal: stop.signal, progress: () => stop.abort() });
  await assert.rejects(interrupted, failsWith('cancelled'));
  await assert.rejects(lstat(join(data, 'global/pg_control')), { code: 'ENOENT' });
  const { bytesWritten } = await write({ delta: true });
  assert.ok(bytesWritten > 0 && bytesWritten < record.files.sizeBytes - 4 * 2 ** 20, `${bytesWritten} bytes`);
  await commitDataDirectory(data);
  assert.deepEqual(await contents(data), wanted(files));
});

test('writeBackupFiles() turns any directory into the backup, by delta, from random states', async (t) => {
  const { data, write } = await target(t);
  for (let round = 0; round < 8; round += 1) {
    for (const [path, content] of Object.entries(FILES)) {
      if (path.startsWith('odd') || random() < 0.5) continue;
      const bytes = Buffer.concat([content, noise(Math.floor(random() * 2000))]);
      const part = bytes.subarray(0, Math.floor(random() * bytes.length));
      if (part.length > 0) part[Math.floor(random() * part.length)] = 7;
      await mkdir(join(data, path, '..'), { recursive: true });
      await writeFile(join(data, path), part);
    }
    await write({ delta: true });
    await commitDataDirectory(data);
    assert.deepEqual(await contents(data), wanted());
  }
});

for (const path of ['../outside', 'base/../../outside', '/etc/passwd', 'base//x', './x', 'a\0b', '']) {
  test(`writeBackupFiles() refuses a backup that names ${JSON.stringify(path)}`, async (t) => {
    const { root, write } = await target(t, { ...FILES, [path]: Buffer.from('x') });
    await assert.rejects(write(), failsWith('object-damaged'));
    assert.deepEqual(
      (await readdir(root)).filter((name) => name !== 'data'),
      [],
    );
  });
}

test('writeBackupFiles() puts tablespaces where they are mapped to, and says so in tablespace_map', async (t) => {
  const { root, data, repository } = await target(t);
  const [old, moved, kept] = [join(root, 'old'), join(root, 'new ü\\\n/deep'), join(root, 'kept')];
  const files = {
    ...FILES,
    tablespace_map: Buffer.from(`16384 ${old}\n16385 ${kept}\n`),
    'pg_tblspc/16384/PG_15_202209061/5/1': noise(900),
    'pg_tblspc/16385/PG_15_202209061/5/2': noise(900),
  };
  const versions = ['16384', '16385'].flatMap((oid) =>
    ['', '/5'].map((rest) => ({ path: `pg_tblspc/${oid}/PG_15_202209061${rest}`, directory: true as const })),
  );
  const { record } = await storeFiles(repository, '20260102T000000Z-0000', [
    { path: 'pg_tblspc', directory: true },
    ...entries(files),
    ...versions,
  ]);
  record.tablespaces = [
    { oid: 16384, location: old },
    { oid: 16385, location: kept },
  ];
  const options = { record, tablespaceMapping: new Map([[old, moved]]) };
  const write = (delta: boolean, targetDirectory: string) =>
    writeBackupFiles({ ...options, repository, targetDirectory, delta, scratchDirectory: root });

  await mkdir(join(kept, 'PG_16_202307071'), { recursive: true });
  await write(false, data);
  await commitDataDirectory(data);
  assert.equal(
    await readFile(join(data, 'tablespace_map'), 'utf8'),
    `16384 ${root}/new ü\\\\\\\n/deep\n16385 ${kept}\n`,
  );
  const one = join(moved, 'PG_15_202209061/5/1');
  assert.deepEqual(await readFile(one), files['pg_tblspc/16384/PG_15_202209061/5/1']);
  assert.deepEqual(
    await readFile(join(data, 'pg_tblspc/16385/PG_15_202209061/5/2')),
    files['pg_tblspc/16385/PG_15_202209061/5/2'],
  );

  // They are this directory's now: nobody else may have them, and this one may do it again.
  const second = join(root, 'second');
  await mkdir(second);
  for (const delta of [false, true]) {
    await assert.rejects(write(delta, second), (error: unknown) => {
      assert.ok(failsWith('data-directory-not-empty')(error));
      assert.match((error as HoldfastError).hint ?? '', /--tablespace-mapping/);
      return true;
    });
    assert.deepEqual(await readdir(second), []);
  }
  await writeFile(one, 'damaged');
  await writeFile(join(moved, 'PG_15_202209061/5/more'), 'x');
  const again = await write(true, data);
  await commitDataDirectory(data);
  assert.equal(again.removed, 1);
  assert.deepEqual(await readFile(one), files['pg_tblspc/16384/PG_15_202209061/5/1']);
  assert.deepEqual(await readdir(join(kept)), ['PG_15_202209061', 'PG_16_202307071']);
});
