import assert from 'node:assert/strict';
import { test } from 'node:test';

import { GIB, sight, walSight } from '../../../test/server-sight.ts';
import { lsnOf } from '../../postgres/lsn.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import type { RecoveryPoint } from '../../wal/recovery-point.ts';
import type { NewestWal } from '../../wal/stored-end.ts';
import { type Finding, Findings } from './finding.ts';
import {
  judgeArchiveTimeout,
  judgeBehind,
  judgeGaps,
  judgeRecoveryPoint,
  type RecoveryExpectation,
} from './recovery-findings.ts';
import { judgeWalSpace } from './space-findings.ts';
import type { WalAccount, WalGap } from './stored-wal.ts';

const NEWEST: NewestWal = {
  timeline: timelineOf(2),
  lsn: lsnOf(5000n),
  lastCommitTime: 1n,
  segment: undefined,
  tailBytes: 0,
  samples: [],
};
const EXPECTED: RecoveryExpectation = {
  cluster: 'app',
  mode: 'stream',
  tailIntervalMs: 5000,
  archiveTimeoutMs: 60_000,
};
const POINT: RecoveryPoint = { state: 'pending', pendingBytes: 4096n, ageMs: 4000, futureMs: 0 };

function collect(judge: (findings: Findings) => void): Finding[] {
  const findings = new Findings('cluster app');
  judge(findings);
  return findings.all;
}

interface Case {
  point?: Partial<RecoveryPoint>;
  expected?: Partial<RecoveryExpectation>;
  required?: boolean;
  noted?: boolean;
  newest?: NewestWal | undefined;
  others?: string[];
}

function recovery(given: Case): Finding[] {
  const { required = true, noted = false } = given;
  const newest = 'newest' in given ? given.newest : NEWEST;
  const stored = { repository: 'local', required, newest, others: given.others ?? [] };
  return collect((findings) =>
    judgeRecoveryPoint(
      stored,
      { ...POINT, ...given.point },
      { ...EXPECTED, ...given.expected },
      noted,
      findings,
    ),
  );
}

const statuses = (findings: readonly Finding[]): string[] => findings.map(({ status }) => status);

test('judgeRecoveryPoint() alarms by the age of the last commit while WAL is pending, and never where none is', () => {
  assert.deepEqual(statuses(recovery({})), ['ok']);
  assert.deepEqual(statuses(recovery({ point: { ageMs: 20_000 } })), ['ok'], 'four tails may be late');
  const [late] = recovery({ point: { ageMs: 21_000 } });
  assert.equal(late?.status, 'fail');
  assert.match(late.message, /4\.00 KiB behind the server, its last commit 21 s old/);
  const [idle] = recovery({ point: { state: 'current', pendingBytes: 0n, ageMs: 86_400_000 } });
  assert.equal(idle?.status, 'ok');
  assert.match(idle.message, /has every commit \(the last one 1 d ago\)/);
  assert.deepEqual(statuses(recovery({ point: { ageMs: undefined } })), ['fail']);
});

test('judgeRecoveryPoint() allows push what archive_timeout bounds, and nothing where nothing bounds it', () => {
  const push = { mode: 'push' as const };
  assert.deepEqual(statuses(recovery({ expected: push, point: { ageMs: 180_000 } })), ['ok']);
  assert.deepEqual(statuses(recovery({ expected: push, point: { ageMs: 181_000 } })), ['fail']);
  const unbounded = { ...push, archiveTimeoutMs: 0 };
  assert.deepEqual(statuses(recovery({ expected: unbounded, point: { ageMs: 1e9 } })), ['ok']);
  const timeout = (expected: Partial<RecoveryExpectation>): string[] =>
    statuses(collect((findings) => judgeArchiveTimeout({ ...EXPECTED, ...expected }, findings)));
  assert.deepEqual(timeout(unbounded), ['warn']);
  assert.deepEqual(timeout(push), []);
  assert.deepEqual(timeout({ archiveTimeoutMs: 0 }), [], 'streaming needs none');
});

test('judgeRecoveryPoint() only warns of a repository that is not required, once', () => {
  const point = { ageMs: 60_000 };
  assert.deepEqual(statuses(recovery({ point, required: false })), ['warn']);
  assert.deepEqual(statuses(recovery({ point, required: false, noted: true })), []);
  assert.deepEqual(statuses(recovery({ newest: undefined })), ['warn']);
  assert.deepEqual(statuses(recovery({ newest: undefined, noted: true })), []);
});

