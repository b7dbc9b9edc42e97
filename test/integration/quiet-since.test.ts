import assert from 'node:assert/strict';
import { test } from 'node:test';

import { connect } from '../../src/postgres/connection.ts';
import { parseLsn } from '../../src/postgres/lsn.ts';
import { quietSince } from '../../src/postgres/quiet-since.ts';
import { availableMajors, createCluster } from '../harness/cluster.ts';

for (const major of await availableMajors()) {
  test(`quietSince() knows only of commits that cannot have been, PostgreSQL ${major}`, async () => {
    await using cluster = await createCluster({ major });
    await using connection = await connect(cluster.url);
    const writer = await cluster.connect();
    const quiet = async (): Promise<boolean> => (await quietSince(connection)) !== undefined;
    const checkpoint = async (): Promise<unknown> => cluster.sql('CHECKPOINT');

    await writer.query('CREATE TABLE t (i int)');
    assert.equal(await quiet(), false, 'committed since the last checkpoint');
    await checkpoint();
    assert.equal(await quiet(), true);
    const [row] = await cluster.sql<{ lsn: string }>(
      'SELECT redo_lsn::text AS lsn FROM pg_control_checkpoint()',
    );
    assert.equal(await quietSince(connection), parseLsn(row?.lsn ?? ''));
    await cluster.sql('SELECT count(*) FROM t');
    assert.equal(await quiet(), true, 'reading commits nothing');

    await writer.query('BEGIN');
    await writer.query('INSERT INTO t VALUES (1)');
    await checkpoint();
    assert.equal(await quiet(), false, 'a transaction ran when the checkpoint was made');
    await writer.query('COMMIT');
    assert.equal(await quiet(), false, 'and committed behind it');
    await checkpoint();
    assert.equal(await quiet(), true);
    await cluster.sql('INSERT INTO t VALUES (2)');
    assert.equal(await quiet(), false);
    await writer.end();

    await cluster.stop('fast');
    await cluster.start();
    await using again = await connect(cluster.url);
    assert.notEqual(await quietSince(again), undefined, 'nothing runs when a server is stopped');
  });
}
