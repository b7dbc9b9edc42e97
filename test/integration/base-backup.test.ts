import assert from 'node:assert/strict';
import { lstat, readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { assertSound, digestCluster, hashDumps, makeAwkward, runAmcheck } from '../harness/awkward.ts';
import { createBackupLab, restoreCluster } from '../harness/backup.ts';
import { recordKey } from '../../src/repository/layout.ts';
import { availableMajors } from '../harness/cluster.ts';

const majors = await availableMajors();

void describe('takeBaseBackup() and writeBackupFiles()', { concurrency: false }, () => {
  for (const major of majors) {
    void it(`bring back a database with every awkward thing in it, PostgreSQL ${major}`, async () => {
      await using lab = await createBackupLab({ major, settings: { max_prepared_transactions: '5' } });
      const holes = major === majors.at(0);
      const { locations, oddFile, emptyDirectory } = await makeAwkward(lab.cluster, { holes });
      const first = await lab.backup();
      const [digest, dumps] = [await digestCluster(lab.cluster), await hashDumps(lab.cluster)];

      const tablespaces = new Map(
        locations.map((location, index) => [
          location,
          join(lab.cluster.scratch, `ne"w ä\\ ${index}`, 'deep'),
        ]),
      );
      assert.deepEqual(first.tablespaces.map(({ location }) => location).sort(), locations.toSorted());
      await using restored = await restoreCluster(lab, first, {
        tablespaces,
        settings: { allow_in_place_tablespaces: 'on' },
      });
      assert.equal(restored.written.files, first.files.count);
      assert.equal(await digestCluster(restored), digest);
      assert.equal(await hashDumps(restored), dumps);
      await assertSound(restored);
      await runAmcheck(restored);
      for (const { oid, location } of first.tablespaces) {
        assert.equal(
          await readlink(join(restored.dataDir, 'pg_tblspc', String(oid))),
          tablespaces.get(location),
        );
      }
      const odd = Buffer.concat([Buffer.from(`${restored.dataDir}/`), oddFile]);
      assert.equal(await readFile(odd, 'utf8'), 'kept all the same');
      assert.deepEqual(await readdir(join(restored.dataDir, emptyDirectory)), []);

      // What is unlogged comes back empty and usable; what was prepared can be committed.
      await restored.sql(`COMMIT PREPARED 'it''s "two" phase'`);
      const [row] = await restored.sql<{ count: string; id: number; rows: string }>(`
        INSERT INTO forgotten (text) VALUES ('new');
        SELECT (SELECT count(*) FROM forgotten) AS count, (SELECT id FROM forgotten) AS id,
               (SELECT count(*) FROM plain WHERE note = 'prepared') AS rows`);
      assert.deepEqual(row, { count: '1', id: 1, rows: '1' });

      if (holes) {
        const [file] = await restored.sql<{ path: string }>(`SELECT pg_relation_filepath('holes') AS path`);
        const { size, blocks } = await lstat(join(restored.dataDir, file?.path ?? ''));
        assert.equal(size, 2 ** 30);
        assert.ok(blocks * 512 < 2 ** 20, `${blocks * 512} bytes of disk for holes`);
      }
    });
  }

  void it('stores less than 0.5 % again of a cluster in which nothing changed', async () => {
    await using lab = await createBackupLab({ settings: { autovacuum: 'off' } });
    await lab.cluster.sql(
      `CREATE TABLE filler AS SELECT i, md5(i::text) FROM generate_series(1, 100000) AS i`,
    );
    await lab.cluster.sql('VACUUM FREEZE ANALYZE');
    const first = await lab.backup();
    const second = await lab.backup();
    const third = await lab.backup();
    for (const again of [second, third]) {
      assert.ok(
        again.stored.newBytes < first.stored.newBytes * 0.005,
        `${again.stored.newBytes} bytes again`,
      );
      assert.ok(again.stored.newBlocks < 10, `${again.stored.newBlocks} blocks again`);
    }
    assert.equal(third.previous, second.id);
    // Complete all the same: the newest is restored with nothing read through the others' records.
    await lab.repository.storage.delete(recordKey(lab.identity, first.id));
    await lab.repository.storage.delete(recordKey(lab.identity, second.id));
    await using restored = await restoreCluster(lab, third);
    assert.equal(await digestCluster(restored), await digestCluster(lab.cluster));
  });
});
