/** What a receiver refuses: another receiver, lost WAL, servers that are not what they were. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { formatLsn } from '../../src/postgres/lsn.ts';
import { listGapNotes } from '../../src/repository/wal-gap-note.ts';
import { createCluster, type TestCluster } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  currentLsn,
  eventually,
  identityOf,
  type ReceiverLab,
  type ReceiverStart,
  SLOT,
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
  void it('wal receive refuses a second receiver, and says who holds the WAL', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1 });
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await using first = await lab.start();
    await first.event('streaming');
    await refused(lab, 11, new RegExp(`process ${first.pid} on this host`));
    const begin = performance.now();
    const [row] = await cluster.sql<{ pid: number }>('SELECT active_pid AS pid FROM pg_replication_slots');
    // As on another host: only the slot tells.
    await refused(lab, 11, new RegExp(`holdfast as postgres .*server process ${row?.pid}`), {
      stateDirectory: join(lab.directory, 'elsewhere'),
    });
    assert.ok(performance.now() - begin < 20_000);
    assert.ok(!first.hasEnded());
    assert.equal((await first.end()).status, 0, first.text());
  });

  void it('wal receive skips nothing where the slot lost its WAL, until the gap is accepted', async () => {
    await using cluster = await createCluster({
      segmentSizeMb: 1,
      settings: {
        max_slot_wal_keep_size: '1MB',
        max_wal_size: '2MB',
        min_wal_size: '2MB',
        wal_keep_size: '0',
      },
    });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await receiveAll(lab, cluster);
    const identity = await identityOf(cluster);
    const before = await storedWal(await lab.repository(), identity, MIB);
    await loseWal(cluster);
    await refused(lab, 40, /wal-gap/);
    await refused(lab, 40, /--accept-gap/);
    assert.equal((await storedWal(await lab.repository(), identity, MIB)).end, before.end);
    const [note, ...others] = await Array.fromAsync(listGapNotes(await lab.repository(), identity));
    assert.ok(note !== undefined && others.length === 0, 'one note, however often it was noticed');
    assert.ok(note.fromLsn <= before.end && note.timeline === 1);

    // What is received from now on is not to be lost by chance.
    await cluster.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '-1'");
    await cluster.sql('SELECT pg_reload_conf()');
    await using accepting = await lab.start({ arguments: ['--accept-gap'] });
    await accepting.event('streaming');
    await untilFlushed(cluster, accepting);
    // A server finds out that WAL is missing only after it has begun to stream.
    const lsn = accepting.events.findLast(({ event }) => event === 'streaming')?.['lsn'];
    assert.equal((await accepting.end()).status, 0, accepting.text());
    const notes = await Array.fromAsync(listGapNotes(await lab.repository(), identity));
    assert.ok(
      notes.some(({ toLsn }) => formatLsn(toLsn) === lsn),
      accepting.text(),
    );
    // It was accepted once and for all, though no segment behind it is complete yet.
    await fill(cluster, 5);
    await receiveAll(lab, cluster);
  });

  void it('wal receive goes on without a hole where its slot was dropped and the WAL is still there', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '512MB' } });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await receiveAll(lab, cluster);
    await cluster.sql(`SELECT pg_drop_replication_slot('${SLOT}')`);
    await fill(cluster, 3000);
    await cluster.sql('CHECKPOINT');
    await receiveAll(lab, cluster);
    const { end } = await storedWal(await lab.repository(), await identityOf(cluster), MIB);
    assert.ok(end >= (await currentLsn(cluster)) - 1000n);
    // And where nobody kept it: refused.
    await cluster.sql(`SELECT pg_drop_replication_slot('${SLOT}')`);
    await cluster.sql("ALTER SYSTEM SET wal_keep_size = '0'; ");
    await cluster.sql("ALTER SYSTEM SET max_wal_size = '2MB'");
    await cluster.sql('SELECT pg_reload_conf()');
    await loseWal(cluster);
    await refused(lab, 40, /wal-gap/);
  });
});

/** Removes the WAL that no slot holds, or that a slot may not hold any more. */
async function loseWal(cluster: TestCluster): Promise<void> {
  await eventually('the loss of WAL', async () => {
    await fill(cluster, 2000);
    await cluster.sql('SELECT pg_switch_wal()');
    await cluster.sql('CHECKPOINT');
    const [row] = await cluster.sql<{ lost: boolean }>(
      `SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE wal_status <> 'lost')
              AND (SELECT count(*) FROM pg_ls_waldir()) < 12 AS lost`,
    );
    return row?.lost === true;
  });
}
