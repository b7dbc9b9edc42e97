import assert from 'node:assert/strict';
import { test } from 'node:test';

import { GIB, NOW, NOW_MICROS, sight, SLOT, standby, walSight } from '../../../test/server-sight.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import type { WalFacts } from '../../postgres/inspect-wal.ts';
import { parseLsn } from '../../postgres/lsn.ts';
import type { ReceiverStatus } from '../../wal/receiver-status.ts';
import { type Finding, Findings } from './finding.ts';
import type { ServerSight } from './see-server.ts';
import type { WalSight } from './see-wal.ts';
import { judgeStreaming, judgeUnusedSlots, type StreamExpectation } from './stream-findings.ts';

const RECEIVER: ReceiverStatus & { alive: boolean } = {
  pid: 77,
  host: 'here',
  cluster: 'app',
  systemIdentifier: '7711133327898090812',
  startedAt: NOW.toISOString(),
  updatedAt: new Date(NOW.getTime() - 1000).toISOString(),
  state: 'streaming',
  problem: null,
  server: 'db1:5432',
  slot: 'holdfast',
  timeline: 1,
  receivedLsn: '0/5000000',
  flushedLsn: '0/5000000',
  serverLsn: '0/5000000',
  lastCommitTime: null,
  repositories: [],
  alive: true,
};

const HOLDER = walSight().facts.holder;

/** A primary that is streamed from and archives nothing. */
function source(
  wal: Partial<WalFacts> = {},
  rest: Partial<WalSight> = {},
  facts: Partial<ServerFacts> = {},
): ServerSight {
  return sight({ archiveMode: 'off', archiveCommand: '', ...facts }, { wal: walSight(wal, rest) });
}

function judged(sights: ServerSight[], rest: Partial<StreamExpectation> = {}): Finding[] {
  const findings = new Findings('cluster app');
  judgeStreaming(
    sights,
    { cluster: 'app', slot: 'holdfast', receiver: RECEIVER, now: NOW, ...rest },
    findings,
  );
  return findings.all;
}

function notOk(findings: readonly Finding[]): Finding[] {
  return findings.filter(({ status }) => status !== 'ok');
}

/** The only finding that is not ok. */
function only(sights: ServerSight[], rest: Partial<StreamExpectation> = {}): Finding {
  const found = notOk(judged(sights, rest));
  assert.equal(found.length, 1, JSON.stringify(found));
  const [finding] = found;
  assert.ok(finding !== undefined && (finding.fix ?? '') !== '');
  return finding;
}

