/** A disk of `pg_wal` that fills up because nothing is archived. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, readFile, rename, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { createCluster, giveToServer } from '../harness/cluster.ts';
import { assertArchived, createGuardLab, type Ended, write } from '../harness/guard-lab.ts';
import { eventually } from '../harness/receiver.ts';
import { archiveEverything } from '../harness/wal-repository.ts';

test('wal status warns before the disk of pg_wal is full, and archiving goes on without a hole when there is room again', async () => {
  const isRoot = process.getuid?.() === 0;
  await using lab = await createGuardLab();
  await using cluster = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: lab.push,
    settings: { max_wal_size: '2MB', min_wal_size: '2MB', wal_keep_size: '0' },
    start: false,
  });
  const disk = join(cluster.scratch, 'small');
  await mkdir(disk);
  if (isRoot) execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=40m,mode=0777', 'tmpfs', disk]);
  await using _unmounted = {
    async [Symbol.asyncDispose]() {
      await cluster.stop('immediate').catch(() => undefined);
      if (isRoot) execFileSync('umount', ['--lazy', disk]);
    },
  };
  execFileSync('cp', ['--archive', join(cluster.dataDir, 'pg_wal'), join(disk, 'wal')]);
  await rename(join(cluster.dataDir, 'pg_wal'), join(cluster.scratch, 'former'));
  await symlink(join(disk, 'wal'), join(cluster.dataDir, 'pg_wal'));
  await giveToServer(cluster.scratch);
  await cluster.start();
  await lab.configure(cluster);
  await write(cluster, 2);
  await archiveEverything(cluster);
  assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 0);

  // The repository is away: nothing is archived any more.
  await rename(lab.root, `${lab.root} away`);
  if (!isRoot) {
    await write(cluster, 5);
    assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 3);
  } else {
    await write(cluster, 32);
    const early = await lab.holdfast('wal', 'status', 'app');
    assert.equal(early.status, 3);
    const space = (ended: Ended): string[] =>
      (ended.json['findings'] as { status: string; message: string }[])
        .filter(({ status, message }) => status !== 'ok' && /are free where pg_wal/.test(message))
        .map(({ message }) => message);
    assert.equal(space(early).length, 1, early.out);
    const check = await lab.holdfast('check', 'app');
    assert.equal(check.code, 'check-failed');
    const client = await cluster.connect();
    const filled = (async () => {
      for (;;) await client.query("SELECT pg_logical_emit_message(true, 'x', repeat('x', 500000))");
    })();
    await assert.rejects(filled);
    await eventually('the server gives up', async () =>
      /PANIC: .*No space left/.test(await readFile(join(cluster.scratch, 'server.log'), 'utf8')),
    );
    await cluster.stop('immediate').catch(() => undefined);
    const away = await lab.holdfast('wal', 'status', 'app');
    assert.equal(away.status, 20);
    execFileSync('mount', ['-o', 'remount,size=96m', disk]);
  }
  await rename(`${lab.root} away`, lab.root);
  if (isRoot) await cluster.start();
  await archiveEverything(cluster);
  await assertArchived(cluster, lab);
  assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 0);
});
