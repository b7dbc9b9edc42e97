import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { readControlData } from '../../src/postgres/control-data.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import { readWalHeader, readWholeWalFile } from '../../src/repository/wal-file.ts';
import { listWal, walCoverage } from '../../src/repository/wal-listing.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import {
  archivedFiles,
  archiveEverything,
  createWalRepository,
  type WalRepository,
} from '../harness/wal-repository.ts';
import { openTestRepository } from '../wal-lab.ts';

const MIB = 2 ** 20;
const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);

async function identityOf(dataDir: string): Promise<ClusterIdentity> {
  const control = readControlData(await readFile(join(dataDir, 'global/pg_control')));
  return { cluster: 'app', systemIdentifier: control.systemIdentifier };
}

/** Fills so many segments as fast as the server can, and leaves them to the archiver all at once. */
async function burst(cluster: TestCluster, count: number): Promise<void> {
  const client = await cluster.connect();
  for (let segment = 0; segment < count; segment += 1) {
    await client.query("select pg_logical_emit_message(true, 'burst', md5(random()::text))");
    await client.query('select pg_switch_wal()');
  }
  await client.end();
}

/** Everything the server took for archived is in the repository, as it is in pg_wal, without a hole. */
async function checkArchived(cluster: TestCluster, archive: WalRepository, mib: number): Promise<number> {
  const identity = await identityOf(cluster.dataDir);
  const names = await archivedFiles(cluster);
  for (const name of names) {
    const bytes = await archive.stored(identity, name);
    assert.ok(bytes, `${name} was acknowledged and is not there`);
    assert.ok(bytes.equals(await readFile(join(cluster.dataDir, 'pg_wal', name))), `${name} is different`);
  }
  const ranges = await Array.fromAsync(walCoverage(listWal(archive.repository, identity), mib * MIB));
  assert.ok(ranges.length <= 1, 'the timeline has a hole');
  return names.length;
}

/** Segments for which the launcher answered by itself. */
async function answered(cache: string): Promise<number> {
  const directory = join(cache, 'holdfast', 'wal-pushed');
  const sizes = (await readdir(directory)).map(async (name) => (await stat(join(directory, name))).size);
  return (await Promise.all(sizes)).filter((size) => size === 0).length;
}

for (const [mib, count] of [
  [1, 40],
  [16, 8],
] as const) {
  test(`wal push stores a burst of segments of ${mib} MiB ahead, and everything acknowledged is there`, async () => {
    const archive = await createWalRepository();
    await using cluster = await createCluster({
      segmentSizeMb: mib,
      archiveCommand: archive.push,
      settings: { wal_keep_size: '2GB' },
    });
    // A configuration that was only just written is not relied on.
    await sleep(2500);
    await burst(cluster, count);
    await archiveEverything(cluster);
    assert.ok((await checkArchived(cluster, archive, mib)) > count);
    const byLauncher = await answered(join(archive.directory, 'cache'));
    assert.ok(byLauncher >= count / 4, `only ${byLauncher} were answered by the launcher`);
    const [row] = await cluster.sql<{ failed: string }>(
      'select failed_count as failed from pg_stat_archiver',
    );
    assert.equal(row?.failed, '0');
  });
}

test('wal push killed at any moment: what the server took for archived is in the repository, without a hole', async () => {
  const archive = await createWalRepository();
  await using cluster = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: archive.push,
    settings: { wal_keep_size: '2GB' },
  });
  await sleep(2500);
  let kills = 0;
  for (let round = 0; round < 3 * SCALE; round += 1) {
    await burst(cluster, 20);
    const roundEnd = performance.now() + 2500;
    while (performance.now() < roundEnd) {
      await sleep(Math.random() * 700);
      for (const pid of await archive.processes()) {
        try {
          process.kill(pid, 'SIGKILL');
          kills += 1;
        } catch {
          // It ended before us.
        }
      }
    }
    await checkArchived(cluster, archive, 1);
  }
  await archiveEverything(cluster);
  const archived = await checkArchived(cluster, archive, 1);
  assert.ok(kills >= 3 * SCALE, `only ${kills} pushes were killed`);
  const ranges = await Array.fromAsync(
    walCoverage(listWal(archive.repository, await identityOf(cluster.dataDir)), MIB),
  );
  assert.equal(ranges[0]?.count, archived);
});

test('wal push of two clusters of one user, with the same names at the same time, mixes nothing up', async () => {
  const archives = [await createWalRepository(), await createWalRepository()] as const;
  const cache = join(archives[0].directory, 'cache');
  const command = (archive: WalRepository): string =>
    archive.push.replace(`${archive.directory}/cache`, cache);
  await using one = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: command(archives[0]),
    settings: { wal_keep_size: '2GB' },
  });
  await using other = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: command(archives[1]),
    settings: { wal_keep_size: '2GB' },
  });
  await sleep(2500);
  await Promise.all([burst(one, 30), burst(other, 30)]);
  await Promise.all([archiveEverything(one), archiveEverything(other)]);
  assert.ok((await checkArchived(one, archives[0], 1)) > 30);
  assert.ok((await checkArchived(other, archives[1], 1)) > 30);
  assert.ok((await answered(cache)) > 5);
});

test('wal push goes on while an optional repository is away, and has it caught up when it is back', async () => {
  const archive = await createWalRepository();
  const offsite = join(archive.directory, 'offsite');
  const awayAt = `${offsite}.away`;
  await mkdir(offsite);
  await openTestRepository(createLocalStorage(offsite));
  await rename(offsite, awayAt);
  const text = await readFile(archive.configFile, 'utf8');
  const more = `  offsite: { url: "file://${offsite}", required: false }\nstate:`;
  await writeFile(archive.configFile, text.replace('state:', more));
  await giveToServer(archive.directory);
  await using cluster = await createCluster({
    segmentSizeMb: 1,
    archiveCommand: archive.push,
    settings: { wal_keep_size: '1GB' },
  });
  await burst(cluster, 5);
  await archiveEverything(cluster);
  const identity = await identityOf(cluster.dataDir);
  const notes = join(archive.directory, 'state', 'wal', 'behind', identity.systemIdentifier);
  const noteFile = join(notes, 'offsite.json');
  const note = JSON.parse(await readFile(noteFile, 'utf8')) as Record<string, string>;
  assert.match(note['reason'] ?? '', /offsite does not exist/);
  assert.ok((await archivedFiles(cluster)).includes(note['first'] ?? ''));

  await rename(awayAt, offsite);
  await writeFile(noteFile, JSON.stringify({ ...note, tryAgainAt: new Date().toISOString() }));
  await burst(cluster, 1);
  await archiveEverything(cluster);
  const deadline = performance.now() + 20_000;
  while ((await readdir(notes)).length > 0) {
    assert.ok(performance.now() < deadline, 'nobody caught up');
    await sleep(100);
  }
  await burst(cluster, 1);
  await archiveEverything(cluster);
  const repository = await openTestRepository(createLocalStorage(offsite));
  for (const name of await archivedFiles(cluster)) {
    const header = await readWalHeader(repository, identity, name);
    const bytes = header && (await readWholeWalFile(repository, header, MIB));
    assert.ok(bytes?.equals(await readFile(join(cluster.dataDir, 'pg_wal', name))), name);
  }
});
