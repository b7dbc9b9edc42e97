import assert from 'node:assert/strict';
import { test } from 'node:test';

import { GIB, NOW, NOW_MICROS, sight, SLOT, walSight } from '../../../test/server-sight.ts';
import { HoldfastError } from '../../errors.ts';
import { lsnOf, parseLsn } from '../../postgres/lsn.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { Findings } from '../check/finding.ts';
import { judgeWal, statusOf, type SurveyedWal, type WalSurvey } from '../check/survey-wal.ts';
import { statusJson } from './status-json.ts';
import { statusText } from './status-text.ts';

const STORED: SurveyedWal = {
  repository: 'local',
  required: true,
  newest: {
    timeline: timelineOf(1),
    lsn: parseLsn('0/5000000'),
    lastCommitTime: NOW_MICROS - 3_600_000_000n,
    segment: undefined,
    tailBytes: 4096,
    samples: [],
  },
  others: [],
  problem: undefined,
  backups: 1,
  gaps: [],
  present: 'reachable',
  point: { state: 'current', pendingBytes: 0n, ageMs: 3_600_000, futureMs: 0 },
};

const PRIMARY = sight({ archiveMode: 'off', archiveCommand: '' }, { archiver: undefined });

function survey(rest: Partial<WalSurvey> = {}): WalSurvey {
  return {
    cluster: 'app',
    expected: { cluster: 'app', mode: 'stream', tailIntervalMs: 5000, archiveTimeoutMs: 0 },
    slot: 'holdfast',
    systemIdentifier: '7711133327898090812',
    sights: [PRIMARY],
    reference: PRIMARY,
    receiver: undefined,
    stored: [STORED],
    archived: [],
    command: '',
    behind: [],
    rate: { bytesPerSecond: 1024 ** 2, source: 'now' },
    host: 'here',
    now: NOW,
    ...rest,
  };
}

function ended(given: WalSurvey): number {
  const findings = new Findings('cluster app');
  judgeWal(given, findings);
  return statusOf(given, findings);
}

test('statusText() shows servers, slot, disk, forecast and the age of the recovery point', () => {
  const text = statusText(survey(), [], []);
  for (const line of [
    /^Server db1:5432: primary, PostgreSQL 15\.20, timeline 1, WAL at 0\/5000000$/m,
    /slot +"holdfast", held by holdfast .*reserved, from 0\/4000000, keeps 16\.0 MiB, 1\.00 GiB more until/,
    /pg_wal +1\.00 GiB at .*; 50\.0 GiB of 100 GiB free/,
    /rate +1\.00 MiB\/s during the last second/,
    /forecast +pg_wal full in 14 h 13 min, slot in danger in 17 min 4 s, if nothing were received/,
    /^Repository local: up to 0\/5000000 on timeline 1, 4\.00 KiB of it in tails$/m,
    /every commit is stored: last commit 1 h ago/,
  ]) {
    assert.match(text, line);
  }
  assert.doesNotMatch(text, /clock|Receiver/);
});

test('statusText() says when clocks are hours apart, and which server does not answer', () => {
  const apart = { ...PRIMARY, clockSkewMs: -7_200_000 };
  const silent = { server: 'db2:5432', error: new HoldfastError('connection-failed', 'no route to host') };
  const text = statusText(survey({ sights: [apart], reference: apart }), [silent], []);
  assert.match(text, /clock +2 h behind this host's/);
  assert.match(text, /^Server db2:5432 does not answer: no route to host$/m);
});

test('statusOf() is 40 for WAL that is lost, 20 where nobody answers, 3 for what is behind, else 0', () => {
  assert.equal(ended(survey()), 0);
  const lost = sight(
    { archiveMode: 'off' },
    { wal: walSight({ slot: { ...SLOT, active: false, walStatus: 'lost' }, holder: undefined }) },
  );
  assert.equal(ended(survey({ sights: [lost], reference: lost })), 40);
  const gap = {
    timeline: timelineOf(1),
    fromLsn: lsnOf(0n),
    toLsn: lsnOf(16n * 1024n ** 2n),
    first: 'A',
    last: 'A',
    cause: 'deleted' as const,
    detail: '',
    present: true,
  };
  const cut: SurveyedWal = { ...STORED, gaps: [gap], present: 'gap' };
  assert.equal(ended(survey({ stored: [cut] })), 40);
  assert.equal(ended(survey({ stored: [cut], sights: [], reference: undefined })), 40, 'whoever answers');
  assert.equal(ended(survey({ stored: [STORED, { ...cut, required: false }] })), 3);
  assert.equal(ended(survey({ stored: [{ ...STORED, gaps: [{ ...gap, present: false }] }] })), 0);
  assert.equal(ended(survey({ sights: [], reference: undefined })), 20);
  const late: SurveyedWal = {
    ...STORED,
    point: { state: 'pending', pendingBytes: 1n, ageMs: 60_000, futureMs: 0 },
  };
  assert.equal(ended(survey({ stored: [late] })), 3);
  const noted = { repository: 'usb', since: '', first: '', reason: '', tryAgainAt: '' };
  assert.equal(ended(survey({ behind: [noted] })), 3);
});

test('statusJson() keeps what is not known null, and sizes in bytes', () => {
  const whole = JSON.parse(JSON.stringify(statusJson(survey(), [], [], 0))) as Record<string, unknown>;
  assert.deepEqual(whole['forecast'], { server: 'db1:5432', fullInSeconds: 51_200, slotLostInSeconds: 1024 });
  assert.equal(
    (whole['servers'] as { walDirectory: { freeBytes: number } }[])[0]?.walDirectory.freeBytes,
    Number(50n * GIB),
  );
  const blind = survey({
    sights: [],
    reference: undefined,
    rate: undefined,
    systemIdentifier: undefined,
    stored: [],
  });
  const nothing = JSON.parse(JSON.stringify(statusJson(blind, [], [], 20))) as Record<string, unknown>;
  assert.deepEqual(
    [
      nothing['systemIdentifier'],
      nothing['receiver'],
      nothing['rate'],
      nothing['forecast'],
      nothing['status'],
    ],
    [null, null, null, null, 20],
  );
});