test('judgeRecoveryPoint() finds an old primary and a clock that was set back', () => {
  assert.match(
    recovery({ point: { state: 'ahead' } })[0]?.message ?? '',
    /timeline 2, which the primary does not/,
  );
  const set = recovery({ point: { state: 'current', futureMs: 7_200_000, ageMs: 0 } });
  assert.deepEqual(statuses(set), ['warn', 'ok']);
  assert.match(set[0]?.message ?? '', /2 h in the server's future/);
  assert.deepEqual(statuses(recovery({ point: { futureMs: 1000 } })), ['ok']);
});

const GAP: WalGap = {
  timeline: timelineOf(1),
  fromLsn: lsnOf(0x100_0000n),
  toLsn: lsnOf(0x300_0000n),
  first: '000000010000000000000001',
  last: '000000010000000000000002',
  cause: 'slot-lost',
  detail: '',
  present: true,
};

function gaps(account: Partial<WalAccount>): Finding[] {
  const whole = { repository: 'local', backups: 2, gaps: [], present: 'reachable' as const };
  return collect((findings) => judgeGaps({ ...whole, ...account }, 'app', findings));
}

test('judgeRecoveryPoint() finds another cluster behind the address', () => {
  const [found] = recovery({ newest: undefined, others: ['7000000000000000001'] });
  assert.equal(found?.status, 'fail');
  assert.match(found.message, /by system identifier 7000000000000000001, and not by that of the server/);
});

test('judgeGaps() fails for a gap that nothing leads over, and remembers those of the past', () => {
  assert.deepEqual(gaps({}), []);
  assert.deepEqual(gaps({ backups: 0, present: undefined }), []);
  const [now] = gaps({ gaps: [GAP], present: 'gap' });
  assert.equal(now?.status, 'fail');
  assert.match(now.message, /0+1 to 0+10+2 \(0\/1000000 to 0\/3000000; the slot was lost\): nothing behind/);
  assert.match(now.fix ?? '', /holdfast backup base app/);
  const past = gaps({ gaps: [{ ...GAP, present: false }] });
  assert.deepEqual(statuses(past), ['warn']);
  assert.match(past[0]?.message ?? '', /1 gap of the past/);
  assert.deepEqual(statuses(gaps({ gaps: [GAP, { ...GAP, present: false }], present: 'gap' })), [
    'fail',
    'warn',
  ]);
});

test('judgeGaps() finds a present that no backup leads to', () => {
  assert.match(
    gaps({ present: 'orphan' })[0]?.message ?? '',
    /lacks the history file of its newest timeline/,
  );
  assert.match(
    gaps({ present: 'no-backup' })[0]?.message ?? '',
    /lacks a way from its backups to the present/,
  );
  const [first] = gaps({ present: 'no-backup', backups: 0 });
  assert.equal(first?.status, 'warn');
  assert.match(first.message, /no base backup/);
});

test('judgeBehind() warns of each repository that is noted as behind', () => {
  const noted = {
    repository: 'usb',
    since: '2026-01-01T00:00:00.000Z',
    first: 'X',
    reason: 'no room',
    tryAgainAt: '',
  };
  const [found] = collect((findings) => judgeBehind([noted], findings));
  assert.equal(found?.status, 'warn');
  assert.match(found.message, /usb lacks WAL from X on, since 2026-01-01.*no room/);
  assert.deepEqual(
    collect((findings) => judgeBehind([], findings)),
    [],
  );
});

test('judgeWalSpace() compares what is free with the disk and with a few segments, and forecasts', () => {
  const judge = (freeBytes: bigint, totalBytes: bigint, rate?: number): Finding[] =>
    collect((findings) =>
      judgeWalSpace(
        sight({}, { wal: walSight({}, { disk: { path: '/w', freeBytes, totalBytes } }) }),
        rate,
        findings,
      ),
    );
  assert.deepEqual(statuses(judge(50n * GIB, 100n * GIB)), ['ok']);
  assert.deepEqual(statuses(judge(14n * GIB, 100n * GIB)), ['warn']);
  assert.deepEqual(statuses(judge(4n * GIB, 100n * GIB)), ['fail']);
  assert.deepEqual(statuses(judge(100n << 20n, 200n << 20n)), ['fail'], 'not even eight segments');
  assert.match(judge(50n * GIB, 100n * GIB, 1024 ** 2)[0]?.message ?? '', /full in 14 h 13 min if no WAL/);
  const hidden = [undefined, { problem: 'permission denied' }];
  for (const disk of hidden) {
    assert.deepEqual(
      collect((findings) => judgeWalSpace(sight({}, { wal: walSight({}, { disk }) }), 1, findings)),
      [],
    );
  }
});
