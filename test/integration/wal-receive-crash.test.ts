/** Primary and receiver killed at a random moment: what was reported as flushed is in the repository, and restorable. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from 'pg';

import { stopInstance } from '../../src/postgres/instance.ts';
import type { Lsn } from '../../src/postgres/lsn.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  eventually,
  flushedLsn,
  identityOf,
  rounds,
  startLoad,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';
import { walBytesOnDisk } from '../harness/wal-on-disk.ts';

const MIB = 2 ** 20;

/** Asks the server again and again what it was told, until it is gone. */
function watchFlushed(cluster: TestCluster): { last: () => Lsn; end: () => Promise<void> } {
  let last = 0n as Lsn;
  const state = { going: true };
  const watching = (async () => {
    while (state.going) {
      const lsn = await flushedLsn(cluster).catch(() => undefined);
      if (lsn === undefined) return;
      assert.ok(lsn >= last, 'the flushed position went back');
      last = lsn;
      await sleep(5);
    }
  })();
  watching.catch(() => undefined);
  return {
    last: () => last,
    async end() {
      state.going = false;
      await watching;
    },
  };
}

void describe('wal receive', () => {
  void it('wal receive has stored whatever it reported, when it and the primary are killed under load', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '1GB' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url], tailInterval: '300ms' });
    const identity = await identityOf(cluster);
    const ages: number[] = [];
    for (let round = 0; round < rounds(3); round += 1) {
      const receiver = await lab.start();
      await receiver.event('streaming');
      await untilFlushed(cluster, receiver);
      const watch = watchFlushed(cluster);
      const load = await startLoad(cluster, { first: 1_000_000 * (round + 1) });
      await sleep(500 + Math.random() * 1500);
      await Promise.all([cluster.kill(), receiver.kill()]);
      await load.stop();
      await watch.end();
      const stored = await storedWal(await lab.repository(), identity, MIB);
      assert.ok(stored.end >= watch.last(), `${stored.end} < ${watch.last()}`);
      ages.push(load.acknowledged.filter(({ lsn }) => lsn > stored.end).length);
      await cluster.start();
      assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB)));
    }
    assert.equal(ages.length, rounds(3));
  });

  void it('wal receive gives a restore whatever was committed before the last reported position, through tails alone', async () => {
    await using cluster = await createCluster({ settings: { wal_keep_size: '256MB' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url], tailInterval: '300ms' });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await lab.holdfast('backup', 'base', 'app');
    const watch = watchFlushed(cluster);
    const load = await startLoad(cluster);
    await eventually('load', () => load.acknowledged.length > 100);
    await untilFlushed(cluster, receiver);
    await sleep(300 + Math.random() * 700);
    await Promise.all([cluster.kill(), receiver.kill()]);
    await load.stop();
    await watch.end();
    const sure = load.acknowledged.filter(({ lsn }) => lsn <= watch.last()).map(({ n }) => n);
    assert.ok(sure.length > 100, String(sure.length));

    const to = join(lab.directory, 'restored');
    await giveToServer(lab.directory);
    const restored = await lab.holdfast('restore', 'base', 'app', '--to', to, '--start');
    const { url } = restored['server'] as { url: string };
    const client = new Client({ connectionString: url });
    client.on('error', () => undefined);
    await client.connect();
    try {
      const { rows } = await client.query<{ n: number }>('SELECT n FROM load ORDER BY n');
      const there = rows.map(({ n }) => n);
      assert.deepEqual(there.slice(0, sure.length), sure);
      assert.deepEqual(
        there,
        Array.from({ length: there.length }, (_, index) => index + 1),
      );
      // At most one that was under way when everything ended.
      assert.ok(there.length <= load.acknowledged.length + 1);
    } finally {
      await client.end();
      await stopInstance(to, 'immediate');
    }
  });

  void it('wal receive as a synchronous standby lets commits return at once, and loses none of them', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '1GB' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url], tailInterval: '10s' });
    {
      await using first = await lab.start();
      await first.event('streaming');
      assert.equal((await first.end()).status, 0, first.text());
    }
    await cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'holdfast'");
    await cluster.sql('SELECT pg_reload_conf()');
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await eventually('a synchronous standby', async () => {
      const [row] = await cluster.sql<{ state: string }>(
        'SELECT sync_state AS state FROM pg_stat_replication',
      );
      return row?.state === 'sync';
    });
    const identity = await identityOf(cluster);
    const client = await cluster.connect();
    const took: number[] = [];
    const committed: number[] = [];
    for (let n = 1; n <= 40; n += 1) {
      const begin = performance.now();
      await client.query(`INSERT INTO load VALUES (${n}, repeat(md5('${n}'), 60))`);
      took.push(performance.now() - begin);
      committed.push(n);
    }
    const { rows } = await client.query<{ lsn: string }>(
      "SELECT (pg_current_wal_flush_lsn() - '0/0')::text AS lsn",
    );
    took.sort((a, b) => a - b);
    const median = took[20] ?? 0;
    assert.ok(median < 1000, `${median} ms`);
    const load = await startLoad(cluster, { first: 1000 });
    await eventually('load', () => load.acknowledged.length > 50);
    await Promise.all([cluster.kill(), receiver.kill()]);
    await load.stop();
    await client.end().catch(() => undefined);
    const stored = await storedWal(await lab.repository(), identity, MIB);
    assert.ok(stored.end >= BigInt(rows[0]?.lsn ?? 0));
    // The position was read after the commit, so others' WAL may be before it: of the last but one all must be there.
    const last = load.acknowledged.at(-2);
    assert.ok(last !== undefined && stored.end >= last.lsn - 16_384n, `${stored.end} ${last?.lsn}`);
    console.log(
      `synchronous commit: median ${median.toFixed(1)} ms, longest ${(took.at(-1) ?? 0).toFixed(1)} ms`,
    );
  });

  void it('wal receive does not hold up the shutdown of its server, and comes back when that does', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '1GB' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url], tailInterval: '30s' });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    const identity = await identityOf(cluster);
    for (const n of [1, 2]) {
      await cluster.sql(`INSERT INTO load VALUES (${n}, 'x')`);
      const begin = performance.now();
      await cluster.stop('fast');
      const ms = performance.now() - begin;
      assert.ok(ms < 8000, `${ms} ms`);
      await receiver.event('problem');
      const before = receiver.events.filter(({ event }) => event === 'streaming').length;
      await cluster.start();
      await eventually(
        'streaming',
        () => {
          return receiver.events.filter(({ event }) => event === 'streaming').length > before;
        },
        receiver.text,
      );
      // With the checkpoint of the shutdown, which nothing may follow.
      const stored = await storedWal(await lab.repository(), identity, MIB);
      const [row] = await cluster.sql<{ lsn: string }>(
        "SELECT (checkpoint_lsn - '0/0')::text AS lsn FROM pg_control_checkpoint()",
      );
      assert.ok(stored.end > BigInt(row?.lsn ?? 0), `${stored.end} ${row?.lsn}`);
    }
    const { status, ms } = await receiver.end();
    assert.equal(status, 0, receiver.text());
    assert.ok(ms < 8000, `${ms} ms`);
  });

  void it('wal receive that is ended while no server answers ends well: everything received is stored', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1 });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await untilFlushed(cluster, receiver);
    await cluster.kill();
    await receiver.event('problem');
    await sleep(Math.random() * 500);
    const { status, ms } = await receiver.end();
    assert.equal(status, 0, receiver.text());
    assert.ok(ms < 5000, `${ms} ms`);
  });
});
