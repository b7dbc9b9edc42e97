import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, realpath, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { backupRecord } from '../../test/restore-lab.ts';
import { lsnOf } from '../postgres/lsn.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { checkTablespaceMapping, parseTablespaceMapping } from './tablespace-mapping.ts';
import { type TargetOptions, checkTarget, closeTarget, openTarget } from './target-directory.ts';

const RECORD = backupRecord('b0', { start: lsnOf(0x100028n), stop: lsnOf(0x100100n), checkpointTime: 0n });

async function scratch(): Promise<AsyncDisposable & { path: string }> {
  const path = await realpath(await mkdtemp(join(tmpdir(), 'hf-target-')));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

function check(to: string, more: Partial<TargetOptions> = {}): ReturnType<typeof checkTarget> {
  return checkTarget({ to, record: RECORD, tablespaceMapping: new Map(), delta: false, ...more });
}

function withTablespace(...locations: string[]): BackupRecord {
  return { ...RECORD, tablespaces: locations.map((location, index) => ({ oid: 16_384 + index, location })) };
}

test('checkTarget() accepts a new and an empty directory and changes nothing', async () => {
  await using place = await scratch();
  const target = await check(join(place.path, 'new'));
  assert.equal(target.directory, join(place.path, 'new'));
  assert.deepEqual(await readdir(place.path), []);
  await mkdir(join(place.path, 'empty'));
  assert.equal((await check(join(place.path, 'empty'))).delta, false);
});

test('openTarget() makes the directory private and marks it until closeTarget()', async () => {
  await using place = await scratch();
  const target = await check(join(place.path, 'new'));
  await openTarget(target, RECORD);
  assert.equal((await stat(target.directory)).mode & 0o777, 0o700);
  await writeFile(join(target.directory, 'half'), '');
  await assert.rejects(check(target.directory), (error: Error & { code?: string; hint?: string }) => {
    return error.code === 'data-directory-not-empty' && /--delta/.test(error.hint ?? '');
  });
  assert.equal((await check(target.directory, { delta: true })).delta, true);
  await closeTarget(target);
  assert.deepEqual(await readdir(target.directory), ['half']);
});

test('checkTarget() refuses a directory with anything in it, also through a link', async () => {
  await using place = await scratch();
  const full = join(place.path, 'full');
  await mkdir(full);
  await writeFile(join(full, '.hidden'), '');
  await symlink(full, join(place.path, 'link'));
  for (const to of [full, join(place.path, 'link')]) {
    await assert.rejects(check(to), { code: 'data-directory-not-empty' });
  }
  // Not a copy of this cluster: --delta would empty it.
  await assert.rejects(check(full, { delta: true }), { code: 'data-directory-not-empty' });
  await writeFile(join(place.path, 'file'), '');
  await assert.rejects(check(join(place.path, 'file')), { code: 'data-directory-not-empty' });
});

test('checkTarget() refuses a data directory in use, and places within one', async () => {
  await using place = await scratch();
  const data = join(place.path, 'data');
  await mkdir(join(data, 'base'), { recursive: true });
  await writeFile(
    join(data, 'postmaster.pid'),
    `999999\n/elsewhere/data\n${Math.floor(Date.now() / 1000)}\n5432\n\n`,
  );
  for (const delta of [false, true]) {
    await assert.rejects(check(data, { delta }), { code: 'data-directory-in-use' });
    await assert.rejects(check(join(data, 'inner'), { delta }), { code: 'data-directory-in-use' });
    await assert.rejects(check(join(data, 'base', 'inner'), { delta }), { code: 'data-directory-in-use' });
  }
  await rm(join(data, 'postmaster.pid'));
  await writeFile(join(data, 'PG_VERSION'), '15\n');
  await assert.rejects(check(join(data, 'inner')), { code: 'data-directory-in-use' });
});

test('checkTarget() refuses a parent that is not there and a link that leads nowhere', async () => {
  await using place = await scratch();
  await assert.rejects(check(join(place.path, 'no', 'such')), { code: 'usage-invalid' });
  await symlink(join(place.path, 'nowhere'), join(place.path, 'link'));
  await assert.rejects(check(join(place.path, 'link')), { code: 'usage-invalid' });
});

test('checkTarget() refuses where there is too little room', async () => {
  await using place = await scratch();
  const record = { ...RECORD, files: { count: 1, sizeBytes: 2 ** 52 } };
  await assert.rejects(check(join(place.path, 'new'), { record }), { code: 'storage-full' });
});

test('checkTarget() refuses an owner that is unknown or root', async () => {
  await using place = await scratch();
  for (const owner of ['no-such-user', 'root']) {
    await assert.rejects(check(join(place.path, 'new'), { owner }), { code: 'usage-invalid' });
  }
});

test('checkTarget() refuses tablespaces without a place and prints the options to add', async () => {
  await using place = await scratch();
  const record = withTablespace('/mnt/fast one');
  await assert.rejects(check(join(place.path, 'new'), { record }), (error: Error & { hint?: string }) =>
    (error.hint ?? '').includes(`--tablespace-mapping '/mnt/fast one=${place.path}/new-fast one'`),
  );
});

test('checkTarget() refuses a tablespace place that is not empty or lies within the data directory', async () => {
  await using place = await scratch();
  const record = withTablespace('/mnt/fast');
  const to = join(place.path, 'new');
  const used = join(place.path, 'used');
  await mkdir(used);
  await writeFile(join(used, 'PG_15_202209061'), '');
  const mapped = (path: string): Partial<TargetOptions> => ({
    record,
    tablespaceMapping: new Map([['/mnt/fast', path]]),
  });
  for (const delta of [false, true]) {
    await assert.rejects(check(to, { ...mapped(used), delta }), { code: 'data-directory-not-empty' });
  }
  await assert.rejects(check(to, mapped(join(to, 'inner'))), { code: 'usage-invalid' });
  const fine = await check(to, mapped(join(place.path, 'free')));
  assert.deepEqual([...fine.tablespaceMapping], [['/mnt/fast', join(place.path, 'free')]]);
});

test('parseTablespaceMapping() reads pairs as pg_basebackup does', () => {
  assert.deepEqual(
    [...parseTablespaceMapping(['/a=/b', '/c\\=d/=/e/../f/'])],
    [
      ['/a', '/b'],
      ['/c=d', '/f'],
    ],
  );
  for (const pair of ['/a', 'a=/b', '/a=b', '=/b', '/a=', '/a=/b=/c']) {
    assert.throws(() => parseTablespaceMapping([pair]), { code: 'usage-invalid' }, pair);
  }
  assert.throws(() => parseTablespaceMapping(['/a=/b', '/a/=/c']), { code: 'option-conflict' });
  assert.throws(() => parseTablespaceMapping(['/a=/c', '/b=/c/']), { code: 'option-conflict' });
});

test('checkTablespaceMapping() leaves in-place tablespaces alone and refuses unknown ones', () => {
  const record = withTablespace('pg_tblspc/16384', '/mnt/fast');
  const complete = checkTablespaceMapping(record, new Map([['/mnt/fast', '/new']]), '/data');
  assert.deepEqual([...complete], [['/mnt/fast', '/new']]);
  assert.throws(
    () =>
      checkTablespaceMapping(
        record,
        new Map([
          ['/mnt/fast', '/new'],
          ['/mnt/slow', '/x'],
        ]),
        '/data',
      ),
    { code: 'usage-invalid' },
  );
});
