import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { HoldfastError } from '../../src/errors.ts';
import { type Lsn, lsnOf } from '../../src/postgres/lsn.ts';
import { type ReplicationConnection, connectReplication } from '../../src/postgres/replication.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { walSegmentName } from '../../src/postgres/wal-segment.ts';
import type { WalStreamSink } from '../../src/postgres/wal-stream.ts';
import { walStreamRefusal } from '../../src/postgres/wal-stream-refusal.ts';
import { type TestCluster, availableMajors, createCluster, giveToServer } from '../harness/cluster.ts';

const MIB = 1024 * 1024;
const FIRST = timelineOf(1);

import { WalCollector, failure, plus, restartLsn, segmentStart, until } from '../harness/wal-collector.ts';
void describe('streamWal()', () => {
  for (const what of ['hands over the WAL', 'follows reports with the slot'] as const) {
    void it(`streamWal() ${what}, on every version`, async () => {
      for (const major of await availableMajors()) {
        await using cluster = await createCluster({ major, segmentSizeMb: 1 });
        await (what === 'hands over the WAL' ? holdsTheBytes(cluster) : movesTheSlot(cluster));
      }
    });
  }

  void it('streamWal() ends with the timeline of a promoted standby, and goes on with the next', async () => {
    for (const major of await availableMajors()) {
      await using cluster = await createCluster({ major, segmentSizeMb: 1 });
      await cluster.sql('CREATE TABLE filled AS SELECT generate_series(1, 50000) AS n');
      await cluster.stop();
      await writeFile(join(cluster.dataDir, 'standby.signal'), '');
      await cluster.start();
      await using connection = await connectReplication(cluster.url);
      const { position } = await connection.identifySystem();
      const sink = new WalCollector(segmentStart(position));
      const streamed = connection.streamWal({ timeline: FIRST, start: sink.start }, sink);
      await until(() => sink.position >= position);
      await cluster.sql('SELECT pg_promote()');
      const end = await streamed;
      assert.ok(end.kind === 'timeline-ended');
      assert.equal(end.nextTimeline, 2);
      const { history } = await connection.timelineHistory(end.nextTimeline);
      assert.deepEqual(
        history.entries.map((entry) => [entry.timeline, entry.end]),
        [[1, end.switchPoint]],
      );
      assert.ok(sink.position >= end.switchPoint);

      await cluster.sql('CREATE TABLE after_it AS SELECT generate_series(1, 1000) AS n');
      const current = await connection.identifySystem();
      assert.equal(current.timeline, 2);
      const rest = new WalCollector(end.switchPoint, current.position);
      assert.deepEqual(
        await connection.streamWal({ timeline: end.nextTimeline, start: end.switchPoint }, rest),
        { kind: 'stopped' },
      );
      const onDisk = await walOnDisk(cluster, rest.start, rest.position, 2);
      assert.ok(rest.bytes().equals(onDisk));

      // The old timeline can still be asked for; from its end on it has nothing.
      const again = new WalCollector(sink.start);
      assert.deepEqual(await connection.streamWal({ timeline: FIRST, start: again.start }, again), end);
      assert.equal(again.position, end.switchPoint);
      const nothing = new WalCollector(end.switchPoint);
      assert.deepEqual(await connection.streamWal({ timeline: FIRST, start: end.switchPoint }, nothing), end);
      assert.equal(nothing.control, undefined);
      await assertRefused(connection, { start: plus(end.switchPoint, 1) }, 'not-in-history');
      await assertRefused(connection, { timeline: timelineOf(3), start: current.position }, 'not-in-history');
    }
  });

  void it('streamWal() of a standby that is promoted under load misses nothing up to the switch', async () => {
    await using primary = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '512MB' } });
    await using standby = await standbyOf(primary);
    await using connection = await connectReplication(standby.url);
    const { position } = await connection.identifySystem();
    const sink = new WalCollector(segmentStart(position));
    const streamed = connection.streamWal({ timeline: FIRST, start: sink.start }, sink);
    await primary.sql('CREATE TABLE filled (n int, t text)');
    const load = primary
      .sql(`INSERT INTO filled SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 100000) n`)
      .catch(() => undefined);
    await until(() => sink.position > position + BigInt(8 * MIB));
    await standby.sql('SELECT pg_promote()');
    const end = await streamed;
    assert.ok(end.kind === 'timeline-ended');
    assert.ok(sink.position >= end.switchPoint && end.switchPoint > position);
    await load;
    const length = Number(end.switchPoint - sink.start);
    const onDisk = await walOnDisk(primary, sink.start, end.switchPoint);
    assert.ok(sink.bytes().subarray(0, length).equals(onDisk));
  });

  void it('streamWal() names the reason of a refusal, and the connection stays of use', async () => {
    for (const major of await availableMajors()) {
      await using cluster = await createCluster({
        major,
        segmentSizeMb: 1,
        settings: {
          wal_level: 'logical',
          max_slot_wal_keep_size: '4MB',
          max_wal_size: '2MB',
          min_wal_size: '2MB',
        },
      });
      await using connection = await connectReplication(cluster.url);
      const { position } = await connection.identifySystem();
      await assertRefused(connection, { slot: 'nowhere', start: position }, 'slot-missing', '42704');
      await assertRefused(connection, { start: plus(position, 2 ** 30) }, 'ahead-of-server');

      await cluster.sql(`SELECT pg_create_logical_replication_slot('words', 'pgoutput')`);
      await assertRefused(connection, { slot: 'words', start: position }, 'slot-logical', '55000');
      await assert.rejects(connection.readSlot('words'), failure('server-error', /logical/));
      await cluster.sql(`SELECT pg_drop_replication_slot('words')`);

      await connection.createPhysicalSlot('held');
      await assert.rejects(connection.createPhysicalSlot('held'), failure('server-error', /exists/, '42710'));
      await using holder = await connectReplication(cluster.url);
      const sink = new WalCollector(segmentStart(position));
      const streamed = holder.streamWal({ slot: 'held', timeline: FIRST, start: sink.start }, sink);
      await until(() => sink.position >= position);
      await assertRefused(connection, { slot: 'held', start: position }, 'slot-active', '55006');
      await assert.rejects(connection.dropSlot('held'), failure('server-error', /active/, '55006'));
      sink.control?.stop();
      await streamed;

      await cluster.sql(
        `CREATE TABLE filled AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 15000) n`,
      );
      await cluster.sql('CHECKPOINT');
      await assertRefused(connection, { start: position }, 'wal-removed', '58P01');
      const lost = major >= 18 ? 'slot-lost' : 'wal-removed';
      await assertRefused(connection, { slot: 'held', start: position }, lost);
      assert.deepEqual(await connection.readSlot('held'), {
        restartLsn: undefined,
        restartTimeline: undefined,
      });
      await connection.dropSlot('held');
      assert.equal(await connection.readSlot('held'), undefined);
      await assert.rejects(connection.dropSlot('held'), failure('server-error', /not exist/, '42704'));
      for (const name of ['', 'Held', 'a b', `x'; "`, 'a'.repeat(64)]) {
        await assert.rejects(connection.createPhysicalSlot(name), failure('usage-invalid', /name/));
      }
      await cluster.sql('CREATE ROLE plain LOGIN');
      await assert.rejects(connectReplication(cluster.urlOf('plain')), failure('privilege-missing', /./));
    }
  });
});

