import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { readControlData } from '../../src/postgres/control-data.ts';
import { type Lsn, formatLsn, parseLsn } from '../../src/postgres/lsn.ts';
import { formatMicroseconds } from '../../src/postgres/timestamp.ts';
import { parseTimelineHistory, timelineOf } from '../../src/postgres/timeline.ts';
import { NEWEST_MAJOR, OLDEST_MAJOR } from '../../src/postgres/version.ts';
import { type WalEnd, WalDecoder } from '../../src/postgres/wal-decoder.ts';
import { checkWalSegment } from '../../src/postgres/wal-page.ts';
import type { WalRecord } from '../../src/postgres/wal-record.ts';
import { classifyWalFile, parseWalSegmentName, segmentStart } from '../../src/postgres/wal-segment.ts';
import { summarizeWalSegment } from '../../src/postgres/wal-summary.ts';
import { type TestCluster, availableMajors, createCluster, giveToServer } from '../harness/cluster.ts';

const MIB = 2 ** 20;
const run = promisify(execFile);
const RMGRS = [
  'XLOG Transaction Storage CLOG Database Tablespace MultiXact RelMap Standby Heap2 Heap Btree Hash Gin Gist',
  'Sequence SPGist BRIN CommitTs ReplicationOrigin Generic LogicalMessage',
]
  .join(' ')
  .split(' ');

interface Decoded {
  records: WalRecord[];
  end: WalEnd;
  start: Lsn;
  names: string[];
}

/** Decodes every segment in pg_wal, from the oldest on. */
async function decodeAll(cluster: TestCluster, segmentSize: number): Promise<Decoded> {
  const directory = join(cluster.dataDir, 'pg_wal');
  const names = (await readdir(directory)).filter((name) => classifyWalFile(name)?.kind === 'segment').sort();
  const start = segmentStart(parseWalSegmentName(names[0] ?? '', segmentSize).segmentNumber, segmentSize);
  const decoder = new WalDecoder({ start, segmentSize });
  const records: WalRecord[] = [];
  for (const name of names) records.push(...decoder.push(await readFile(join(directory, name))));
  return { records, end: decoder.end, start, names };
}

function describe(record: WalRecord): string {
  const time = 'time' in record && record.rmgr === 1 ? ` ${formatMicroseconds(record.time)}` : '';
  return `${formatLsn(record.lsn)} xid ${record.xid} rmgr ${record.rmgr} bytes ${record.lengthBytes}${time}`;
}

/** The same text out of a line of pg_waldump. It shows xid 0 for the end of a prepared transaction, and its own in the text. */
function describeDumped(line: string): string {
  const found =
    /^rmgr: (\S+)\s+len \(rec\/tot\):\s*\d+\/\s*(\d+), tx:\s*(\d+), lsn: (\S+), prev \S+, desc: (.*)$/.exec(
      line,
    );
  assert.ok(found !== null, line);
  const [, rmgr = '', bytes, tx, lsn = '', text = ''] = found;
  const ended = /^(?:COMMIT|ABORT)(?:_PREPARED (\d+):)? (\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d\.\d{6}) UTC/.exec(
    text,
  );
  const time = rmgr === 'Transaction' && ended !== null ? ` ${ended[2]}T${ended[3]}Z` : '';
  const xid = ended?.[1] ?? tx;
  return `${formatLsn(parseLsn(lsn))} xid ${xid} rmgr ${RMGRS.indexOf(rmgr)} bytes ${bytes}${time}`;
}

