/** What must not befall WAL on its way from a server that archives into a repository, tried with real servers. */
import assert from 'node:assert/strict';
import { cp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { readControlData } from '../../src/postgres/control-data.ts';
import { walHeaderKey } from '../../src/repository/layout.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { listWal, walCoverage } from '../../src/repository/wal-listing.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import { assertArchived, createGuardLab, type Ended, type GuardLab, write } from '../harness/guard-lab.ts';
import { eventually } from '../harness/receiver.ts';
import { archivedFiles, archiveEverything } from '../harness/wal-repository.ts';

const MIB = 2 ** 20;

const failures = ({ json }: Ended): { message: string; fix: string }[] =>
  (json['findings'] as { status: string; message: string; fix: string }[]).filter(
    ({ status }) => status === 'fail',
  );

/** The server's user makes the directories of the history, where this process may be another one. */
async function backup(cluster: TestCluster, lab: GuardLab): Promise<void> {
  await archiveEverything(cluster);
  const { status, message } = await lab.holdfast('backup', 'base', 'app');
  assert.equal(status, 0, message);
}

describe('guards of archived WAL', { concurrency: 3 }, () => {
  test('window, wal status and check show a deleted segment at once, until a base backup leads over it', async () => {
    await using lab = await createGuardLab();
    await using cluster = await createCluster({ segmentSizeMb: 1, archiveCommand: lab.push });
    await lab.configure(cluster);
    await backup(cluster, lab);
    await write(cluster, 5);
    await archiveEverything(cluster);
    const before = await lab.holdfast('window', 'app');
    assert.equal(before.status, 0, before.message);
    assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 0);

    const identity = await lab.identityOf(cluster);
    const names = (await Array.fromAsync(listWal(lab.repository, identity)))
      .filter(({ kind }) => kind === 'segment')
      .map((entry) => entry.name);
    const victim = names.at(-3) ?? '';
    await rm(join(lab.root, walHeaderKey(identity, victim)));
    const begin = performance.now();
    const window = await lab.holdfast('window', 'app');
    assert.ok(performance.now() - begin < 60_000);
    assert.equal(window.status, 40);
    assert.match(window.out, new RegExp(victim));
    assert.match(window.out + window.hint, /holdfast backup base app/);
    const status = await lab.holdfast('wal', 'status', 'app');
    assert.deepEqual([status.status, status.code], [40, 'wal-gap']);
    assert.ok(
      failures(status).some(
        ({ message, fix }) => message.includes(victim) && /holdfast backup base app/.test(fix),
      ),
      status.out,
    );
    const check = await lab.holdfast('check', 'app');
    assert.equal(check.code, 'check-failed');
    assert.ok(failures(check).some(({ message }) => message.includes(victim)));
    const restore = await lab.holdfast('restore', 'base', 'app', '--to', lab.place(), '--dry-run');
    assert.equal(restore.status, 40);

    assert.equal((await lab.holdfast('backup', 'base', 'app')).status, 0);
    await archiveEverything(cluster);
    assert.equal((await lab.holdfast('window', 'app')).status, 0);
    assert.equal((await lab.holdfast('wal', 'status', 'app')).status, 0);
  });

  test('wal push stores what is acknowledged though its words for the launcher vanish at any moment', async () => {
    await using lab = await createGuardLab();
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      archiveCommand: lab.push,
      settings: { wal_keep_size: '1GB' },
    });
    await lab.configure(cluster);
    const told = join(lab.cache, 'holdfast', 'wal-pushed');
    const words = new Set<string>();
    const [longEnough, giveUpAt] = [performance.now() + 4000, performance.now() + 20_000];
    // Nothing is said ahead while the configuration is younger than two seconds.
    while (performance.now() < longEnough || (words.size === 0 && performance.now() < giveUpAt)) {
      await write(cluster, 4);
      for (let turn = 0; turn < 20; turn += 1) {
        await sleep(10);
        for (const name of await readdir(told).catch(() => [])) words.add(name);
      }
      if (Math.random() < 0.5) await rm(told, { recursive: true, force: true }).catch(() => undefined);
      else for (const name of words) await truncate(join(told, name), 40).catch(() => undefined);
    }
    await archiveEverything(cluster);
    assert.ok(words.size > 0, 'nothing was acknowledged ahead');
    assert.ok((await assertArchived(cluster, lab)) > 10);
  });

  test('wal push stores nothing of a foreign segment that lies in pg_wal, also where the repository is empty', async () => {
    await using lab = await createGuardLab();
    await using cluster = await createCluster({ segmentSizeMb: 1, start: false });
    await using foreign = await createCluster({ segmentSizeMb: 1, start: false });
    await lab.configure(cluster);
    const names = (await readdir(join(foreign.dataDir, 'pg_wal'))).filter((name) =>
      /^[0-9A-F]{24}$/.test(name),
    );
    const [name = ''] = names;
    await cp(join(foreign.dataDir, 'pg_wal', name), join(cluster.dataDir, 'pg_wal', name));
    await giveToServer(cluster.scratch);
    const pushed = await lab.holdfast('wal', 'push', join(cluster.dataDir, 'pg_wal', name));
    assert.equal(pushed.code, 'cluster-mismatch', pushed.message);
    assert.ok(pushed.status > 0 && pushed.status <= 125);
    for (const one of [cluster, foreign]) {
      const { systemIdentifier } = readControlData(await readFile(join(one.dataDir, 'global/pg_control')));
      const entries = listWal(lab.repository, { cluster: 'app', systemIdentifier });
      assert.deepEqual(await Array.fromAsync(entries), []);
    }
  });

  test('wal push of a primary and two standbys that archive the same names at once: one history, no conflict', async () => {
    await using lab = await createGuardLab();
    const settings = {
      archive_mode: 'always',
      archive_command: lab.push,
      wal_keep_size: '1GB',
      hot_standby: 'on',
    };
    await using primary = await createCluster({ segmentSizeMb: 1, settings });
    await lab.configure(primary);
    await primary.sql('CREATE TABLE t (x text)');
    await primary.stop('fast');
    await using first = await createCluster({ major: primary.major, segmentSizeMb: 1, start: false });
    await using second = await createCluster({ major: primary.major, segmentSizeMb: 1, start: false });
    for (const standby of [first, second]) {
      await rm(standby.dataDir, { recursive: true });
      await cp(primary.dataDir, standby.dataDir, { recursive: true });
      await writeFile(join(standby.dataDir, 'standby.signal'), '');
      await standby.configure({
        primary_conninfo: `host=${primary.socketDir} port=${primary.port} user=postgres`,
      });
      await giveToServer(standby.scratch);
    }
    await primary.start();
    await first.start();
    await second.start();
    for (let round = 0; round < 6; round += 1) {
      await primary.sql('INSERT INTO t SELECT repeat(md5(random()::text), 40) FROM generate_series(1, 300)');
    }
    await archiveEverything(primary);
    const wanted =
      (await archivedFiles(primary))
        .filter((name) => /^[0-9A-F]{24}$/.test(name))
        .sort()
        .at(-1) ?? '';
    for (const standby of [first, second]) {
      await eventually('archived by a standby', async () => (await archivedFiles(standby)).includes(wanted));
      assert.ok((await assertArchived(standby, lab)) > 3);
      const [row] = await standby.sql<{ failed: string }>(
        'SELECT failed_count AS failed FROM pg_stat_archiver',
      );
      assert.equal(row?.failed, '0', await readFile(join(standby.scratch, 'server.log'), 'utf8'));
    }
    await assertArchived(primary, lab);
    // One goes on as another timeline, beside the old primary.
    await first.sql('SELECT pg_promote()');
    await first.sql("INSERT INTO t VALUES ('on timeline 2')");
    await primary.sql("INSERT INTO t VALUES ('on timeline 1')");
    await archiveEverything(primary);
    await archiveEverything(first);
    await assertArchived(primary, lab);
    await assertArchived(first, lab);
  });

  test('window shows what was written with wal_level = minimal as a break; a restore stops short of it, a base backup mends it', async () => {
    await using lab = await createGuardLab();
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      archiveCommand: lab.push,
      settings: { wal_keep_size: '64MB', max_wal_size: '2MB', min_wal_size: '2MB' },
    });
    await lab.configure(cluster);
    await cluster.sql('CREATE TABLE t (x text)');
    await backup(cluster, lab);
    await cluster.sql("INSERT INTO t VALUES ('before')");
    const [before] = await cluster.sql<{ lsn: string }>('SELECT pg_current_wal_lsn()::text AS lsn');
    await archiveEverything(cluster);
    await cluster.stop('fast');
    await cluster.configure({ wal_level: 'minimal', archive_mode: 'off', max_wal_senders: '0' });
    await cluster.start();
    await cluster.sql("INSERT INTO t VALUES ('unseen')");
    await cluster.sql('SELECT pg_switch_wal()');
    await cluster.stop('fast');
    await cluster.configure({
      wal_level: 'replica',
      archive_mode: 'on',
      max_wal_senders: '10',
      wal_keep_size: '0',
    });
    await cluster.start();
    await cluster.sql("INSERT INTO t VALUES ('after')");
    await archiveEverything(cluster);

    const early = await lab.holdfast('window', 'app');
    assert.equal(early.status, 40, early.out);
    // What is to be removed is archived first, also what was written meanwhile: then no name is missing.
    const identity = await lab.identityOf(cluster);
    await eventually('archived with the next checkpoints', async () => {
      await write(cluster, 3);
      await cluster.sql('CHECKPOINT');
      await archiveEverything(cluster);
      const entries = await Array.fromAsync(listWal(lab.repository, identity));
      return (await Array.fromAsync(walCoverage(entries, MIB))).length === 1;
    });
    const window = await lab.holdfast('window', 'app');
    assert.equal(window.status, 40, window.out);
    assert.match(window.out, /wal-level-minimal/);
    assert.match(window.out + window.hint, /holdfast backup base app/);
    const latest = await lab.holdfast('restore', 'base', 'app', '--to', lab.place(), '--dry-run');
    assert.equal(latest.status, 40, latest.out);
    const kept = await lab.restored<{ x: string }>(
      lab.place(),
      'SELECT x FROM t',
      '--target-lsn',
      before?.lsn ?? '',
    );
    assert.deepEqual(
      kept.map(({ x }) => x),
      ['before'],
    );

    assert.equal((await lab.holdfast('backup', 'base', 'app')).status, 0);
    await archiveEverything(cluster);
    assert.equal((await lab.holdfast('window', 'app')).status, 0);
    const all = await lab.restored<{ x: string }>(lab.place(), 'SELECT x FROM t');
    assert.deepEqual(
      all.map(({ x }) => x),
      ['before', 'unseen', 'after'],
    );
  });

  test('wal status of a server that pushes: one insert, then silence, is stored within archive_timeout', async () => {
    await using lab = await createGuardLab();
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      archiveCommand: lab.push,
      settings: { archive_timeout: '1s', autovacuum: 'off' },
      start: false,
    });
    await lab.configure(cluster);
    await cluster.start();
    await cluster.sql('CREATE TABLE t (x text)');
    await archiveEverything(cluster);
    // A checkpointer that began during recovery sleeps for checkpoint_timeout first, unless something wakes it.
    await cluster.sql('CHECKPOINT');
    const begin = performance.now();
    const [row] = await cluster.sql<{ name: string }>(
      "SELECT pg_walfile_name(pg_logical_emit_message(true, 'the last one', 'x')) AS name",
    );
    const identity = await lab.identityOf(cluster);
    await eventually('stored', async () => {
      return (await readWalHeader(lab.repository, identity, row?.name ?? '')) !== undefined;
    });
    assert.ok(performance.now() - begin < 15_000);
    const { json } = await lab.holdfast('wal', 'status', 'app');
    const [local] = json['repositories'] as { state: string; ageSeconds: number }[];
    assert.equal(local?.state, 'current');
    assert.ok(local.ageSeconds >= 0 && local.ageSeconds < 60);
  });
});