/** What is streamed from several positions is what lies in `pg_wal`. */
async function holdsTheBytes(cluster: TestCluster): Promise<void> {
  await using connection = await connectReplication(cluster.url);
  await connection.createPhysicalSlot('held');
  const first = segmentStart(await restartLsn(connection, 'held'));
  await cluster.sql(
    `CREATE TABLE filled AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 15000) n`,
  );
  await cluster.sql('SELECT pg_switch_wal()');
  await cluster.sql('INSERT INTO filled VALUES (1)');
  const { position, timeline } = await connection.identifySystem();
  const whole = await walOnDisk(cluster, first, position);
  assert.ok(whole.length > 10 * MIB);
  for (let round = 0; round < 5; round += 1) {
    const offset = round === 0 ? 0 : randomInt(whole.length);
    const sink = new WalCollector(plus(first, offset), position);
    const end = await connection.streamWal({ slot: 'held', timeline, start: sink.start }, sink);
    assert.deepEqual(end, { kind: 'stopped' });
    assert.ok(sink.serverEnd >= position);
    const expected = whole.subarray(offset);
    assert.ok(sink.bytes().subarray(0, expected.length).equals(expected), `from ${offset} on`);
  }
}

/** `restart_lsn` is what was reported as flushed, and never more than what was sent. */
async function movesTheSlot(cluster: TestCluster): Promise<void> {
  await using connection = await connectReplication(cluster.url);
  await using watcher = await connectReplication(cluster.url);
  await connection.createPhysicalSlot('held');
  const first = await restartLsn(watcher, 'held');
  await cluster.sql(`CREATE TABLE filled AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 2000) n`);
  const { position, timeline } = await connection.identifySystem();
  const sink = new WalCollector(first);
  const streamed = connection.streamWal({ slot: 'held', timeline, start: first }, sink);
  await until(() => sink.position >= position);
  const { control } = sink;
  assert.ok(control !== undefined);
  const shown = async (): Promise<[string, string | null]> => {
    const [row] = await cluster.sql<{ write_lsn: string; flush_lsn: string | null }>(
      `SELECT write_lsn - '0/0' AS write_lsn, flush_lsn - '0/0' AS flush_lsn FROM pg_stat_replication`,
    );
    return [String(row?.write_lsn), row?.flush_lsn ?? null];
  };

  control.report({ written: position, flushed: lsnOf(0n) });
  await until(async () => (await shown())[0] === String(position));
  assert.equal(await restartLsn(watcher, 'held'), first, 'what is written only stays with the server');

  const middle = plus(first, 100_000);
  control.report({ written: position, flushed: middle });
  await until(async () => (await restartLsn(watcher, 'held')) === middle);
  // Back and forth: the later report counts only where it is further.
  control.report({ written: first, flushed: first });
  control.report({ written: middle, flushed: plus(middle, 8) });
  await until(async () => (await restartLsn(watcher, 'held')) === plus(middle, 8));
  assert.deepEqual(await shown(), [String(position), String(plus(middle, 8))]);

  control.report({ written: plus(position, 2 ** 30), flushed: plus(position, 2 ** 30) });
  await until(async () => (await restartLsn(watcher, 'held')) >= position);
  assert.ok((await restartLsn(watcher, 'held')) <= sink.position);
  control.stop();
  assert.deepEqual(await streamed, { kind: 'stopped' });
  control.report({ written: plus(position, 2 ** 30), flushed: plus(position, 2 ** 30) });
  assert.ok((await restartLsn(connection, 'held')) <= sink.position);
  assert.equal((await connection.identifySystem()).timeline, 1);
}