test('judgeStreaming() has nothing against a slot that a receiver on this host or another holds', () => {
  assert.deepEqual(notOk(judged([source()])), []);
  const elsewhere = judged([source()], { receiver: undefined });
  assert.deepEqual(notOk(elsewhere), []);
  assert.ok(
    elsewhere.some(({ message }) => /by another host: holdfast \(process 321.*10\.0\.0\.7/.test(message)),
  );
  const ended = { ...RECEIVER, state: 'stopped' as const, alive: false };
  assert.deepEqual(notOk(judged([source()], { receiver: ended })), []);
  assert.deepEqual(judged([]), []);
});

test('judgeStreaming() finds each state of a slot that is not right, and says what to do', () => {
  const cases: [Partial<WalFacts>, 'warn' | 'fail', RegExp, RegExp][] = [
    [{ slot: { ...SLOT, walStatus: 'extended' } }, 'warn', /keeps more than max_wal_size/, /wal receive/],
    [{ slot: { ...SLOT, walStatus: 'unreserved' } }, 'fail', /the next checkpoint may remove/, /catches up/],
    [
      { slot: { ...SLOT, walStatus: 'lost' } },
      'fail',
      /is lost: WAL .* gone/,
      /--accept-gap.*backup base app/,
    ],
    [
      { slot: { ...SLOT, walStatus: 'lost', invalidationReason: 'wal_removed' } },
      'fail',
      /is lost \(wal_removed\)/,
      /backup base/,
    ],
    [{ slot: { ...SLOT, type: 'logical' } }, 'fail', /is logical/, /another name/],
    [{ slot: { ...SLOT, temporary: true } }, 'fail', /is temporary/, /another name/],
    [{ slot: { ...SLOT, walStatus: undefined } }, 'warn', /holds no WAL yet/, /wal receive app/],
  ];
  for (const [wal, status, message, fix] of cases) {
    const found = only([source(wal)]);
    assert.equal(found.status, status, found.message);
    assert.match(found.message, message);
    assert.match(found.fix ?? '', fix);
  }
});

test('judgeStreaming() finds a missing slot, and a server that has no room for any', () => {
  const missing = { slot: undefined, holder: undefined };
  const [slot, receiver] = notOk(judged([source(missing)], { receiver: undefined }));
  assert.match(slot?.message ?? '', /has no replication slot "holdfast"/);
  assert.match(slot?.fix ?? '', /wal receive app/);
  assert.match(receiver?.message ?? '', /nobody receives/);
  const noRoom = source(missing, {}, { maxReplicationSlots: 0 });
  assert.match(notOk(judged([noRoom]))[0]?.message ?? '', /max_replication_slots = 0/);
});

test('judgeStreaming() finds that nobody receives, who else holds the slot, and a receiver that does not get on', () => {
  const free = { slot: { ...SLOT, active: false, activePid: undefined }, holder: undefined };
  const gone = only([source(free)], { receiver: undefined });
  assert.equal(gone.status, 'fail');
  assert.match(gone.message, /nobody receives the WAL of cluster app$/);
  const ended = only([source(free)], { receiver: { ...RECEIVER, alive: false } });
  assert.match(ended.message, /on this host it ended, 2026-01-02T03:04:04/);

  assert.ok(HOLDER !== undefined);
  const other = only([source({ holder: { ...HOLDER, applicationName: 'pg_receivewal' } })]);
  assert.equal(other.status, 'fail');
  assert.match(other.message, /held by pg_receivewal \(process 321 .*10\.0\.0\.7\), which is not Holdfast/);

  const waits = only([source(free)], { receiver: { ...RECEIVER, state: 'waiting', problem: 'no room' } });
  assert.equal(waits.status, 'fail');
  assert.match(waits.message, /waits: no room/);
  const silent = { ...RECEIVER, updatedAt: new Date(NOW.getTime() - 600_000).toISOString() };
  assert.deepEqual(notOk(judged([source()], { receiver: silent })), [], 'there is nothing to say');
  const more = { position: parseLsn('0/5000001') };
  assert.match(only([source(more)], { receiver: silent }).message, /says nothing for 10 min/);
  const repository = {
    name: 'local',
    required: true,
    durableLsn: null,
    problem: 'no room',
    behindSince: null,
  };
  const full = only([source()], { receiver: { ...RECEIVER, repositories: [repository] } });
  assert.equal(full.status, 'fail');
  assert.match(full.message, /cannot store in repository local: no room/);
  const optional = { ...RECEIVER, repositories: [{ ...repository, required: false }] };
  assert.deepEqual(notOk(judged([source()], { receiver: optional })), [], 'its note says so');
  const troubled = only([source()], { receiver: { ...RECEIVER, problem: 'usb is away' } });
  assert.equal(troubled.status, 'warn');
  assert.deepEqual(notOk(judged([source(free)], { receiver: { ...RECEIVER, state: 'connecting' } })), []);
  assert.match(only([source(free)]).message, /streams from db1:5432, and the slot on db1:5432 is not in use/);
});

test('judgeStreaming() warns of what may fill the disk, with a value, and of what takes the slot away', () => {
  const unlimited = only([source({ maxSlotWalKeepSize: undefined })]);
  assert.equal(unlimited.status, 'warn');
  assert.match(unlimited.message, /fills the disk of pg_wal: 50\.0 GiB of 100 GiB are free/);
  assert.match(unlimited.fix ?? '', /max_slot_wal_keep_size = '25GB'/);
  const unseen = only([source({ maxSlotWalKeepSize: undefined }, { disk: undefined })]);
  assert.match(unseen.fix ?? '', /half of what that disk has/);
  const tooMuch = only([source({ maxSlotWalKeepSize: 60n * GIB })]);
  assert.match(tooMuch.message, /more than the disk of pg_wal has room for/);
  assert.deepEqual(notOk(judged([source({ maxSlotWalKeepSize: 60n * GIB }, { disk: undefined })])), []);
  const idle = only([source({ idleSlotTimeoutMs: 3_600_000 })]);
  assert.match(idle.message, /not used for 1 h \(idle_replication_slot_timeout\)/);
  assert.deepEqual(notOk(judged([source({ idleSlotTimeoutMs: undefined })])), []);
});

test('judgeStreaming() wants to be a synchronous standby by name or not at all', () => {
  const names = (synchronousStandbyNames: string, rest: Partial<WalFacts> = {}): ServerSight[] => [
    source({ synchronousStandbyNames, ...rest }),
  ];
  assert.deepEqual(notOk(judged(names('db2'))), []);
  const star = only(names('*'));
  assert.equal(star.status, 'fail');
  assert.match(star.fix ?? '', /= 'standby1'/);
  assert.match(only(names('ANY 1 (db2, *)')).fix ?? '', /= 'db2'/);
  assert.deepEqual(notOk(judged(names('FIRST 1 (holdfast)'))), []);
  const applied = only(names('holdfast', { synchronousCommit: 'remote_apply' }));
  assert.equal(applied.status, 'warn');
  assert.match(applied.message, /applies nothing/);
  assert.deepEqual(notOk(judged(names('db2', { synchronousCommit: 'remote_apply' }))), []);
});

test('judgeStreaming() lets archiving be, except where it archives nothing and keeps everything', () => {
  const archiving = (facts: Partial<ServerFacts>): ServerSight[] => [
    source({}, {}, { archiveMode: 'on', ...facts }),
  ];
  for (const [facts, message] of [
    [{ archiveCommand: 'holdfast wal push %p' }, /as well: no harm/],
    [{ archiveCommand: 'cp %p /x' }, /another command as well/],
    [{ archiveLibrary: 'basic_archive' }, /basic_archive' as well/],
    [{ archiveMode: 'off' as const }, /archive_mode = off, which is right/],
  ] as const) {
    const findings = judged(archiving(facts));
    assert.deepEqual(notOk(findings), []);
    assert.ok(
      findings.some((one) => message.test(one.message)),
      String(message),
    );
  }
  const piling = only(archiving({ archiveCommand: '' }));
  assert.equal(piling.status, 'fail');
  assert.match(piling.message, /keeps every segment until pg_wal is full/);
  assert.deepEqual(
    notOk(judged(archiving({ archiveCommand: '', canMonitor: false }))),
    [],
    'it is only not shown',
  );
});

test('judgeStreaming() follows the slot to the server it is on, and finds one that was left behind', () => {
  const after = standby({}, { slot: SLOT, holder: HOLDER, now: NOW_MICROS });
  const left = source({ slot: { ...SLOT, active: false, activePid: undefined }, holder: undefined });
  const found = only([left, after]);
  assert.equal(found.status, 'warn');
  assert.match(found.message, /db1:5432 has the slot "holdfast" too.*from 0\/4000000/);
  assert.match(found.fix ?? '', /pg_drop_replication_slot\('holdfast'\); on db1:5432/);
});

test('judgeUnusedSlots() finds a slot that was left behind by a change to push', () => {
  const judge = (sights: ServerSight[]): Finding[] => {
    const findings = new Findings('cluster app');
    judgeUnusedSlots(sights, { cluster: 'app', slot: 'holdfast' }, findings);
    return findings.all;
  };
  const left = judge([source({ slot: { ...SLOT, active: false }, holder: undefined })]);
  assert.deepEqual(
    left.map((one) => [one.status, one.fix]),
    [['warn', 'holdfast wal release app']],
  );
  assert.match(left[0]?.message ?? '', /keeps 16\.0 MiB of WAL there/);
  assert.deepEqual(notOk(judge([source()])), [], 'both at once is no harm');
  assert.deepEqual(judge([source({ slot: undefined, holder: undefined })]), []);
});
