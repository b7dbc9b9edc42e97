/** The proof after a restore holds what came out against what was promised, and believes nothing else. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatLsn, type Lsn } from '../../src/postgres/lsn.ts';
import { createBackupLab } from '../harness/backup.ts';
import { commitRows, createOracleTable, createRestoreBench, ORACLE_SETTINGS } from '../harness/restore.ts';
import { createWalRepository } from '../harness/wal-repository.ts';

test('proveRestore() refuses a server that recovered to less, or to more, than was promised', async () => {
  const wal = await createWalRepository();
  await using lab = await createBackupLab({
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  await createOracleTable(lab.cluster);
  await lab.backup();
  const commits = await commitRows(lab.cluster, [1, 2, 3, 4]);
  await lab.archiveNow();
  await using bench = await createRestoreBench(lab, wal);
  await bench.refresh();
  const lsnAt = (index: number): Lsn => {
    const lsn = commits[index]?.lsn;
    assert.ok(lsn !== undefined);
    return lsn;
  };
  const early = await bench.plan({ targetLsn: formatLsn(lsnAt(1)) });
  const late = await bench.plan({ targetLsn: formatLsn(lsnAt(2)) });

  await bench.files(early.plan, early.request);
  await assert.rejects(bench.prove(late.plan, late.request), {
    code: 'restore-incomplete',
    message: /short of the promised/,
  });
  await bench.files(late.plan, late.request);
  await assert.rejects(bench.prove(early.plan, early.request), {
    code: 'restore-incomplete',
    message: /beyond the promised/,
  });
  await bench.files(late.plan, late.request);
  assert.deepEqual(await bench.rows(await bench.prove(late.plan, late.request)), [1, 2, 3]);
});
