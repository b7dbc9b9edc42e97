/** Promotions under load: followed by a receiver that knows several servers, whole on every timeline. */
import assert from 'node:assert/strict';
import { appendFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { timelineOf } from '../../src/postgres/timeline.ts';
import { createStandby, untilCaughtUp } from '../harness/backup.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  eventually,
  identityOf,
  type ReceiverLab,
  rounds,
  SLOT,
  startLoad,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';
import { walBytesOnDisk } from '../harness/wal-on-disk.ts';

const MIB = 2 ** 20;
const SETTINGS = { wal_keep_size: '1GB', hot_standby: 'on', wal_receiver_status_interval: '1s' };

async function promote(standby: TestCluster): Promise<void> {
  await standby.sql('SELECT pg_promote()');
  await eventually('the end of recovery', async () => {
    const [row] = await standby.sql<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
    return row?.standby === false;
  });
}

/** A primary that was left behind comes back as a standby of the new one. */
async function comeBack(old: TestCluster, primary: TestCluster): Promise<void> {
  await writeFile(join(old.dataDir, 'standby.signal'), '');
  await old.configure({
    primary_conninfo: `host=${primary.socketDir} port=${primary.port} user=postgres`,
    recovery_target_timeline: 'latest',
  });
  await giveToServer(old.dataDir);
  await old.start();
}

/** Everything up to the switch on the old timeline, everything from its segment on on the new one, as on the disk. */
async function assertWhole(lab: ReceiverLab, primary: TestCluster, timeline: number): Promise<void> {
  const identity = await identityOf(primary);
  const stored = await storedWal(await lab.repository(), identity, MIB, timelineOf(timeline));
  assert.ok(stored.bytes.length > 0);
  assert.ok(
    stored.bytes.equals(await walBytesOnDisk(primary, stored, MIB, timeline)),
    `timeline ${timeline}`,
  );
  const name = `${timeline.toString(16).toUpperCase().padStart(8, '0')}.history`;
  assert.ok(stored.histories.includes(name), `${name} in ${stored.histories.join()}`);
  const parent = await storedWal(await lab.repository(), identity, MIB, timelineOf(timeline - 1));
  assert.ok(parent.end >= stored.start, 'a hole between the timelines');
}

void describe('wal receive', () => {
  void it('wal receive follows promotions under load, history first, without a hole', async () => {
    let primary = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(primary);
    let standby = await createStandby(primary);
    try {
      await using lab = await createReceiverLab({ urls: [primary.url, standby.url] });
      let receiver = await lab.start();
      await receiver.event('streaming');
      const last = 1 + rounds(3);
      for (let timeline = 2; timeline <= last; timeline += 1) {
        const load = await startLoad(primary, { first: 1_000_000 * timeline });
        await sleep(300 + Math.random() * 500);
        await (Math.random() < 0.5 ? primary.kill() : primary.stop('fast'));
        await load.stop();
        await promote(standby);
        const more = await startLoad(standby, { first: 1_000_000 * timeline + 500_000 });
        await receiver.event('streaming', (event) => event['timeline'] === timeline);
        await eventually('load', () => more.acknowledged.length > 20);
        await more.stop();
        await untilFlushed(standby, receiver);
        await assertWhole(lab, standby, timeline);
        if (timeline === last) break;
        // pg_rewind would do this faster, but the old primary may have WAL that nobody got.
        await primary[Symbol.asyncDispose]();
        [primary, standby] = [standby, await createStandby(standby)];
        await receiver.kill();
        receiver = await lab.start({ urls: [primary.url, standby.url] });
        await receiver.event('streaming');
        await untilFlushed(primary, receiver);
      }
      assert.ok(!receiver.hasEnded(), receiver.text());
    } finally {
      await primary[Symbol.asyncDispose]();
      await standby[Symbol.asyncDispose]();
    }
  });

  void it('wal receive of a cascaded standby follows its promotion, and drops the slot left on a demoted primary', async () => {
    await using primary = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(primary);
    await using standby = await createStandby(primary);
    await using lab = await createReceiverLab({ urls: [standby.url] });
    await using cascaded = await lab.start();
    await cascaded.event('streaming');
    const load = await startLoad(primary);
    await eventually('load', () => load.acknowledged.length > 50);
    await load.stop();
    await untilCaughtUp(standby, primary);
    const reached = load.acknowledged.at(-1)?.lsn ?? 0n;
    const identity = await identityOf(primary);
    await eventually('the standby’s WAL', async () => {
      return (await storedWal(await lab.repository(), identity, MIB)).end >= reached;
    });
    // The primary has a slot of ours as well, from earlier.
    await primary.sql(`SELECT pg_create_physical_replication_slot('${SLOT}', true)`);
    await primary.stop('fast');
    await promote(standby);
    await cascaded.event('switched');
    await standby.sql("INSERT INTO load VALUES (5000000, 'x')");
    await untilFlushed(standby, cascaded);
    await assertWhole(lab, standby, 2);
    assert.equal((await cascaded.end()).status, 0, cascaded.text());

    await comeBack(primary, standby);
    await using both = await lab.start({ urls: [primary.url, standby.url] });
    await both.event('streaming', (event) => event['timeline'] === 2);
    await eventually('the end of the old slot', async () => {
      return (await primary.sql('SELECT FROM pg_replication_slots')).length === 0;
    });
    assert.equal((await standby.sql('SELECT FROM pg_replication_slots WHERE active')).length >= 1, true);
    assert.equal((await both.end()).status, 0, both.text());
  });

  void it('wal receive refuses an old primary that is alone, and leaves what is stored as it is', async () => {
    await using primary = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(primary);
    await using standby = await createStandby(primary);
    await using lab = await createReceiverLab({ urls: [primary.url, standby.url] });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await untilCaughtUp(standby, primary);
    await primary.kill();
    await promote(standby);
    await receiver.event('streaming', (event) => event['timeline'] === 2);
    await untilFlushed(standby, receiver);
    assert.equal((await receiver.end()).status, 0, receiver.text());
    await standby.stop('fast');
    await primary.start();
    await primary.sql("INSERT INTO load VALUES (1, 'nobody gets this')");
    const identity = await identityOf(primary);
    const before = await storedWal(await lab.repository(), identity, MIB);
    await using refused = await lab.start();
    assert.equal(await refused.ended, 40, refused.text());
    assert.match(refused.text(), /old primary/);
    assert.equal((await storedWal(await lab.repository(), identity, MIB)).end, before.end);
    // Two primaries at once: the new one counts.
    await standby.start();
    await using again = await lab.start();
    const { timeline } = await again.event('streaming');
    assert.equal(timeline, 2);
    assert.equal((await again.end()).status, 0, again.text());
  });

  void it('wal receive knows timelines beyond the ninth', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(cluster);
    for (let timeline = 2; timeline <= 10; timeline += 1) {
      await cluster.stop('fast');
      await writeFile(join(cluster.dataDir, 'standby.signal'), '');
      await appendFile(join(cluster.dataDir, 'postgresql.conf'), '');
      await giveToServer(join(cluster.dataDir, 'standby.signal'));
      await cluster.start();
      await promote(cluster);
    }
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    for (const n of [1, 2]) {
      await using receiver = await lab.start();
      assert.equal((await receiver.event('streaming'))['timeline'], 10);
      await cluster.sql(`INSERT INTO load VALUES (${n}, 'x')`);
      await untilFlushed(cluster, receiver);
      assert.equal((await receiver.end()).status, 0, receiver.text());
    }
    const stored = await storedWal(await lab.repository(), await identityOf(cluster), MIB, timelineOf(10));
    assert.ok(stored.histories.includes('0000000A.history'));
    assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB, 10)));
  });
});
