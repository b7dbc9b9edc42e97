import assert from 'node:assert/strict';
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError } from '../../src/errors.ts';
import {
  BackupManifestReader,
  type ManifestEnd,
  type ManifestFile,
  manifestCrc32c,
} from '../../src/postgres/backup-manifest.ts';
import type {
  BackupEntry,
  BackupStart,
  BaseBackupEnd,
  BaseBackupSink,
} from '../../src/postgres/base-backup-reader.ts';
import { formatLsn } from '../../src/postgres/lsn.ts';
import {
  type BaseBackupOptions,
  type ReplicationConnection,
  connectReplication,
} from '../../src/postgres/replication.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { crc32c } from '../../src/stream/crc32c.ts';
import {
  type TestCluster,
  availableMajors,
  createCluster,
  giveToServer,
  scratchDirectory,
} from '../harness/cluster.ts';
import { freePort } from '../harness/free-port.ts';

interface SeenFile {
  sizeBytes: number;
  crc: string;
}

interface Seen {
  start: BackupStart;
  end: BaseBackupEnd;
  files: Map<string, SeenFile>;
  others: Map<string, BackupEntry>;
  small: Map<string, string>;
  manifest: Map<string, ManifestFile>;
  manifestEnd: ManifestEnd;
  progress: bigint;
}

/** Takes a whole backup, keeping sizes and checksums. `onData` may slow it down or break something. */
async function takeBackup(
  connection: ReplicationConnection,
  onData?: (chunk: Buffer, path: string) => void | Promise<void>,
  options: Partial<BaseBackupOptions> = {},
): Promise<Seen> {
  let start: BackupStart | undefined;
  let current: { path: string; sizeBytes: number; expected: number; crc: number; text: string } | undefined;
  const files = new Map<string, SeenFile>();
  const others = new Map<string, BackupEntry>();
  const small = new Map<string, string>();
  const reader = new BackupManifestReader();
  const manifest = new Map<string, ManifestFile>();
  let progress = 0n;
  const sink: BaseBackupSink = {
    begin(given) {
      assert.equal(start, undefined);
      start = given;
    },
    entry(entry) {
      assert.ok(start !== undefined && current === undefined);
      if (entry.kind === 'file') {
        current = { path: entry.path, sizeBytes: 0, expected: entry.sizeBytes, crc: 0, text: '' };
      } else {
        others.set(entry.path, entry);
      }
    },
    data(chunk) {
      assert.ok(current !== undefined && chunk.length > 0);
      current.crc = crc32c(chunk, current.crc);
      current.sizeBytes += chunk.length;
      if (current.expected < 4096) current.text += chunk.toString('latin1');
      return onData?.(chunk, current.path);
    },
    entryEnd() {
      assert.ok(current !== undefined);
      assert.equal(current.sizeBytes, current.expected, current.path);
      assert.ok(!files.has(current.path), current.path);
      files.set(current.path, { sizeBytes: current.sizeBytes, crc: manifestCrc32c(current.crc) });
      small.set(current.path, current.text);
      current = undefined;
    },
    manifest(chunk) {
      for (const file of reader.push(chunk)) manifest.set(file.path, file);
    },
    progress(done) {
      assert.ok(done >= progress);
      progress = done;
    },
  };
  const end = await connection.baseBackup({ label: `it's "a" test`, ...options }, sink);
  assert.ok(start !== undefined);
  return { start, end, files, others, small, manifest, manifestEnd: reader.finish(), progress };
}

/** Everything the manifest lists arrived as listed, and nothing else did. */
function assertMatchesManifest({ files, manifest }: Seen): void {
  const wanted = new Map(
    [...manifest.values()].map(({ path, sizeBytes, checksum }) => [path, { sizeBytes, crc: checksum?.hex }]),
  );
  assert.deepEqual(files, wanted);
}