test('WalDecoder agrees with pg_waldump on every record of a busy server', async () => {
  await using cluster = await createCluster({
    major: 15,
    segmentSizeMb: 1,
    settings: { wal_keep_size: '1GB', max_prepared_transactions: '5', wal_log_hints: 'on' },
  });
  const bin = cluster.binaries.directory;
  await run(join(bin, 'pgbench'), ['-i', '-q', '-s', '1', '-d', cluster.url]);
  await cluster.sql('create table doomed (i int)');
  await cluster.sql(`begin; drop table doomed; prepare transaction 'a'`);
  await cluster.sql(`commit prepared 'a'`);
  await cluster.sql(`begin; create table never (i int); prepare transaction 'b'`);
  await cluster.sql(`rollback prepared 'b'`);
  await run(join(bin, 'pgbench'), ['-t', '200', '-c', '4', '-d', cluster.url]);
  await cluster.sql('select pg_switch_wal()');
  await cluster.sql(`select pg_logical_emit_message(false, 'x', repeat('y', 3000000))`);
  await run(join(bin, 'pgbench'), ['-t', '50', '-c', '4', '-d', cluster.url]);
  await cluster.stop();

  const { records, end, start, names } = await decodeAll(cluster, MIB);
  // It ends with status 1 where the WAL ends, as there is no end given.
  const dump = await run(
    join(bin, 'pg_waldump'),
    ['-p', join(cluster.dataDir, 'pg_wal'), '-s', formatLsn(start), names[0] ?? '', names.at(-1) ?? ''],
    {
      maxBuffer: 2 ** 30,
      env: { TZ: 'UTC' },
    },
  ).catch((error: unknown) => error as { stdout: string });
  const dumped = dump.stdout.trim().split('\n').map(describeDumped);
  assert.ok(dumped.length > 5000, `pg_waldump printed only ${dumped.length} records`);
  assert.deepEqual(records.map(describe), dumped);
  const control = readControlData(await readFile(join(cluster.dataDir, 'global/pg_control')));
  assert.equal(records.at(-1)?.lsn, control.checkpoint);
  assert.equal(end.lsn, records.at(-1)?.endLsn);
});

test('WalDecoder reads the WAL of every supported major, and the server agrees', async () => {
  const majors = await availableMajors();
  assert.deepEqual(majors, [15, 16, 17, 18]);
  for (const major of majors) {
    await using cluster = await createCluster({
      major,
      segmentSizeMb: 1,
      settings: { max_prepared_transactions: '5', track_commit_timestamp: 'on', wal_keep_size: '1GB' },
    });
    await cluster.sql('create table t (i int); create index on t (i)');
    await cluster.sql(
      'do $$begin for i in 1..500 loop begin insert into t values (i); exception when others then end; end loop; end$$',
    );
    await cluster.sql(`create table big as select repeat(md5(i::text), 100) from generate_series(1, 2000) i`);
    await cluster.sql(
      `begin; insert into t values (7); savepoint s; drop table big; prepare transaction 'a'`,
    );
    const [prepared] = await cluster.sql<{ xid: string }>(
      'select transaction::text as xid from pg_prepared_xacts',
    );
    await cluster.sql(`commit prepared 'a'`);
    const [point] = await cluster.sql<{ lsn: string }>(`select pg_create_restore_point('here')::text as lsn`);
    await cluster.sql('select pg_switch_wal()');
    await cluster.sql('insert into t values (8)');
    const [last] = await cluster.sql<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    const system = await cluster.sql<{ xid: string; micros: string }>(
      `select transaction::text as xid, (extract(epoch from pg_xact_commit_timestamp(transaction)) * 1000000)::bigint::text as micros
       from (select i::text::xid as transaction from generate_series(${prepared?.xid}, ${prepared?.xid}) i) x`,
    );
    const { records, end, names } = await decodeAll(cluster, MIB);

    assert.ok(end.lsn >= parseLsn(last?.lsn ?? ''), `PostgreSQL ${major}: ${end.detail}`);
    const committed = records.find((record) => record.kind === 'commit-prepared');
    assert.ok(committed?.kind === 'commit-prepared');
    assert.deepEqual({ xid: String(committed.xid), micros: committed.time.toString() }, system[0]);
    const restorePoint = records.find((record) => record.kind === 'restore-point');
    assert.partialDeepStrictEqual(restorePoint, { name: 'here', endLsn: parseLsn(point?.lsn ?? '') });

    const directory = join(cluster.dataDir, 'pg_wal');
    const [identity] = await cluster.sql<{ id: string }>(
      'select system_identifier::text as id from pg_control_system()',
    );
    let commits = 0;
    for (const name of names) {
      // Behind the end of WAL lie recycled files under their future names.
      const start = segmentStart(parseWalSegmentName(name, MIB).segmentNumber, MIB);
      if (start >= end.lsn) break;
      const bytes = await readFile(join(directory, name));
      const header = checkWalSegment(bytes, {
        name,
        sizeBytes: bytes.length,
        majorVersion: cluster.major as 15,
      });
      assert.equal(header.systemIdentifier, identity?.id);
      const summary = summarizeWalSegment(bytes, {
        start,
        segmentSize: MIB,
        partial: start + BigInt(MIB) > end.lsn,
      });
      assert.equal(summary.damagedAt, undefined, `PostgreSQL ${major}, ${name}: ${summary.damage}`);
      commits += summary.commits;
    }
    assert.ok(commits > 5);
  }
});

