import assert from 'node:assert/strict';
import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import type { BaseBackupEvent } from '../../src/backup/base-backup.ts';
import type { HoldfastError } from '../../src/errors.ts';
import { createMemoryStorage } from '../../src/storage/memory.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { assertSound, digestCluster } from '../harness/awkward.ts';
import {
  type BackupLab,
  backupLab,
  createBackupLab,
  createStandby,
  restoreCluster,
  testRepository,
  untilCaughtUp,
  withIdentity,
} from '../harness/backup.ts';
import { createCluster } from '../harness/cluster.ts';
import { failsWith } from '../sealed-object.ts';

const MIB = 2 ** 20;
const SLOW = 4 * MIB;

/** Calls back once, when some of the backup has been sent. */
function midway(act: () => Promise<unknown>): {
  report: (event: BaseBackupEvent) => void;
  acted: () => Promise<unknown>;
} {
  let acting: Promise<unknown> | undefined;
  return {
    report: (event) => {
      if (event.event === 'progress' && event.doneBytes > 3 * MIB) acting ??= act();
    },
    acted: async () => {
      assert.ok(acting !== undefined, 'the backup ended before its middle');
      return acting;
    },
  };
}

/** Neither a record nor anything else of a backup is in the repository. */
async function assertNoBackup(lab: BackupLab, expected: readonly string[] = []): Promise<void> {
  const { backups, damaged } = await listBackups(lab.repository, lab.identity);
  assert.deepEqual([backups.map(({ id }) => id), damaged], [expected, []]);
  for await (const { key } of lab.repository.storage.list('clusters/')) {
    const run = /\/data\/([^/]+)\//.exec(key)?.[1];
    assert.ok(run === undefined || expected.includes(run), `${key} was left behind`);
  }
}

function startedId(lab: BackupLab): string {
  const event = lab.events.findLast(({ event: name }) => name === 'started');
  return event?.event === 'started' ? event.backupId : '';
}

