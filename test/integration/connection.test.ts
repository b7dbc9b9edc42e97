import assert from 'node:assert/strict';
import { chmod, cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError } from '../../src/errors.ts';
import { connect } from '../../src/postgres/connection.ts';
import {
  assertCanBaseBackup,
  assertSameServer,
  inspectServer,
  pinIdentity,
  requiredGrantsSql,
} from '../../src/postgres/inspect-server.ts';
import { parseLsn } from '../../src/postgres/lsn.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import { availableMajors, createCluster, giveToServer, scratchDirectory } from '../harness/cluster.ts';
import { freePort } from '../harness/free-port.ts';

function failure(code: string, pattern: RegExp, secret = 'never-there') {
  return (error: unknown): boolean => {
    assert.ok(error instanceof HoldfastError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(`${error.message} | ${error.hint}`, pattern);
    assert.ok(
      !JSON.stringify([error.message, error.hint, error.context]).includes(secret),
      'a password leaked',
    );
    return true;
  };
}

for (const major of await availableMajors()) {
  void describe(`inspectServer() on PostgreSQL ${major}`, () => {
    void it('inspectServer() needs only the printed grants and tells the truth', async () => {
      await using cluster = await createCluster({
        major,
        segmentSizeMb: 64,
        archiveCommand: 'false',
        settings: { max_wal_senders: '7' },
      });
      await cluster.sql(requiredGrantsSql(`back"up`));
      await using connection = await connect(cluster.urlOf(`back"up`));
      const facts = await inspectServer(connection);
      const [truth] = await cluster.sql('SELECT system_identifier::text AS id FROM pg_control_system()');
      assert.equal(facts.systemIdentifier, truth?.['id']);
      const { server, position, versionNumber, versionText, ...rest } = facts;
      assert.equal(server, `${cluster.socketDir}/.s.PGSQL.5432`);
      assert.ok(position > 0n);
      assert.equal(Math.floor(versionNumber / 10_000), major);
      assert.ok(versionText.startsWith(String(major)));
      assert.deepEqual(rest, {
        systemIdentifier: facts.systemIdentifier,
        majorVersion: major,
        timeline: 1,
        inRecovery: false,
        walSegmentSize: 64 * 1024 * 1024,
        blockSize: 8192,
        dataChecksums: true,
        archiveMode: 'on',
        archiveCommand: 'false',
        archiveLibrary: '',
        walLevel: 'replica',
        fullPageWrites: true,
        maxConnections: 100,
        maxWalSenders: 7,
        maxReplicationSlots: 10,
        maxWorkerProcesses: 8,
        maxPreparedTransactions: 0,
        maxLocksPerTransaction: 64,
        canReplicate: true,
        canSwitchWal: true,
        canMonitor: true,
        isSuperuser: false,
        inPlaceTablespaces: [],
        replay: undefined,
        warning: undefined,
      });
      assertCanBaseBackup(facts, connection.user);
      await connection.query('SELECT pg_create_restore_point($1), pg_switch_wal()', ['x']);
    });

    void it('inspectServer() tells what a bare role lacks', async () => {
      await using cluster = await createCluster({ major });
      await cluster.sql('CREATE ROLE bare LOGIN');
      await using connection = await connect(cluster.urlOf('bare'));
      const facts = await inspectServer(connection);
      assert.deepEqual([facts.canReplicate, facts.canSwitchWal, facts.canMonitor], [false, false, false]);
      assert.equal(facts.archiveCommand, '');
      assert.throws(
        () => {
          assertCanBaseBackup(facts, connection.user);
        },
        failure('privilege-missing', /ALTER ROLE "bare" REPLICATION/),
      );
      await assert.rejects(
        connection.query('SELECT pg_switch_wal()'),
        failure('privilege-missing', /pg_switch_wal/),
      );
      await assert.rejects(
        connectReplication(cluster.urlOf('bare')),
        failure('privilege-missing', /ALTER ROLE "bare" REPLICATION/),
      );
    });
  });
}

void describe('connect()', () => {
  void it('connect() to a wrong port names host and port', async () => {
    const port = await freePort();
    await assert.rejects(
      connect(`postgres://someone:sesame@127.0.0.1:${port}/postgres`),
      failure('connection-failed', new RegExp(`127\\.0\\.0\\.1:${port}`), 'sesame'),
    );
    await assert.rejects(
      connect('postgres:///postgres?host=/nowhere/at/all&port=1234'),
      failure('connection-failed', /\/nowhere\/at\/all\/\.s\.PGSQL\.1234/),
    );
  });

  void it('connect() gives up on a server that never answers', async () => {
    const silent = createServer(() => undefined);
    await new Promise<void>((resolve) => {
      silent.listen(0, '127.0.0.1', resolve);
    });
    try {
      const address = silent.address();
      assert.ok(typeof address === 'object' && address !== null);
      const url = `postgres://someone@127.0.0.1:${address.port}/postgres`;
      await assert.rejects(
        connect(url, { deadlineMs: 200 }),
        failure('connection-failed', /no answer within 200 ms/),
      );
      await assert.rejects(
        connect(url, { signal: AbortSignal.timeout(100) }),
        failure('cancelled', /cancelled/),
      );
    } finally {
      silent.close();
    }
  });

  void it('connect() with passwords: wrong, missing, from .pgpass, from a service', async () => {
    const port = await freePort();
    await using cluster = await createCluster({ port, start: false });
    await writeFile(
      join(cluster.dataDir, 'pg_hba.conf'),
      'local all all trust\nhost all,replication all 127.0.0.1/32 scram-sha-256\n',
    );
    await cluster.start();
    await cluster.sql(`CREATE ROLE careful LOGIN REPLICATION PASSWORD 'sesame:1'`);
    const url = `postgres://careful@127.0.0.1:${port}/postgres`;
    const withPassword = url.replace('@', ':wrong-sesame@');
    await assert.rejects(
      connect(withPassword),
      failure('connection-failed', /password.*\.pgpass/s, 'wrong-sesame'),
    );
    await assert.rejects(
      connectReplication(withPassword),
      failure('connection-failed', /password.*\.pgpass/s, 'wrong-sesame'),
    );
    const directory = await scratchDirectory();
    const passfile = join(directory, 'pgpass');
    const query = `passfile=${encodeURIComponent(passfile)}`;
    await assert.rejects(connect(`${url}?${query}`), failure('connection-failed', /\.pgpass/));

    await writeFile(passfile, `# a comment\n*:1:*:careful:no\n127.0.0.1:${port}:*:careful:sesame\\:1\n`);
    await chmod(passfile, 0o644);
    await assert.rejects(connect(`${url}?${query}`), failure('connection-failed', /\.pgpass/));
    await chmod(passfile, 0o600);
    await using byFile = await connect(`${url}?${query}`);
    assert.deepEqual(await byFile.query('SELECT current_user AS who'), [{ who: 'careful' }]);
    await using replication = await connectReplication(`${url}?${query}`);
    assert.equal(await replication.show('wal_level'), 'replica');

    await mkdir(join(directory, 'etc'));
    await writeFile(
      join(directory, 'etc', 'pg_service.conf'),
      `[other]\nhost=nowhere\n[lab]\nhost = 127.0.0.1\nport=${port}\nuser=careful\npassword=sesame:1\n`,
    );
    process.env['PGSYSCONFDIR'] = join(directory, 'etc');
    process.env['PGSERVICEFILE'] = join(directory, 'none');
    try {
      await using byService = await connect('postgres:///postgres?service=lab');
      assert.deepEqual(await byService.query('SELECT current_user AS who'), [{ who: 'careful' }]);
      await assert.rejects(connect('postgres://?service=missing'), failure('usage-invalid', /\[missing\]/));
    } finally {
      delete process.env['PGSYSCONFDIR'];
      delete process.env['PGSERVICEFILE'];
    }
  });

  void it('connect() refuses what is no URL, and says what it is', async () => {
    await using cluster = await createCluster({ start: false });
    await assert.rejects(
      connect(cluster.dataDir),
      failure('usage-invalid', /data directory.*postgres:\/\/USER@/s),
    );
    await assert.rejects(connect('./somewhere'), failure('usage-invalid', /a path was given/));
    await assert.rejects(connect('host=db1 user=x'), failure('usage-invalid', /begins with postgres/));
    await assert.rejects(connect('postgres://a,b/postgres'), failure('usage-invalid', /each server/));
    await assert.rejects(connect('postgres://h/db?sslmod=require'), failure('usage-invalid', /"sslmod"/));
    await assert.rejects(connect('postgres://h:99999/db'), failure('usage-invalid', /from 1 to 65535/));
    await assert.rejects(connect('postgres://u:100%@h/db'), failure('usage-invalid', /%25/, '100%'));
    await assert.rejects(connect('postgres://u@h/db?sslmode=maybe'), failure('usage-invalid', /verify-full/));
  });

  void it('query() ends when the server, the limit or the caller ends it', async () => {
    await using cluster = await createCluster();
    await using slow = await connect(cluster.url, { statementTimeoutMs: 100 });
    await assert.rejects(slow.query('SELECT pg_sleep(30)'), failure('server-error', /statement timeout/));
    assert.deepEqual(await slow.query('SELECT 1 AS one'), [{ one: 1 }]);

    await using cancelled = await connect(cluster.url, { signal: AbortSignal.timeout(100) });
    await assert.rejects(cancelled.query('SELECT pg_sleep(30)'), failure('cancelled', /cancelled/));

    await using lost = await connect(cluster.url);
    const waiting = lost.query('SELECT pg_sleep(30)');
    const broken = assert.rejects(waiting, failure('connection-lost', /terminating|broke/));
    for (let killed: unknown[] = []; killed.length === 0;) {
      killed = await cluster.sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE query LIKE '%pg_sleep(30)' AND state = 'active' AND pid <> pg_backend_pid()`);
    }
    await broken;
  });
});

void describe('inspectServer()', () => {
  void it('inspectServer() of a standby tells timeline and lag', async () => {
    await using primary = await createCluster({ segmentSizeMb: 1 });
    await using standby = await createCluster({ segmentSizeMb: 1, start: false });
    await rm(standby.dataDir, { recursive: true });
    await primary.stop();
    await cp(primary.dataDir, standby.dataDir, { recursive: true });
    await giveToServer(standby.scratch);
    await chmod(standby.dataDir, 0o700);
    await primary.start();
    await writeFile(join(standby.dataDir, 'standby.signal'), '');
    await standby.configure({ primary_conninfo: `host=${primary.socketDir} user=postgres` });
    await standby.start();
    await primary.sql('SELECT txid_current()');

    await using connection = await connect(standby.url);
    const source = await primary.sql<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
    const wanted = parseLsn(source[0]?.lsn ?? '');
    let facts = await inspectServer(connection);
    while (facts.position < wanted || (facts.replay?.received ?? 0n) < wanted) {
      await sleep(10);
      facts = await inspectServer(connection);
    }
    assert.equal(facts.inRecovery, true);
    assert.equal(facts.timeline, 1);
    assert.equal(facts.replay?.replayed, facts.position);
    assert.equal(facts.replay?.lagBytes, (facts.replay?.received ?? 0n) - facts.position);
    assert.ok((facts.replay?.lastCommitAgeSeconds ?? -1) >= 0);

    await standby.sql('SELECT pg_wal_replay_pause()');
    await primary.sql(`SELECT pg_logical_emit_message(false, 'x', repeat('x', 300000))`);
    let lag = 0n;
    while (lag < 300_000n) lag = (await inspectServer(connection)).replay?.lagBytes ?? 0n;
    await standby.sql('SELECT pg_wal_replay_resume(), pg_promote()');
    const after = await inspectServer(connection);
    assert.deepEqual([after.inRecovery, after.timeline, after.replay], [false, 2, undefined]);
    assert.throws(
      () => {
        assertSameServer(pinIdentity(facts), after);
      },
      failure('cluster-mismatch', /timeline 2 instead of 1/),
    );
  });

  void it('assertCanBaseBackup() refuses what PostgreSQL would leave out or not allow', async () => {
    await using old = await createCluster({ major: 15 });
    const client = await old.connect();
    await client.query('SET allow_in_place_tablespaces = on');
    await client.query(`CREATE TABLESPACE inside LOCATION ''`);
    await client.end();
    await using connection = await connect(old.url);
    const facts = await inspectServer(connection);
    assert.equal(facts.inPlaceTablespaces.length, 1);
    assert.throws(
      () => {
        assertCanBaseBackup(facts, 'postgres');
      },
      failure('server-setting', /in-place tablespaces/),
    );
    assertCanBaseBackup({ ...facts, majorVersion: 16 }, 'postgres');

    await using closed = await createCluster({ settings: { wal_level: 'minimal', max_wal_senders: '0' } });
    await using other = await connect(closed.url);
    const refused = await inspectServer(other);
    assert.throws(
      () => {
        assertCanBaseBackup(refused, 'postgres');
      },
      failure('server-setting', /wal_level = 'replica'/),
    );
  });
});

void describe('assertSameServer()', () => {
  void it('assertSameServer() notices another cluster and a promotion', async () => {
    await using cluster = await createCluster();
    await using connection = await connect(cluster.url);
    const pinned = pinIdentity(await inspectServer(connection));
    assertSameServer(pinned, await inspectServer(connection));
    assertSameServer(pinned, { systemIdentifier: pinned.systemIdentifier });
    await using other = await createCluster();
    await using elsewhere = await connect(other.url);
    const facts = await inspectServer(elsewhere);
    assert.throws(
      () => {
        assertSameServer(pinned, facts);
      },
      failure('cluster-mismatch', new RegExp(facts.systemIdentifier)),
    );
    assert.throws(
      () => {
        assertSameServer(pinned, { ...pinned, timeline: (pinned.timeline + 1) as typeof pinned.timeline });
      },
      failure('cluster-mismatch', /timeline 2 instead of 1/),
    );
  });
});