test('WalDecoder follows a promotion to the new timeline', async () => {
  for (const major of [OLDEST_MAJOR, NEWEST_MAJOR]) {
    await using cluster = await createCluster({
      major,
      segmentSizeMb: 1,
      settings: { wal_keep_size: '1GB' },
    });
    await cluster.sql('create table t (i int)');
    await cluster.stop();
    await writeFile(join(cluster.dataDir, 'standby.signal'), '');
    await giveToServer(cluster.dataDir);
    await cluster.start();
    await cluster.sql('select pg_promote()');
    await cluster.sql('insert into t values (1)');
    const [current] = await cluster.sql<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');

    const directory = join(cluster.dataDir, 'pg_wal');
    const newest = new Map<string, string>();
    for (const name of (await readdir(directory)).sort()) {
      if (classifyWalFile(name)?.kind === 'segment') newest.set(name.slice(8), name);
    }
    const names = [...newest.values()].sort((a, b) => a.slice(8).localeCompare(b.slice(8)));
    const start = segmentStart(parseWalSegmentName(names[0] ?? '', MIB).segmentNumber, MIB);
    const decoder = new WalDecoder({ start, segmentSize: MIB, timeline: timelineOf(2) });
    const records: WalRecord[] = [];
    for (const name of names) records.push(...decoder.push(await readFile(join(directory, name))));
    assert.equal(formatLsn(decoder.end.lsn), current?.lsn);
    const history = parseTimelineHistory(
      timelineOf(2),
      await readFile(join(directory, '00000002.history'), 'utf8'),
    );
    const ended = records.find((record) => record.kind === 'end-of-recovery');
    assert.partialDeepStrictEqual(ended, {
      timeline: 2,
      previousTimeline: 1,
      previousEnd: history.entries[0]?.end,
    });
    assert.ok(records.some((record) => record.kind === 'commit' && record.lsn > (ended?.lsn ?? 0n)));
  }
});

test('WalDecoder reads on where a crash cut a record off', async () => {
  for (const major of [OLDEST_MAJOR, NEWEST_MAJOR]) {
    await using cluster = await createCluster({
      major,
      segmentSizeMb: 1,
      settings: { wal_keep_size: '2GB' },
    });
    const session = await cluster.connect();
    // Not flushed at its end, so a crash right behind it cuts it off as well as one in the midst of it.
    const written = session.query(`select pg_logical_emit_message(false, 'x', repeat('y', 60000000))`);
    await Promise.allSettled([written, sleep(100).then(() => cluster.kill())]);
    await cluster.start();
    await cluster.sql('create table t (i int)');
    const [current] = await cluster.sql<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn');
    const { records, end } = await decodeAll(cluster, MIB);
    assert.equal(formatLsn(end.lsn), current?.lsn);
    // XLOG_OVERWRITE_CONTRECORD
    assert.equal(records.filter((record) => record.rmgr === 0 && (record.info & 0xf0) === 0xd0).length, 1);
  }
});

test('readControlData() agrees with the server in every supported major', async () => {
  for (const major of await availableMajors()) {
    await using cluster = await createCluster({
      major,
      segmentSizeMb: 1,
      settings: { max_connections: '33', wal_level: 'logical' },
    });
    const [server] = await cluster.sql(
      `select system_identifier::text as "systemIdentifier", catalog_version_no as "catalogVersion",
         pg_control_version as "controlVersion", checkpoint_lsn::text as checkpoint, redo_lsn::text as redo,
         timeline_id as timeline, bytes_per_wal_segment as "walSegmentSize", database_block_size as "blockSize",
         data_page_checksum_version as "dataChecksumVersion", checkpoint_time as "checkpointTime"
       from pg_control_system(), pg_control_checkpoint(), pg_control_init()`,
    );
    const data = readControlData(await readFile(join(cluster.dataDir, 'global/pg_control')));
    assert.equal(data.majorVersion, major);
    assert.equal(data.state, 'in production');
    assert.equal(data.settings.maxConnections, 33);
    assert.equal(data.settings.walLevel, 'logical');
    const shown = { ...data, checkpoint: formatLsn(data.checkpoint), redo: formatLsn(data.redo) };
    assert.partialDeepStrictEqual(shown, server);
  }
});
