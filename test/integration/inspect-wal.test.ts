import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { connect } from '../../src/postgres/connection.ts';
import { type WalFacts, inspectWal } from '../../src/postgres/inspect-wal.ts';
import { lsnOf } from '../../src/postgres/lsn.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import type { WalStreamControl } from '../../src/postgres/wal-stream.ts';
import { type TestCluster, availableMajors, createCluster } from '../harness/cluster.ts';
import { freePort } from '../harness/free-port.ts';

const MIB = 1024n * 1024n;

async function look(cluster: TestCluster, user = 'postgres', slot = 'held'): Promise<WalFacts> {
  await using connection = await connect(cluster.urlOf(user));
  return await inspectWal(connection, slot);
}

void describe('inspectWal()', () => {
  void it('inspectWal() tells the state of slot, holder and settings, on every version', async () => {
    for (const major of await availableMajors()) {
      await using cluster = await createCluster({
        major,
        segmentSizeMb: 1,
        archiveCommand: 'false',
        settings: {
          max_slot_wal_keep_size: '8MB',
          max_wal_size: '2MB',
          min_wal_size: '2MB',
          wal_sender_timeout: '90s',
          synchronous_standby_names: 'somebody',
          synchronous_commit: 'local',
          ...(major >= 18 ? { idle_replication_slot_timeout: '2h' } : {}),
        },
      });
      await cluster.sql('CREATE ROLE bare LOGIN REPLICATION');
      const none = await look(cluster);
      assert.equal(none.slot, undefined);
      assert.equal(none.holder, undefined);

      await using connection = await connectReplication(cluster.urlOf('bare'), { applicationName: 'us' });
      await connection.createPhysicalSlot('held');
      const { position, timeline } = await connection.identifySystem();
      const free = await look(cluster);
      assert.equal(free.holder, undefined);
      assert.ok(free.slot?.restartLsn !== undefined);
      assert.equal(free.slot.active, false);

      const started = Promise.withResolvers<WalStreamControl>();
      const streamed = connection.streamWal(
        { slot: 'held', timeline, start: free.slot.restartLsn },
        {
          started: (control) => {
            started.resolve(control);
          },
          write: () => undefined,
        },
      );
      await cluster.sql('SELECT pg_switch_wal()');
      const control = await started.promise;
      const seen = await look(cluster);
      const limited = await look(cluster, 'bare');
      for (const facts of [seen, limited]) {
        assert.ok(Math.abs(Number(facts.now / 1000n) - Date.now()) < 60_000);
        assert.equal(facts.inRecovery, false);
        assert.equal(facts.timeline, 1);
        assert.ok(facts.position >= position);
        assert.deepEqual(facts.slot, {
          name: 'held',
          type: 'physical',
          temporary: false,
          active: true,
          activePid: facts.holder?.pid,
          restartLsn: free.slot.restartLsn,
          walStatus: 'reserved',
          safeWalSize: facts.slot?.safeWalSize,
          heldBytes: facts.position - free.slot.restartLsn,
        });
        assert.ok((facts.slot?.safeWalSize ?? 0n) > 5n * MIB);
        const { holder } = facts;
        assert.ok(holder !== undefined && holder.pid > 0);
        assert.equal(holder.applicationName, 'us');
        assert.equal(holder.user, 'bare');
        assert.equal(holder.clientAddress, undefined);
        assert.ok(Math.abs(Number((holder.startedAt ?? 0n) - facts.now)) < 60_000_000);
        assert.equal(facts.maxSlotWalKeepSize, 8n * MIB);
        assert.equal(facts.idleSlotTimeoutMs, major >= 18 ? 7_200_000 : undefined);
        assert.equal(facts.synchronousStandbyNames, 'somebody');
        assert.equal(facts.synchronousCommit, 'local');
        assert.equal(facts.walSenderTimeoutMs, 90_000);
        assert.equal(facts.maxWalSize, 2n * MIB);
        assert.equal(facts.walLevel, 'replica');
        assert.equal(facts.archiveMode, 'on');
        assert.equal(facts.isLocal, true);
      }
      assert.ok((seen.walDirectoryBytes ?? 0n) >= 2n * MIB);
      assert.ok((seen.readyFiles ?? 0) >= 1);
      assert.equal(seen.dataDirectory, cluster.dataDir);
      assert.equal(limited.walDirectoryBytes, undefined);
      assert.equal(limited.readyFiles, undefined);
      assert.equal(limited.dataDirectory, undefined);
      await cluster.sql('GRANT pg_monitor TO bare');
      const monitoring = await look(cluster, 'bare');
      assert.ok((monitoring.walDirectoryBytes ?? 0n) >= 2n * MIB);
      assert.equal(monitoring.dataDirectory, cluster.dataDir);

      control.stop();
      await streamed;
      // No archive_command holds WAL back any more; the slot has to, and may not.
      await cluster.configure({ archive_command: 'true' });
      await cluster.sql('SELECT pg_reload_conf()');
      await cluster.sql(
        `CREATE TABLE filled AS SELECT repeat(md5(n::text), 30) FROM generate_series(1, 20000) n`,
      );
      await cluster.sql('CHECKPOINT');
      const lost = await look(cluster, 'bare');
      assert.equal(lost.slot?.walStatus, 'lost');
      assert.equal(lost.slot.restartLsn, undefined);
      assert.equal(lost.slot.heldBytes, undefined);
      assert.equal(lost.slot.safeWalSize, undefined);
      assert.equal(lost.slot.invalidationReason, major >= 17 ? 'wal_removed' : undefined);
    }
  });

  void it('inspectWal() of a standby, through TCP, and without limits', async () => {
    await using cluster = await createCluster({
      port: await freePort(),
      settings: { max_slot_wal_keep_size: '-1', wal_sender_timeout: '0' },
    });
    await cluster.sql('SELECT pg_create_physical_replication_slot($$held$$)');
    await cluster.stop();
    await writeFile(join(cluster.dataDir, 'standby.signal'), '');
    await cluster.start();
    await using connection = await connect(`postgres://postgres@127.0.0.1:${cluster.port}/postgres`);
    const facts = await inspectWal(connection, 'held');
    assert.equal(facts.inRecovery, true);
    assert.equal(facts.timeline, 1);
    const [row] = await cluster.sql<{ at: string }>(`SELECT (pg_last_wal_replay_lsn() - '0/0')::text AS at`);
    assert.equal(facts.position, lsnOf(BigInt(row?.at ?? '0')));
    assert.equal(facts.slot?.restartLsn, undefined);
    assert.equal(facts.slot?.walStatus, undefined);
    assert.equal(facts.maxSlotWalKeepSize, undefined);
    assert.equal(facts.idleSlotTimeoutMs, undefined);
    assert.equal(facts.walSenderTimeoutMs, 0);
    assert.equal(facts.archiveMode, 'off');
    assert.equal(facts.synchronousStandbyNames, '');
    assert.equal(facts.isLocal, true);
    await cluster.sql('SELECT pg_promote()');
    const after = await inspectWal(connection, 'held');
    assert.equal(after.inRecovery, false);
    assert.equal(after.timeline, 2);
  });
});
