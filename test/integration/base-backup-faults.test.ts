import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';

import { runPrefix } from '../../src/repository/layout.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { readReferences } from '../../src/repository/map-index.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { verifyStored } from '../../src/repository/sealed-object.ts';
import { createMemoryStorage } from '../../src/storage/memory.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { runWithCrashAtEveryOperation } from '../every-operation.ts';
import { CrashError, type FaultKind, FaultyStorage } from '../faulty-storage.ts';
import {
  type BackupLab,
  backupLab,
  createBackupLab,
  restoreCluster,
  testRepository,
} from '../harness/backup.ts';
import { readFiles } from '../harness/synthetic-backup.ts';
import { VolatileStorage } from '../volatile-storage.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);

void describe('takeBaseBackup() with a store that fails', { concurrency: false }, () => {
  let lab: BackupLab;
  let states: string;
  const objects = new Map<string, Buffer>();

  before(async () => {
    const repository = await testRepository({ storage: createMemoryStorage(objects) });
    lab = await createBackupLab({ repository, segmentSizeMb: 1, settings: { autovacuum: 'off' } });
    states = await mkdtemp(join(tmpdir(), 'hf-faults-'));
    await lab.cluster.sql('CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 3000) AS i');
    await lab.backup();
    await lab.cluster.sql('UPDATE t SET i = -i WHERE i % 100 = 0; CHECKPOINT');
  });
  after(async () => {
    await lab[Symbol.asyncDispose]();
    await rm(states, { recursive: true, force: true });
  });

  /** A copy of the store as the first backup left it. */
  async function storeWithOneBackup(): Promise<VolatileStorage> {
    const storage = new VolatileStorage();
    for (const [key, bytes] of objects) await storage.put(key, bytes);
    return storage;
  }

  async function labOn(storage: Storage): Promise<BackupLab> {
    return await backupLab(lab.cluster, await testRepository({ storage }));
  }

  /** Every listed backup has all it needs, and its blocks are what was stored. Returns their ids. */
  async function assertListedAreWhole(repository: Repository): Promise<string[]> {
    const { backups, damaged } = await listBackups(repository, lab.identity);
    assert.deepEqual(damaged, []);
    for (const record of backups) {
      const packs = await readReferences(repository, record);
      for (const stored of [record.references, record.index, ...packs.values()]) {
        await verifyStored(repository.storage, stored);
      }
    }
    const [, second, third] = backups;
    const newest = third ?? second;
    if (newest !== undefined) await readFiles(repository, newest);
    return backups.map(({ id }) => id);
  }

  /** Nothing lies in the store that no backup owns. */
  async function assertNothingLeft(storage: Storage, ids: readonly string[]): Promise<void> {
    const own = ids.map((id) => runPrefix(lab.identity, id));
    const data = runPrefix(lab.identity, 'x').replace('x/', '');
    for await (const { key } of storage.list(data)) {
      assert.ok(
        own.some((prefix) => key.startsWith(prefix)),
        `${key} was left behind`,
      );
    }
  }

  const kinds: FaultKind[] = ['crash-before', 'error-after'];
  if (SCALE > 1) kinds.push('crash-after', 'error-before', 'crash-unsynced');
  for (const kind of kinds) {
    void it(`leaves whole backups only, and the next run succeeds: ${kind} at every operation`, async () => {
      let run = 0;
      let pristine = new VolatileStorage();
      const { runs } = await runWithCrashAtEveryOperation({
        kinds: [kind],
        prepare: async () => {
          run += 1;
          pristine = await storeWithOneBackup();
          return pristine;
        },
        scenario: async (storage) => {
          // The archiver is another process: its way to the store does not fail.
          const archiving = await labOn(pristine);
          const repository = await testRepository({ storage });
          await archiving.backup({ repository, stateDirectory: join(states, `${kind}-${run}`) });
        },
        invariant: async (storage, { acknowledged, operation, key }) => {
          storage.crash(() => run % 2 === 0);
          const repository = await testRepository({ storage });
          const ids = await assertListedAreWhole(repository);
          const mayBeListed = acknowledged || (operation === 'put-publish' && key.includes('/base/'));
          assert.ok(
            ids.length === 1 || (ids.length === 2 && mayBeListed),
            `${ids.length} backups are listed`,
          );
          assert.ok(!acknowledged || ids.length === 2, 'the backup that succeeded is not listed');

          const next = await (
            await labOn(storage)
          ).backup({ stateDirectory: join(states, `${kind}-${run}`) });
          const now = await assertListedAreWhole(repository);
          assert.deepEqual(now, [...ids, next.id]);
          await assertNothingLeft(storage, now);
        },
      });
      assert.ok(runs > 15, `${runs} faults`);
    });
  }

  void it('restores a backup whose run came after one that crashed midway', async () => {
    const storage = await storeWithOneBackup();
    const faulty = new FaultyStorage(storage, { kind: 'crash-after', at: 1, only: ['put-publish'] });
    const again = await labOn(storage);
    const crashed = again.backup({ repository: await testRepository({ storage: faulty }) });
    await assert.rejects(crashed, CrashError);
    const record = await again.backup();
    assert.match(JSON.stringify(again.events), /removed [0-9]+ objects of backup .* which did not finish/);
    await using restored = await restoreCluster(again, record);
    assert.deepEqual(await restored.sql('SELECT count(*)::int FROM t WHERE i < 0'), [{ count: 30 }]);
  });
});
