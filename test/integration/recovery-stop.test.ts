import assert from 'node:assert/strict';
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Lsn, formatLsn, lsnOf, parseLsn } from '../../src/postgres/lsn.ts';
import {
  type RecoveryStop,
  RecoveryStopFinder,
  type RecoveryTarget,
  kindsForTarget,
} from '../../src/postgres/recovery-stop.ts';
import { formatMicroseconds } from '../../src/postgres/timestamp.ts';
import { NEWEST_MAJOR, OLDEST_MAJOR } from '../../src/postgres/version.ts';
import { WalDecoder } from '../../src/postgres/wal-decoder.ts';
import type { WalRecord, WalTransactionEnd } from '../../src/postgres/wal-record.ts';
import { parseWalSegmentName, segmentStart } from '../../src/postgres/wal-segment.ts';
import { type TestCluster, createCluster, giveToServer, scratchDirectory } from '../harness/cluster.ts';

const MIB = 2 ** 20;

interface Backup {
  archive: string;
  data: string;
  redo: Lsn;
  stop: Lsn;
}

/** A base backup by the low-level interface, then a history with every kind of transaction end, all archived. */
async function makeHistory(cluster: TestCluster, archive: string): Promise<Backup> {
  await cluster.sql('create table t (i int)');
  const session = await cluster.connect();
  await session.query(`select pg_backup_start('test', true)`);
  const data = join(cluster.scratch, 'backup');
  await cp(cluster.dataDir, data, {
    recursive: true,
    filter: (path) => !/pg_wal\/.|postmaster\.(pid|opts)$/.test(path),
  });
  await cluster.sql('insert into t values (0)');
  const { rows } = await session.query<{ lsn: string; labelfile: string }>(
    'select lsn::text, labelfile from pg_backup_stop(false)',
  );
  await session.end();
  const { lsn, labelfile } = rows[0] ?? { lsn: '', labelfile: '' };
  await writeFile(join(data, 'backup_label'), labelfile);
  for (let i = 1; i <= 20; i++) {
    await cluster.sql(`insert into t select ${i} from generate_series(1, 300)`);
    if (i % 5 === 0) await cluster.sql('begin; insert into t values (-1); rollback');
    if (i === 10) {
      await cluster.sql(`begin; insert into t values (-2); prepare transaction 'a'`);
      await cluster.sql(`select pg_create_restore_point('here')`);
      await cluster.sql(`commit prepared 'a'`);
      await cluster.sql('select pg_switch_wal()');
      await cluster.sql(`select pg_create_restore_point('here')`);
    }
  }
  const [current] = await cluster.sql<{ name: string }>(
    'select pg_walfile_name(pg_current_wal_insert_lsn()) as name',
  );
  await cluster.sql('select pg_switch_wal()');
  const deadline = Date.now() + 30_000;
  while (!(await readdir(archive)).includes(current?.name ?? '')) {
    assert.ok(Date.now() < deadline, 'the last segment was not archived in time');
    await sleep(50);
  }
  const redo = /^START WAL LOCATION: (\S+)/.exec(labelfile)?.[1] ?? '';
  return { archive, data, redo: parseLsn(redo), stop: parseLsn(lsn) };
}

async function* archivedRecords(
  backup: Backup,
  target: RecoveryTarget,
  ended: { at?: Lsn },
): AsyncGenerator<WalRecord> {
  const decoder = new WalDecoder({ start: backup.redo, segmentSize: MIB, kinds: kindsForTarget(target) });
  for (const name of (await readdir(backup.archive)).sort()) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    const start = segmentStart(parseWalSegmentName(name, MIB).segmentNumber, MIB);
    if (start + BigInt(MIB) <= backup.redo) continue;
    yield* decoder.push(await readFile(join(backup.archive, name)));
  }
  ended.at = decoder.end.lsn;
}

async function predict(backup: Backup, target: RecoveryTarget): Promise<RecoveryStop> {
  const finder = new RecoveryStopFinder({ target, consistentFrom: backup.stop });
  const ended: { at?: Lsn } = {};
  for await (const record of archivedRecords(backup, target, ended)) finder.feed(record);
  return finder.finish(ended.at ?? backup.redo);
}

