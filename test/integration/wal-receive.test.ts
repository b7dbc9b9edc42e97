/** Receiving under load: kills, restarts, a lost state directory, segment sizes, an idle server. */
import assert from 'node:assert/strict';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { parseLsn } from '../../src/postgres/lsn.ts';
import { listTails } from '../../src/repository/wal-tail.ts';
import { walBytesOnDisk } from '../harness/wal-on-disk.ts';
import { availableMajors, createCluster, type TestCluster } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  eventually,
  flushedLsn,
  identityOf,
  rounds,
  SLOT,
  startLoad,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';

const MIB = 2 ** 20;

void describe('wal receive', () => {
  void it('wal receive stores every byte once, in order, whatever is killed or lost in between', async () => {
    const majors = await availableMajors();
    for (const major of [15, 18]) {
      assert.ok(majors.includes(major));
      await survivesKills(major);
    }
  });

  void it('wal receive follows segments of 16 and of 64 MiB', async () => {
    for (const segmentSizeMb of [16, 64] as const) {
      await using cluster = await createCluster({ segmentSizeMb, settings: { wal_keep_size: '512MB' } });
      await createLoadTable(cluster);
      await using lab = await createReceiverLab({ urls: [cluster.url] });
      await using receiver = await lab.start();
      await receiver.event('streaming');
      await cluster.sql(
        `INSERT INTO load SELECT n, repeat(md5(n::text), 60) FROM generate_series(1, ${segmentSizeMb * 600}) n`,
      );
      await cluster.sql('CHECKPOINT');
      const lsn = await untilFlushed(cluster, receiver);
      const stored = await storedWal(await lab.repository(), await identityOf(cluster), segmentSizeMb * MIB);
      assert.ok(stored.segments.length > 0 && stored.end >= lsn, `${stored.end} ${lsn}`);
      assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, segmentSizeMb * MIB)));
      assert.equal((await receiver.end()).status, 0, receiver.text());
    }
  });

  void it('wal receive stores one insert within the interval, though silence follows, and then rests', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { autovacuum: 'off' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url], tailInterval: '1s' });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await untilFlushed(cluster, receiver);
    const begin = performance.now();
    await cluster.sql("INSERT INTO load VALUES (1, 'x')");
    const lsn = await untilFlushed(cluster, receiver);
    const ms = performance.now() - begin;
    assert.ok(ms < 3000, `${ms} ms`);
    const identity = await identityOf(cluster);
    assert.ok((await storedWal(await lab.repository(), identity, MIB)).end >= lsn);
    const repository = await lab.repository();
    const before = await Array.fromAsync(listTails(repository, identity), ({ key }) => key);
    await sleep(2500);
    // Nothing new, nothing written.
    assert.deepEqual(await Array.fromAsync(listTails(repository, identity), ({ key }) => key), before);
    assert.equal((await receiver.end()).status, 0, receiver.text());
  });

  void it('wal receive --until ends by itself when everything before the position is stored', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1 });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    for (const rows of [3000, 10]) {
      await cluster.sql(
        `INSERT INTO load SELECT (SELECT count(*) FROM load) + n, repeat(md5(n::text), 60) FROM generate_series(1, ${rows}) n`,
      );
      const [row] = await cluster.sql<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
      await using receiver = await lab.start({ arguments: ['--until', row?.lsn ?? ''] });
      assert.equal(await receiver.ended, 0, receiver.text());
      const stored = await storedWal(await lab.repository(), await identityOf(cluster), MIB);
      assert.ok(stored.end >= parseLsn(row?.lsn ?? ''));
      assert.ok((await flushedLsn(cluster)) <= stored.end);
    }
  });
});

async function survivesKills(major: number): Promise<void> {
  await using cluster = await createCluster({
    major,
    segmentSizeMb: 1,
    settings: { wal_keep_size: '1GB' },
  });
  await createLoadTable(cluster);
  await using lab = await createReceiverLab({ urls: [cluster.url] });
  const identity = await identityOf(cluster);
  const load = await startLoad(cluster);
  for (let round = 0; round < rounds(3); round += 1) {
    const receiver = await lab.start();
    await receiver.event('streaming');
    await sleep(300 + Math.random() * 700);
    const reported = await flushedLsn(cluster);
    await receiver.kill();
    assert.ok((await storedWal(await lab.repository(), identity, MIB)).end >= reported);
    if (round === 1) await rm(lab.stateDirectory, { recursive: true });
  }
  const last = await lab.start();
  await last.event('streaming');
  await eventually('load', () => load.acknowledged.length > 500);
  await load.stop();
  const lsn = await untilFlushed(cluster, last);
  const { status, ms } = await last.end();
  assert.equal(status, 0, last.text());
  assert.ok(ms < 5000, `${ms} ms`);
  assert.deepEqual(await spoolFiles(lab.stateDirectory), []);
  const stored = await storedWal(await lab.repository(), identity, MIB);
  assert.ok(stored.end >= lsn && stored.segments.length > 1);
  assert.ok(
    stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB)),
    'other bytes than the server has',
  );
  // Tails of complete segments are gone.
  const left = await Array.fromAsync(listTails(await lab.repository(), identity), ({ segment }) => segment);
  assert.ok(
    left.every((segment) => !stored.segments.includes(segment)),
    left.join(' '),
  );
  await slotIsOurs(cluster);
}

async function slotIsOurs(cluster: TestCluster): Promise<void> {
  const rows = await cluster.sql<{ slot_name: string; slot_type: string; temporary: boolean }>(
    'SELECT slot_name, slot_type, temporary FROM pg_replication_slots',
  );
  assert.deepEqual(rows, [{ slot_name: SLOT, slot_type: 'physical', temporary: false }]);
}

async function spoolFiles(stateDirectory: string): Promise<string[]> {
  const names = await readdir(join(stateDirectory, 'wal', 'receive'), { recursive: true });
  return names.filter((name) => /[0-9A-F]{24}$/.test(name));
}
