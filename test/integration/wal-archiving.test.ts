import assert from 'node:assert/strict';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { errorText } from '../../src/errors.ts';
import { readControlData } from '../../src/postgres/control-data.ts';
import { startInstance } from '../../src/postgres/instance.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { type ClusterIdentity, walHeaderKey } from '../../src/repository/layout.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { listWal, walCoverage } from '../../src/repository/wal-listing.ts';
import { createCluster, giveToServer, scratchDirectory, type TestCluster } from '../harness/cluster.ts';
import {
  archivedFiles,
  archiveEverything,
  createWalRepository,
  type WalRepository,
} from '../harness/wal-repository.ts';

const MIB = 2 ** 20;
const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);

async function identityOf(dataDir: string): Promise<ClusterIdentity> {
  const control = readControlData(await readFile(join(dataDir, 'global/pg_control')));
  return { cluster: 'app', systemIdentifier: control.systemIdentifier };
}

/** Everything the server took for archived is in the repository, as it is in pg_wal. Returns how much that is. */
async function checkArchived(cluster: TestCluster, archive: WalRepository): Promise<number> {
  const identity = await identityOf(cluster.dataDir);
  const names = await archivedFiles(cluster);
  for (const name of names) {
    const bytes = await archive.stored(identity, name);
    assert.ok(bytes, `${name} was acknowledged and is not there`);
    assert.ok(bytes.equals(await readFile(join(cluster.dataDir, 'pg_wal', name))), `${name} is different`);
  }
  return names.length;
}

/** A few writers that go on until the server is gone or they are told to stop. */
async function load(cluster: TestCluster, signal: AbortSignal): Promise<void> {
  const writer = async (): Promise<void> => {
    const client = await cluster.connect();
    while (!signal.aborted) {
      await client.query(
        'insert into load(filler) select repeat(md5(random()::text), 60) from generate_series(1, 20)',
      );
      await sleep(10);
    }
    await client.end();
  };
  await Promise.allSettled([writer(), writer()]);
}

test('wal push as archive_command takes everything a server writes, over a restart and a promotion', async () => {
  const archive = await createWalRepository();
  await using cluster = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: archive.push,
    settings: { wal_keep_size: '1GB' },
  });
  await cluster.sql('create table load(id serial, filler text)');
  const stop = new AbortController();
  const loading = load(cluster, stop.signal);
  await sleep(500);
  stop.abort();
  await loading;
  await cluster.stop('fast');
  await cluster.start();
  await cluster.sql("select pg_backup_start('test', true); select pg_switch_wal()");
  await archiveEverything(cluster);
  assert.ok((await checkArchived(cluster, archive)) > 3);

  await cluster.stop('fast');
  await writeFile(join(cluster.dataDir, 'standby.signal'), '');
  await giveToServer(cluster.dataDir);
  await cluster.start();
  await cluster.sql('select pg_promote()');
  await cluster.sql("insert into load(filler) values ('on the new timeline')");
  await archiveEverything(cluster);
  await checkArchived(cluster, archive);
  const identity = await identityOf(cluster.dataDir);
  const entries = await Array.fromAsync(listWal(archive.repository, identity));
  assert.ok(entries.some((entry) => entry.name === '00000002.history'));
  const ranges = await Array.fromAsync(walCoverage(entries, MIB));
  assert.deepEqual(
    ranges.map((range) => range.timeline),
    [1, 2],
    'each timeline is without a hole',
  );
  for (const { name, kind } of entries.filter((entry) => entry.kind === 'segment')) {
    const header = await readWalHeader(archive.repository, identity, name);
    assert.equal(header?.wal?.['damage'], undefined, `${kind} ${name}`);
  }
});

test('wal push and PostgreSQL under kill -9: nothing acknowledged is missing or different', async () => {
  const archive = await createWalRepository();
  await using cluster = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: archive.push,
    fast: false,
    settings: { wal_keep_size: '1GB' },
  });
  await cluster.sql('create table load(id serial, filler text)');
  let kills = 0;
  for (let round = 0; round < 3 * SCALE; round += 1) {
    const stop = new AbortController();
    const loading = load(cluster, stop.signal);
    const roundEnd = performance.now() + 2000;
    while (performance.now() < roundEnd) {
      await sleep(Math.random() * 400);
      for (const pid of await archive.processes()) {
        try {
          process.kill(pid, 'SIGKILL');
          kills += 1;
        } catch {
          // It ended before us.
        }
      }
    }
    await cluster.kill();
    stop.abort();
    await loading;
    await checkArchived(cluster, archive);
    await cluster.start();
  }
  assert.ok(kills >= 3 * SCALE, `only ${kills} pushes were killed`);
  await archiveEverything(cluster);
  const archived = await checkArchived(cluster, archive);
  const identity = await identityOf(cluster.dataDir);
  const ranges = await Array.fromAsync(walCoverage(listWal(archive.repository, identity), MIB));
  assert.equal(ranges.length, 1, 'the timeline has a hole');
  assert.equal(ranges[0]?.count, archived);
});