function failure(code: string, pattern: RegExp) {
  return (error: unknown): boolean => {
    assert.ok(error instanceof HoldfastError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    return true;
  };
}

/** Makes a standby of a stopped cluster's copy out of it, and promotes it. */
async function promote(cluster: TestCluster): Promise<void> {
  await cluster.stop();
  await writeFile(join(cluster.dataDir, 'standby.signal'), '');
  await cluster.start();
  await cluster.sql('SELECT pg_promote()');
}

async function replicationPid(cluster: TestCluster): Promise<number> {
  for (;;) {
    const [row] = await cluster.sql<{ pid: number }>(
      `SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender' AND query LIKE 'BASE_BACKUP%'`,
    );
    if (row !== undefined) return row.pid;
  }
}

const majors = await availableMajors();

for (const major of majors) {
  void describe(`connectReplication() to PostgreSQL ${major}`, () => {
    void it('identifySystem() and timelineHistory() follow a promotion', async () => {
      await using cluster = await createCluster({ major, segmentSizeMb: 1 });
      await using connection = await connectReplication(cluster.url);
      const [truth] = await cluster.sql('SELECT system_identifier::text AS id FROM pg_control_system()');
      const before = await connection.identifySystem();
      assert.equal(before.systemIdentifier, truth?.['id']);
      assert.equal(before.timeline, 1);
      assert.equal(await connection.show('wal_segment_size'), '1MB');
      await assert.rejects(
        connection.timelineHistory(timelineOf(2)),
        failure('server-error', /00000002\.history/),
      );
      assert.equal((await connection.identifySystem()).timeline, 1, 'the session survives a complaint');

      await promote(cluster);
      await using after = await connectReplication(cluster.url);
      assert.equal((await after.identifySystem()).timeline, 2);
      const { fileName, bytes, history } = await after.timelineHistory(timelineOf(2));
      assert.equal(fileName, '00000002.history');
      assert.deepEqual(bytes, await readFile(join(cluster.dataDir, 'pg_wal', fileName)));
      assert.deepEqual(
        history.entries.map((entry) => entry.timeline),
        [1],
      );
      await assert.rejects(connection.identifySystem(), failure('connection-lost', /./));
    });

    void it('baseBackup() delivers what the manifest lists, byte for byte', async () => {
      await using cluster = await createCluster({ major, segmentSizeMb: 1 });
      await cluster.sql(`CREATE TABLE filled AS SELECT n, repeat(md5(n::text), 20) AS t FROM generate_series(1, 20000) n;
        CREATE UNLOGGED TABLE fleeting AS SELECT 1 AS n`);
      const odd = Buffer.concat([Buffer.from(`${cluster.dataDir}/`), Buffer.from('b\xfftes', 'latin1')]);
      await writeFile(odd, 'not utf-8', { mode: 0o644 });
      await using connection = await connectReplication(cluster.url);
      const { systemIdentifier, position } = await connection.identifySystem();
      const seen = await takeBackup(connection);
      assertMatchesManifest(seen);
      assert.ok(seen.start.startLsn > 0n && seen.start.startLsn >= (position >> 20n) << 20n);
      assert.ok(seen.end.stopLsn > seen.start.startLsn);
      assert.equal(seen.end.stopTimeline, 1);
      assert.ok(seen.progress > 10_000_000n);
      assert.ok((seen.start.sizeBytes ?? 0n) > 10_000_000n);
      assert.deepEqual(seen.start.tablespaces, []);
      assert.equal(seen.small.get('b\xfftes'), 'not utf-8');
      const label = seen.small.get('backup_label') ?? '';
      assert.match(label, /^LABEL: it's "a" test$/m);
      assert.ok(label.includes(`START WAL LOCATION: ${formatLsn(seen.start.startLsn)} `));
      assert.equal([...seen.files.keys()].at(-1), 'global/pg_control');
      assert.equal(seen.others.get('pg_wal/archive_status')?.kind, 'directory');
      assert.equal(seen.others.get('pg_replslot')?.kind, 'directory');
      assert.deepEqual(seen.manifestEnd.walRanges, [
        { timeline: 1, start: seen.start.startLsn, end: seen.end.stopLsn },
      ]);
      assert.equal(seen.manifestEnd.systemIdentifier, major >= 17 ? systemIdentifier : undefined);
      assert.equal((await connection.identifySystem()).timeline, 1, 'the session goes on after a backup');
      assertMatchesManifest(await takeBackup(connection));
    });

    void it('baseBackup() names the files of tablespaces, with odd names and in place', async () => {
      await using cluster = await createCluster({ major });
      const location = join(await scratchDirectory(), 'odd "double"  \\ back ünï');
      await mkdir(location);
      await giveToServer(location);
      await cluster.sql(`CREATE TABLESPACE outside LOCATION '${location}'`);
      // PostgreSQL 15 leaves tablespaces in place out of a base backup: `assertCanBaseBackup` refuses those.
      const hasInside = major >= 16;
      if (hasInside) {
        const client = await cluster.connect();
        await client.query('SET allow_in_place_tablespaces = on');
        await client.query(`CREATE TABLESPACE inside LOCATION ''`);
        await client.end();
        await cluster.sql('CREATE TABLE b TABLESPACE inside AS SELECT generate_series(1, 10000) AS n');
      }
      await cluster.sql('CREATE TABLE a TABLESPACE outside AS SELECT generate_series(1, 10000) AS n');
      const places = await cluster.sql<{ path: string }>(
        `SELECT pg_relation_filepath(oid) AS path FROM pg_class WHERE relname IN ('a', 'b')`,
      );
      assert.equal(places.length, hasInside ? 2 : 1);
      const oids = await cluster.sql<{ name: string; oid: number }>(
        `SELECT spcname AS name, oid::int FROM pg_tablespace WHERE spcname IN ('outside', 'inside')`,
      );
      const oidOf = (name: string): number => oids.find((one) => one.name === name)?.oid ?? 0;

      await using connection = await connectReplication(cluster.url);
      const seen = await takeBackup(connection);
      assertMatchesManifest(seen);
      for (const { path } of places) assert.ok(seen.files.has(path), path);
      const outside = oidOf('outside');
      const found = new Map(seen.start.tablespaces.map((space) => [space.oid, space.location]));
      assert.equal(found.get(outside), Buffer.from(location, 'utf8').toString('latin1'));
      if (hasInside) assert.equal(found.get(oidOf('inside')), `pg_tblspc/${oidOf('inside')}`);
      assert.match(seen.small.get('tablespace_map') ?? '', /odd "double" {2}\\\\ back/);
      assert.ok([...seen.others.keys()].some((path) => path.startsWith(`pg_tblspc/${outside}/PG_${major}_`)));
    });
  });
}

void describe('baseBackup()', () => {
  void it('baseBackup() over TCP is the same', async () => {
    await using cluster = await createCluster({ port: await freePort() });
    const url = `postgres://postgres@127.0.0.1:${cluster.port}/postgres`;
    await using connection = await connectReplication(url);
    assert.equal(connection.server, `127.0.0.1:${cluster.port}`);
    assertMatchesManifest(await takeBackup(connection));
  });

  void it('baseBackup() waits for a slow consumer in bounded memory and loses nothing', async () => {
    await using cluster = await createCluster();
    await cluster.sql(
      `CREATE TABLE filled AS SELECT n, repeat(md5(n::text), 30) AS t FROM generate_series(1, 200000) n`,
    );
    await using connection = await connectReplication(cluster.url);
    let calls = 0;
    let inside = false;
    const before = process.memoryUsage();
    let highest = 0;
    const seen = await takeBackup(connection, async (chunk) => {
      assert.ok(!inside, 'nothing comes while the consumer is busy');
      inside = true;
      const crc = crc32c(chunk);
      calls += 1;
      await (calls % 200 === 0 ? sleep(5) : new Promise((resolve) => setImmediate(resolve)));
      assert.equal(crc32c(chunk), crc, 'the bytes stay while the promise is pending');
      const { external, arrayBuffers } = process.memoryUsage();
      highest = Math.max(highest, external + arrayBuffers - before.external - before.arrayBuffers);
      inside = false;
    });
    assertMatchesManifest(seen);
    assert.ok(seen.progress > 200_000_000n, `${seen.progress} bytes`);
    assert.ok(highest < 32 * 1024 * 1024, `${highest} bytes more than before`);
  });

  void it('baseBackup() ends with connection-lost when the server ends it midway', async () => {
    await using cluster = await createCluster();
    await cluster.sql(
      `CREATE TABLE filled AS SELECT n, repeat(md5(n::text), 30) AS t FROM generate_series(1, 50000) n`,
    );
    for (const how of ['terminate', 'kill'] as const) {
      await using connection = await connectReplication(cluster.url);
      let stopped = false;
      const taken = takeBackup(connection, async () => {
        if (stopped) return;
        stopped = true;
        const pid = await replicationPid(cluster);
        if (how === 'terminate') await cluster.sql(`SELECT pg_terminate_backend(${pid})`);
        else process.kill(pid, 'SIGKILL');
      });
      await assert.rejects(taken, failure('connection-lost', /./));
      await assert.rejects(connection.identifySystem(), failure('connection-lost', /./));
    }
  });

  void it('baseBackup() gives up when cancelled, when its consumer fails and when the server is silent', async () => {
    await using cluster = await createCluster();
    const controller = new AbortController();
    await using cancelled = await connectReplication(cluster.url, { signal: controller.signal });
    await assert.rejects(
      takeBackup(cancelled, () => {
        controller.abort();
      }),
      failure('cancelled', /cancelled/),
    );

    for (const fail of [
      () => {
        throw new RangeError('disk is full');
      },
      async () => await Promise.reject(new RangeError('disk is full')),
    ]) {
      await using connection = await connectReplication(cluster.url);
      await assert.rejects(takeBackup(connection, fail), RangeError);
      await assert.rejects(connection.identifySystem(), failure('connection-lost', /given up/));
    }

    await using silent = await connectReplication(cluster.url, { stallMs: 300 });
    let stopped: number | undefined;
    const taken = takeBackup(silent, async () => {
      if (stopped !== undefined) return;
      stopped = await replicationPid(cluster);
      process.kill(stopped, 'SIGSTOP');
    });
    await assert.rejects(taken, failure('connection-lost', /sent nothing for 300 ms/));
    process.kill(stopped ?? 0, 'SIGKILL');
  });

  void it('baseBackup() tells damaged pages from other failures, after having sent everything', async () => {
    await using cluster = await createCluster();
    await cluster.sql('CREATE TABLE filled AS SELECT generate_series(1, 10000) AS n');
    const [place] = await cluster.sql<{ path: string }>(`SELECT pg_relation_filepath('filled') AS path`);
    await cluster.sql('CHECKPOINT');
    const file = await open(join(cluster.dataDir, place?.path ?? ''), 'r+');
    await file.write(Buffer.from([0xff]), 0, 1, 3 * 8192 + 5000);
    await file.close();
    const notices: string[] = [];
    await using connection = await connectReplication(cluster.url);
    let bytes = 0;
    const taken = takeBackup(
      connection,
      (chunk) => {
        bytes += chunk.length;
      },
      { onNotice: (message) => notices.push(message) },
    );
    await assert.rejects(taken, (error) => {
      failure('server-error', /checksum verification failure/)(error);
      assert.ok(error instanceof HoldfastError);
      assert.equal(error.context['checksumFailures'], true);
      assert.match(String(error.context['stopLsn']), /^0\/[0-9A-F]+$/);
      assert.equal(error.context['stopTimeline'], 1);
      return true;
    });
    assert.ok(bytes > 10_000_000);
    assert.match(notices.join('\n'), /block 3/);
    assertMatchesManifest(await takeBackup(connection, undefined, { verifyChecksums: false }));
  });

  void it('baseBackup() of a standby that is promoted midway fails with the server words', async () => {
    await using cluster = await createCluster();
    await cluster.sql(
      `CREATE TABLE filled AS SELECT n, repeat(md5(n::text), 30) AS t FROM generate_series(1, 50000) n`,
    );
    await cluster.stop();
    await writeFile(join(cluster.dataDir, 'standby.signal'), '');
    await cluster.start();
    await using connection = await connectReplication(cluster.url);
    let promoted = false;
    const taken = takeBackup(connection, async () => {
      if (promoted) return;
      promoted = true;
      await cluster.sql('SELECT pg_promote()');
    });
    await assert.rejects(taken, failure('server-error', /standby was promoted during online backup/));
  });
});
