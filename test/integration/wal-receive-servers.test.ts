/** Servers a receiver refuses: without rights, of another cluster, set back, with a star. */
import assert from 'node:assert/strict';
import { cp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import { freePort } from '../harness/free-port.ts';
import {
  createLoadTable,
  createReceiverLab,
  identityOf,
  type ReceiverLab,
  type ReceiverStart,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';

const MIB = 2 ** 20;

async function fill(cluster: TestCluster, rows: number): Promise<void> {
  await cluster.sql(
    `INSERT INTO load SELECT (SELECT count(*) FROM load) + n, repeat(md5(n::text), 60) FROM generate_series(1, ${rows}) n`,
  );
}

/** Receives what there is, and ends. */
async function receiveAll(
  lab: ReceiverLab,
  cluster: TestCluster,
  options: ReceiverStart = {},
): Promise<void> {
  await using receiver = await lab.start(options);
  await receiver.event('streaming');
  await untilFlushed(cluster, receiver);
  assert.equal((await receiver.end()).status, 0, receiver.text());
}

async function refused(
  lab: ReceiverLab,
  status: number,
  text: RegExp,
  options: ReceiverStart = {},
): Promise<string> {
  await using receiver = await lab.start(options);
  assert.equal(await receiver.ended, status, receiver.text());
  assert.match(receiver.text(), text);
  return receiver.text();
}

void describe('wal receive', () => {
  void it('wal receive needs a role with REPLICATION, and room for a slot', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { max_replication_slots: '1' } });
    await cluster.sql('CREATE ROLE plain LOGIN');
    await using lab = await createReceiverLab({ urls: [cluster.urlOf('plain')] });
    await refused(lab, 20, /privilege-missing/);
    await cluster.sql("SELECT pg_create_physical_replication_slot('other')");
    await refused(lab, 20, /max_replication_slots/, { urls: [cluster.url] });
  });

  void it('wal receive stores nothing of another cluster behind the same address', async () => {
    const port = await freePort();
    await using lab = await createReceiverLab({ urls: [`postgres://postgres@127.0.0.1:${port}/postgres`] });
    {
      await using cluster = await createCluster({ segmentSizeMb: 1, port });
      await createLoadTable(cluster);
      await receiveAll(lab, cluster);
    }
    await using other = await createCluster({ segmentSizeMb: 1, port });
    await createLoadTable(other);
    await refused(lab, 20, /cluster-mismatch/);
    const stored = await storedWal(await lab.repository(), await identityOf(other), MIB);
    assert.deepEqual([stored.segments, stored.bytes.length], [[], 0]);
    assert.deepEqual(await other.sql('SELECT slot_name FROM pg_replication_slots'), []);
  });

  void it('wal receive refuses a primary that was set back on its timeline, in whichever segment', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1 });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await receiveAll(lab, cluster);
    const identity = await identityOf(cluster);
    for (const rows of [5, 3000]) {
      await cluster.stop();
      const copy = join(cluster.scratch, 'copy');
      await rm(copy, { recursive: true, force: true });
      await cp(cluster.dataDir, copy, { recursive: true, preserveTimestamps: true });
      await cluster.start();
      await fill(cluster, rows);
      await receiveAll(lab, cluster);
      await cluster.stop('immediate');
      const stored = await storedWal(await lab.repository(), identity, MIB);
      await rm(cluster.dataDir, { recursive: true });
      await cp(copy, cluster.dataDir, { recursive: true, preserveTimestamps: true });
      await giveToServer(cluster.dataDir);
      await cluster.start();
      const begin = performance.now();
      await refused(lab, 40, /set back/);
      assert.ok(performance.now() - begin < 20_000, 'it waited for something');
      // Neither once it has gone further than what is stored.
      await cluster.sql("UPDATE load SET t = md5(t) || 'other'");
      await fill(cluster, rows + 200);
      await refused(lab, 40, /wal-conflict/);
      const after = await storedWal(await lab.repository(), identity, MIB);
      assert.ok(
        after.bytes.subarray(0, stored.bytes.length).equals(stored.bytes),
        'what was stored is not there',
      );
      // So that the next round begins well.
      await rm(lab.roots['local'] ?? '', { recursive: true });
      await lab.initialize();
      await receiveAll(lab, cluster);
    }
  });

  void it('wal receive never lets commits wait for it because of a star alone', async () => {
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      settings: { synchronous_standby_names: '*', synchronous_commit: 'local' },
    });
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await refused(lab, 20, /server-setting/);
    assert.deepEqual(await cluster.sql('SELECT slot_name FROM pg_replication_slots'), []);
  });
});