test('wal push refuses a second cluster with a copied configuration', async () => {
  const archive = await createWalRepository();
  await using first = await createCluster({ segmentSizeMb: 1, archiveCommand: archive.push });
  await first.sql('create table t()');
  await archiveEverything(first);
  await using second = await createCluster({ segmentSizeMb: 1, archiveCommand: archive.push });
  await second.sql('create table t(); select pg_switch_wal()');
  for (const deadline = performance.now() + 30_000; ;) {
    const [row] = await second.sql<{ failed: string }>('select failed_count as failed from pg_stat_archiver');
    if (Number(row?.failed) > 0) break;
    assert.ok(performance.now() < deadline, 'the segment of the second cluster was not refused');
    await sleep(100);
  }
  assert.deepEqual(await archivedFiles(second), []);
  const identity = await identityOf(second.dataDir);
  assert.deepEqual(await Array.fromAsync(listWal(archive.repository, identity)), []);
  assert.match(
    await readFile(join(second.scratch, 'server.log'), 'utf8'),
    /this is wal of system identifier/,
  );
});

test('wal fetch as restore_command: recovery reaches the end, and never opens on anything short of it', async () => {
  const archive = await createWalRepository();
  await using cluster = await createCluster({ segmentSizeMb: 1, archiveCommand: archive.push });
  await cluster.sql('create table rows(id int)');
  await cluster.stop('fast');
  const base = join(await scratchDirectory(), 'base');
  await cp(cluster.dataDir, base, { recursive: true });
  await cluster.start();
  for (let id = 1; id <= 5; id += 1) {
    await cluster.sql(`insert into rows values (${id}); select pg_switch_wal()`);
  }
  await archiveEverything(cluster);
  const identity = await identityOf(cluster.dataDir);
  const segments = (await Array.fromAsync(listWal(archive.repository, identity))).map((entry) => entry.name);
  const middle = segments.at(-3) ?? '';
  await cluster.stop('immediate');

  const recover = async (options = ''): Promise<number | string> => {
    const scratch = await scratchDirectory();
    const dataDirectory = join(scratch, 'data');
    await cp(base, dataDirectory, { recursive: true });
    await writeFile(join(dataDirectory, 'recovery.signal'), '');
    await rm(join(dataDirectory, 'pg_wal'), { recursive: true });
    await cp(join(base, 'pg_wal/archive_status'), join(dataDirectory, 'pg_wal/archive_status'), {
      recursive: true,
    });
    await giveToServer(scratch);
    try {
      await using instance = await startInstance({
        binaries: cluster.binaries,
        dataDirectory,
        user: await serverUser(),
        settings: { restore_command: archive.fetch(options), archive_mode: 'off' },
        logFile: join(scratch, 'server.log'),
        deadlineMs: 60_000,
      });
      const { default: pg } = await import('pg');
      const client = new pg.Client({ connectionString: instance.url({ user: 'postgres' }) });
      // A server that stops takes its connections with it.
      client.on('error', () => undefined);
      await client.connect();
      try {
        for (;;) {
          const { rows } = await client.query(
            'select pg_is_in_recovery() as recovering, (select count(*) from rows) as count',
          );
          if (rows[0].recovering === false) return Number(rows[0].count);
          await sleep(50);
        }
      } finally {
        await client.end();
      }
    } catch (error) {
      const control = readControlData(await readFile(join(dataDirectory, 'global/pg_control')));
      assert.equal(control.state, 'in archive recovery', errorText(error));
      assert.equal(control.timeline, 1, 'it was promoted');
      return 'stopped';
    }
  };

  assert.equal(await recover(), 5);
  const header = await readWalHeader(archive.repository, identity, middle);
  assert.ok(header);
  const data = join(archive.root, header.stored.key);
  const headerFile = join(archive.root, walHeaderKey(identity, middle));
  const original = await readFile(data);
  const headerBytes = await readFile(headerFile);
  const flipped = Buffer.from(original);
  flipped.writeUInt8(flipped.readUInt8(flipped.length >> 1) ^ 4, flipped.length >> 1);
  await writeFile(data, flipped);
  assert.equal(await recover(), 'stopped', 'a flipped bit');
  await writeFile(data, original.subarray(0, -1));
  assert.equal(await recover(), 'stopped', 'a truncated object');
  await rm(data);
  assert.equal(await recover(), 'stopped', 'an object that is gone');
  await rm(headerFile);
  assert.equal(await recover(), 'stopped', 'a segment that is gone');
  await writeFile(data, original);
  await writeFile(headerFile, headerBytes);
  await rm(join(archive.root, walHeaderKey(identity, segments.at(-1) ?? '')));
  assert.equal(await recover('--until 0/F000000'), 'stopped', 'the end is missing, and it is known');
});