void describe('takeBaseBackup() when things go wrong', { concurrency: false }, () => {
  void it('is whole while tables are dropped, extended and truncated under it', async () => {
    await using lab = await createBackupLab({ settings: { autovacuum_naptime: '1s' } });
    await lab.cluster.sql(`
      CREATE TABLE account (id int PRIMARY KEY, amount int);
      INSERT INTO account SELECT i, 100 FROM generate_series(1, 500) AS i;
      CREATE TABLE grown (i int, t text)`);
    const done = new AbortController();
    const loops = [
      `BEGIN; UPDATE account SET amount = amount - 1 WHERE id = (SELECT 1 + floor(random() * 250)::int);
       UPDATE account SET amount = amount + 1 WHERE id = (SELECT 251 + floor(random() * 250)::int); COMMIT`,
      `CREATE TABLE gone AS SELECT i, md5(i::text) FROM generate_series(1, 3000) AS i; CREATE INDEX ON gone (i); DROP TABLE gone`,
      `INSERT INTO grown SELECT i, repeat('x', 500) FROM generate_series(1, 1500) AS i; DELETE FROM grown`,
      `VACUUM grown`,
      `CREATE DATABASE brief STRATEGY file_copy`,
      `DROP DATABASE brief`,
    ].map(async (text) => {
      const client = await lab.cluster.connect();
      while (!done.signal.aborted) await client.query(text).catch(() => undefined);
      await client.end();
    });
    const records = [];
    try {
      for (let time = 0; time < 2; time += 1) records.push(await lab.backup({ maxRate: 24 * MIB }));
    } finally {
      done.abort();
      await Promise.all(loops);
    }
    for (const record of records) {
      await using restored = await restoreCluster(lab, record);
      const [row] = await restored.sql<{ sum: number; count: number }>(
        'SELECT sum(amount)::int AS sum, count(*)::int AS count FROM account',
      );
      assert.deepEqual(row, { sum: 50_000, count: 500 });
      await assertSound(restored);
    }
  });

  void it('reads from a standby what the primary has, and ends with an error where it is promoted midway', async () => {
    await using lab = await createBackupLab();
    await lab.cluster.sql('CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) AS i');
    await using standby = await createStandby(lab.cluster);
    await lab.cluster.sql('INSERT INTO t SELECT i, NULL FROM generate_series(1, 100) AS i; CHECKPOINT');
    await untilCaughtUp(standby, lab.cluster);
    const record = await lab.backup({ from: standby });
    assert.equal(record.server.role, 'standby');
    {
      await using restored = await restoreCluster(lab, record);
      assert.equal(await digestCluster(restored), await digestCluster(lab.cluster));
      await assertSound(restored);
    }
    const { report, acted } = midway(() => standby.sql('SELECT pg_promote(false)'));
    await assert.rejects(lab.backup({ from: standby, maxRate: SLOW, report }), failsWith('server-error'));
    await acted();
    await assertNoBackup(lab, [record.id]);
  });

  void it('leaves nothing where the connection is lost, the server dies, or it is cancelled midway', async () => {
    await using lab = await createBackupLab();
    const terminate = (): Promise<unknown> =>
      lab.cluster.sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE state = 'backup'`);
    const cancel = new AbortController();
    const events: [act: () => Promise<unknown>, codes: string[], signal?: AbortSignal][] = [
      [terminate, ['connection-lost', 'server-error']],
      [() => lab.cluster.kill(), ['connection-lost']],
      [async () => cancel.abort(), ['cancelled'], cancel.signal],
    ];
    for (const [act, codes, signal] of events) {
      const { report, acted } = midway(act);
      await assert.rejects(
        lab.backup({ maxRate: SLOW, report, ...(signal && { signal }) }),
        failsWith(...codes),
      );
      await acted();
      await assertNoBackup(lab);
      if (lab.cluster.instance === undefined) await lab.cluster.start();
    }
    await assertNoBackup(lab);
    const record = await lab.backup();
    await assertNoBackup(lab, [record.id]);
  });

  void it('refuses a server that is another cluster than before', async () => {
    await using lab = await createBackupLab();
    await using other = await createCluster();
    const record = await lab.backup();
    await assert.rejects(lab.backup({ from: other }), (error: unknown) => {
      assert.ok(failsWith('cluster-mismatch')(error), String(error));
      assert.match((error as HoldfastError).message, new RegExp(lab.identity.systemIdentifier));
      return true;
    });
    await assertNoBackup(lab, [record.id]);
  });

  void it('is no backup before its WAL has arrived', async () => {
    await using lab = await createBackupLab();
    const never = lab.backup({ endSegment: async () => undefined, walTimeoutMs: 400 });
    await assert.rejects(never, (error: unknown) => {
      assert.ok(failsWith('wal-not-archived')(error), String(error));
      assert.match((error as HoldfastError).message, /0000000100000000000000/);
      return true;
    });
    await assertNoBackup(lab);
    const late = lab.backup({
      endSegment: async () => {
        setTimeout(() => void lab.pushWal(), 500);
      },
    });
    await assertNoBackup(lab, [(await late).id]);
  });

  void it('refuses damaged WAL in the repository', async () => {
    const objects = new Map<string, Buffer>();
    await using lab = await createBackupLab({
      repository: await testRepository({ storage: createMemoryStorage(objects) }),
    });
    const spoiled = lab.backup({
      endSegment: async () => {
        await lab.pushWal();
        for (const [key, bytes] of objects) {
          if (key.includes('/wal-data/')) bytes.writeUInt8(bytes.readUInt8(99) ^ 1, 99);
        }
      },
    });
    await assert.rejects(spoiled, failsWith('object-damaged'));
    await assertNoBackup(lab);
  });

  void it('stores a cluster with damaged pages and says which', async () => {
    await using lab = await createBackupLab();
    const [row] = await lab.cluster.sql<{ path: string }>(`
      CREATE TABLE spoiled AS SELECT i, md5(i::text) FROM generate_series(1, 20000) AS i;
      CREATE TABLE sound AS SELECT 1 AS one;
      CHECKPOINT;
      SELECT pg_relation_filepath('spoiled') AS path`);
    await lab.cluster.stop();
    const path = join(lab.cluster.dataDir, row?.path ?? '');
    {
      await using file = await open(path, 'r+');
      for (const page of [3, 4, 50]) await file.write('damage', page * 8192 + 4000);
    }
    await lab.cluster.start();
    const record = await lab.backup();
    assert.ok(record.damagedPages.length > 0);
    assert.match(record.damagedPages.join('\n'), new RegExp(row?.path ?? ''));
    assert.match(JSON.stringify(lab.events.filter(({ event }) => event === 'warning')), /damaged pages/);
    await using restored = await restoreCluster(lab, record);
    assert.deepEqual(await restored.sql('SELECT one FROM sound'), [{ one: 1 }]);
    await assert.rejects(restored.sql('SELECT count(*) FROM spoiled'), /invalid page/);

    const second = await lab.backup();
    assert.deepEqual(second.damagedPages, record.damagedPages);
  });

  void it('deduplicates on a host that cannot open what it sealed, by its state directory', async () => {
    const repository = await testRepository({ seal: 'age-write-only' });
    await using lab = await createBackupLab({ repository, settings: { autovacuum: 'off' } });
    await lab.cluster.sql(
      'CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 50000) AS i; CHECKPOINT',
    );
    const first = await lab.backup();
    const second = await lab.backup();
    assert.equal(second.previous, first.id);
    assert.ok(second.stored.newBlocks < 10, `${second.stored.newBlocks} blocks again`);

    await rm(lab.stateDirectory, { recursive: true });
    const third = await lab.backup();
    assert.equal(third.previous, null);
    assert.equal(third.stored.newBlocks, first.stored.newBlocks);
    assert.match(JSON.stringify(lab.events), /cannot be compared with .*everything is stored anew/);
    const fourth = await lab.backup();
    assert.ok(fourth.stored.newBlocks < 10, `${fourth.stored.newBlocks} blocks again`);

    await assert.rejects(restoreCluster(lab, second), failsWith('key-missing'));
    for (const record of [second, fourth]) {
      await using restored = await restoreCluster(lab, record, {
        repository: await withIdentity(repository),
      });
      assert.equal(await digestCluster(restored), await digestCluster(lab.cluster));
    }
  });

  void it('keeps a second run away, and two clusters of one repository apart', async () => {
    await using lab = await createBackupLab();
    const { report, acted } = midway(() => assert.rejects(lab.backup(), failsWith('repository-locked')));
    const first = await lab.backup({ maxRate: 12 * MIB, report });
    await acted();
    await using other = await backupLab(
      await createCluster({ settings: { wal_keep_size: '1GB' } }),
      lab.repository,
    );
    await assert.rejects(other.archiveNow(), failsWith('cluster-mismatch'));
    await assertNoBackup(lab, [first.id]);
    assert.equal(startedId(lab), first.id);
  });
});