function settingsFor(target: RecoveryTarget): Record<string, string> {
  switch (target.kind) {
    case 'time':
      return {
        // The server knows no abbreviations of time zones here, not even Z.
        recovery_target_time: formatMicroseconds(target.time).replace('Z', '+00'),
        recovery_target_inclusive: String(target.inclusive),
      };
    case 'lsn':
      return {
        recovery_target_lsn: formatLsn(target.lsn),
        recovery_target_inclusive: String(target.inclusive),
      };
    case 'xid':
      return { recovery_target_xid: String(target.xid), recovery_target_inclusive: String(target.inclusive) };
    case 'name':
      return { recovery_target_name: target.name };
    case 'immediate':
      return { recovery_target: 'immediate' };
    case 'latest':
      return {};
  }
}

/** Recovers for real and says where the server came to stand. */
async function recover(
  major: number,
  backup: Backup,
  target: RecoveryTarget,
): Promise<{ lsn: string; time: string | null }> {
  await using cluster = await createCluster({ major, segmentSizeMb: 1, start: false });
  await rm(cluster.dataDir, { recursive: true });
  await cp(backup.data, cluster.dataDir, { recursive: true });
  await writeFile(join(cluster.dataDir, 'standby.signal'), '');
  await cluster.configure({
    archive_mode: 'off',
    hot_standby: 'on',
    restore_command: `cp ${backup.archive}/%f %p`,
    recovery_target_action: 'pause',
    ...settingsFor(target),
  });
  await giveToServer(cluster.scratch);
  await cluster.start();
  const deadline = Date.now() + 30_000;
  for (let last = ''; ; await sleep(100)) {
    assert.ok(Date.now() < deadline, `recovery to ${target.kind} did not come to a stand`);
    const [row] = await cluster.sql<{ lsn: string; state: string; time: string | null }>(
      `select pg_last_wal_replay_lsn()::text as lsn, pg_get_wal_replay_pause_state() as state,
         (extract(epoch from pg_last_xact_replay_timestamp()) * 1000000)::bigint::text as time`,
    );
    if (row === undefined) continue;
    if (target.kind === 'latest' ? row.lsn === last : row.state === 'paused')
      return { lsn: row.lsn, time: row.time };
    last = row.lsn;
  }
}

for (const major of [OLDEST_MAJOR, NEWEST_MAJOR]) {
  test(`RecoveryStopFinder says where PostgreSQL ${major} really stops, for every kind of target`, async () => {
    const archive = join(await scratchDirectory(), 'archive');
    await mkdir(archive);
    await giveToServer(archive);
    await using cluster = await createCluster({
      major,
      segmentSizeMb: 1,
      archiveCommand: `cp %p ${archive}/%f`,
      settings: { max_prepared_transactions: '5' },
    });
    const backup = await makeHistory(cluster, archive);
    await cluster.stop();

    const all: WalRecord[] = [];
    for await (const record of archivedRecords(backup, { kind: 'immediate' }, {})) all.push(record);
    const ends = all.filter(
      (r): r is WalTransactionEnd => r.rmgr === 1 && 'time' in r && r.lsn > backup.stop,
    );
    const of = (kind: string): WalTransactionEnd => {
      const found = ends.find((record) => record.kind === kind);
      assert.ok(found !== undefined, `the history has no ${kind}`);
      return found;
    };
    const middle = ends[8] as WalTransactionEnd;
    const crossing = all.find((r) => r.lsn > middle.endLsn && r.lsn >> 13n !== r.endLsn >> 13n);
    assert.ok(crossing !== undefined);
    const targets: RecoveryTarget[] = [
      { kind: 'time', time: middle.time, inclusive: true },
      { kind: 'time', time: of('abort').time, inclusive: false },
      { kind: 'time', time: middle.time + 1n, inclusive: true },
      { kind: 'lsn', lsn: middle.lsn, inclusive: true },
      { kind: 'lsn', lsn: crossing.lsn, inclusive: true },
      { kind: 'lsn', lsn: lsnOf(crossing.lsn + 8n), inclusive: false },
      { kind: 'xid', xid: of('commit-prepared').xid, inclusive: true },
      { kind: 'xid', xid: of('abort').xid, inclusive: false },
      { kind: 'name', name: 'here' },
      { kind: 'immediate' },
      { kind: 'latest' },
    ];
    for (const target of targets) {
      const expected = await predict(backup, target);
      const reached = await recover(major, backup, target);
      const words = `${target.kind} ${JSON.stringify(settingsFor(target))}`;
      assert.equal(reached.lsn, formatLsn(expected.stopLsn), words);
      assert.equal(reached.time ?? undefined, expected.lastTransactionTime?.toString(), words);
      assert.equal(expected.beforeConsistency, false);
    }
  });
}