async function assertRefused(
  connection: ReplicationConnection,
  asked: { slot?: string; timeline?: ReturnType<typeof timelineOf>; start: Lsn },
  refusal: string,
  sqlState?: string,
): Promise<void> {
  const nothing: WalStreamSink = {
    write: () => {
      throw new Error('bytes came in spite of a refusal');
    },
  };
  await assert.rejects(connection.streamWal({ timeline: FIRST, ...asked }, nothing), (error) => {
    failure('server-error', /./, sqlState)(error);
    assert.equal(walStreamRefusal(error), refusal);
    assert.ok(error instanceof HoldfastError && error.hint !== undefined);
    return true;
  });
  await connection.identifySystem();
}

/** The files of a cluster with segments of 1 MiB. */
async function walOnDisk(cluster: TestCluster, from: Lsn, to: Lsn, timeline = 1): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let number = from / BigInt(MIB); number * BigInt(MIB) < to; number += 1n) {
    const name = walSegmentName(timelineOf(timeline), number, MIB);
    parts.push(await readFile(join(cluster.dataDir, 'pg_wal', name)));
  }
  const skip = Number(from % BigInt(MIB));
  return Buffer.concat(parts).subarray(skip, skip + Number(to - from));
}

async function standbyOf(primary: TestCluster): Promise<TestCluster> {
  const standby = await createCluster({ start: false });
  await primary.stop();
  await rm(standby.dataDir, { recursive: true });
  await cp(primary.dataDir, standby.dataDir, { recursive: true });
  await primary.start();
  await writeFile(join(standby.dataDir, 'standby.signal'), '');
  await standby.configure({
    primary_conninfo: `host=${primary.socketDir} port=${primary.port} user=postgres`,
  });
  await giveToServer(standby.dataDir);
  await standby.start();
  return standby;
}
