import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WalWriter, type WrittenRecord } from '../../test/wal-writer.ts';
import { type Lsn, lsnOf } from './lsn.ts';
import {
  type RecoveryStop,
  RecoveryStopFinder,
  type RecoveryTarget,
  kindsForTarget,
} from './recovery-stop.ts';
import { WalDecoder } from './wal-decoder.ts';

/** Commits at seconds 10, 20, 20, 30; an abort at 40; then one prepared commit at 50. Some records between. */
function history() {
  const writer = new WalWriter();
  const r: Record<string, WrittenRecord> = {};
  const at = (second: number): bigint => BigInt(second) * 1_000_000n;
  r['start'] = writer.filler(100);
  r['c10'] = writer.commit(10, at(10));
  r['backupEnd'] = writer.backupEnd(writer.start);
  r['f1'] = writer.filler(9000);
  r['c20'] = writer.commit(20, at(20));
  r['c21'] = writer.commit(21, at(20));
  r['point'] = writer.restorePoint('here', at(25));
  r['point2'] = writer.restorePoint('here', at(26));
  r['c30'] = writer.commit(30, at(30));
  r['a40'] = writer.abort(40, at(40));
  r['f2'] = writer.filler(10);
  r['p50'] = writer.prepared('commit', 50, at(50), { subxacts: 3 });
  r['last'] = writer.filler(10);
  const place = (name: string): WrittenRecord => {
    const found = r[name];
    assert.ok(found !== undefined);
    return found;
  };
  const find = (target: RecoveryTarget, consistentFrom: Lsn = place('backupEnd').endLsn): RecoveryStop => {
    const finder = new RecoveryStopFinder({ target, consistentFrom });
    const decoder = new WalDecoder({
      start: place('start').lsn,
      segmentSize: writer.segmentSize,
      kinds: kindsForTarget(target),
    });
    for (const record of decoder.push(writer.bytes())) finder.feed(record);
    return finder.finish(decoder.end.lsn);
  };
  return { place, find, at };
}

test('RecoveryStopFinder with a time stops before the first transaction end behind it', () => {
  const { place, find, at } = history();
  const cases = [
    [19, true, 'f1', 10],
    [20, true, 'point2', 21],
    [20, false, 'f1', 10],
    [30, true, 'c30', 30],
    [35, true, 'c30', 30],
    [40, true, 'f2', 30],
    [40, false, 'c30', 30],
  ] as const;
  for (const [second, inclusive, last, xid] of cases) {
    const stop = find({ kind: 'time', time: at(second), inclusive });
    assert.equal(stop.stopLsn, place(last).endLsn, `${second} ${inclusive}`);
    assert.equal(stop.lastCommit?.xid, xid);
    assert.equal(stop.beforeConsistency, false);
  }
});

test('RecoveryStopFinder counts aborts as the last transaction, not as the last commit', () => {
  const { find, at } = history();
  const stop = find({ kind: 'time', time: at(45), inclusive: true });
  assert.equal(stop.lastCommit?.xid, 30);
  assert.equal(stop.lastTransactionTime, at(40));
});

test('RecoveryStopFinder with a time behind the last transaction runs into the end of WAL', () => {
  const { place, find, at } = history();
  const stop = find({ kind: 'time', time: at(50), inclusive: true });
  assert.equal(stop.stoppedBy, 'end-of-wal');
  assert.equal(stop.stopLsn, place('last').endLsn);
  assert.equal(find({ kind: 'time', time: at(50), inclusive: false }).stopLsn, place('f2').endLsn);
});

test('RecoveryStopFinder with an lsn compares where records start', () => {
  const { place, find } = history();
  const stopAt = (lsn: bigint, inclusive: boolean): bigint =>
    find({ kind: 'lsn', lsn: lsnOf(lsn), inclusive }).stopLsn;
  assert.equal(stopAt(place('c20').lsn, true), place('c20').endLsn);
  assert.equal(stopAt(place('c20').lsn, false), place('f1').endLsn);
  assert.equal(stopAt(place('c20').lsn + 1n, true), place('c21').endLsn);
  assert.equal(stopAt(place('c20').lsn + 1n, false), place('c20').endLsn);
  assert.equal(
    find({ kind: 'lsn', lsn: lsnOf(place('last').lsn + 1n), inclusive: true }).stoppedBy,
    'end-of-wal',
  );
});

test('RecoveryStopFinder with an lsn leaves out the time of the commit it stops behind, as the server does', () => {
  const { place, find, at } = history();
  const stop = find({ kind: 'lsn', lsn: lsnOf(place('c30').lsn), inclusive: true });
  assert.equal(stop.lastCommit?.xid, 30);
  assert.equal(stop.lastTransactionTime, at(20));
  assert.equal(find({ kind: 'xid', xid: 30, inclusive: true }).lastTransactionTime, at(30));
});

test('RecoveryStopFinder with an xid knows the prepared transaction too', () => {
  const { place, find } = history();
  const stopAt = (xid: number, inclusive: boolean): bigint => find({ kind: 'xid', xid, inclusive }).stopLsn;
  assert.equal(stopAt(20, true), place('c20').endLsn);
  assert.equal(stopAt(20, false), place('f1').endLsn);
  assert.equal(stopAt(40, true), place('a40').endLsn);
  assert.equal(stopAt(50, true), place('p50').endLsn);
  assert.equal(stopAt(50, false), place('f2').endLsn);
  assert.equal(find({ kind: 'xid', xid: 22, inclusive: true }).stoppedBy, 'end-of-wal');
});

test('RecoveryStopFinder with a name stops after the first restore point of that name', () => {
  const { place, find } = history();
  assert.equal(find({ kind: 'name', name: 'here' }).stopLsn, place('point').endLsn);
  assert.equal(find({ kind: 'name', name: 'her' }).stoppedBy, 'end-of-wal');
});

test('RecoveryStopFinder with immediate stops where the base backup is consistent', () => {
  const { place, find } = history();
  const stop = find({ kind: 'immediate' });
  assert.equal(stop.stopLsn, place('backupEnd').endLsn);
  assert.equal(stop.beforeConsistency, false);
  assert.equal(find({ kind: 'immediate' }, lsnOf(place('last').endLsn)).stoppedBy, 'end-of-wal');
});

test('RecoveryStopFinder without a target replays everything', () => {
  const { place, find } = history();
  const stop = find({ kind: 'latest' });
  assert.equal(stop.stopLsn, place('last').endLsn);
  assert.deepEqual(stop.lastCommit, { xid: 50, time: 50_000_000n, lsn: place('p50').lsn });
});

test('RecoveryStopFinder says when the stop comes before the backup is consistent', () => {
  const { place, find, at } = history();
  assert.equal(find({ kind: 'time', time: at(5), inclusive: true }).beforeConsistency, true);
  assert.equal(find({ kind: 'xid', xid: 10, inclusive: true }).beforeConsistency, true);
  assert.equal(find({ kind: 'lsn', lsn: place('backupEnd').lsn, inclusive: false }).beforeConsistency, true);
  assert.equal(find({ kind: 'lsn', lsn: place('backupEnd').lsn, inclusive: true }).beforeConsistency, false);
  assert.equal(find({ kind: 'latest' }, lsnOf(place('last').endLsn + 1n)).beforeConsistency, true);
});
