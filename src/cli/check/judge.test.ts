import assert from 'node:assert/strict';
import { test } from 'node:test';

import { configurationSchema, type ClusterConfiguration } from '../../config/schema.ts';
import { HoldfastError } from '../../errors.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import { parseSystemIdentifier } from '../../postgres/system-identifier.ts';
import { ARCHIVER, COMMAND, NOW, NOW_MICROS, sight, standby, walSight } from '../../../test/server-sight.ts';
import { judgeArchiving, type ArchivedIn } from './archive-findings.ts';
import { Findings, formatFinding, summarizeFindings, type Finding } from './finding.ts';
import type { ServerSight } from './see-server.ts';
import { judgeServer, judgeServers } from './server-findings.ts';

function cluster(source: object = {}): ClusterConfiguration {
  const checked = configurationSchema.parse({
    clusters: { app: { servers: ['postgres://h/d'], source } },
    repositories: { local: { url: 'file:///r' } },
  });
  const { app } = checked.clusters;
  assert.ok(app !== undefined);
  return app;
}

function judged(judge: (findings: Findings) => void): Finding[] {
  const findings = new Findings('cluster app');
  judge(findings);
  return findings.all;
}

function notOk(findings: readonly Finding[]): [string, string][] {
  return findings.filter((one) => one.status !== 'ok').map((one) => [one.status, one.message]);
}

const STORED: ArchivedIn[] = [{ repository: 'local', present: true }];

function archiving(seen: ServerSight, stored = STORED): Finding[] {
  return judged((findings) => judgeArchiving(seen, { command: COMMAND }, stored, findings));
}

test('judgeServer() has nothing against a server that is set up', () => {
  assert.deepEqual(notOk(judged((findings) => judgeServer(sight(), findings))), []);
});

test('judgeServer() finds each thing that keeps a backup from being good', () => {
  const cases: [ServerSight, 'warn' | 'fail', RegExp][] = [
    [sight({ walLevel: 'minimal' }), 'fail', /wal_level = minimal/],
    [sight({}, { replication: { reason: 'no pg_hba line', fix: 'add one' } }), 'fail', /no pg_hba line/],
    [sight({ canMonitor: false }), 'warn', /may not read all settings/],
    [sight({ dataChecksums: false }), 'warn', /no data checksums/],
    [sight({ fullPageWrites: false }), 'fail', /full_page_writes/],
    [sight({ warning: 'is newer' }), 'warn', /is newer/],
    [sight({}, { clockSkewMs: 5000 }), 'warn', /differ by 5\.0 s/],
    [sight({}, { clockSkewMs: -120_000 }), 'fail', /differ by 120\.0 s/],
  ];
  for (const [seen, status, message] of cases) {
    const found = notOk(judged((findings) => judgeServer(seen, findings)));
    assert.equal(found.length, 1, String(message));
    assert.equal(found[0]?.[0], status, String(message));
    assert.match(found[0]?.[1] ?? '', message);
  }
});

test('judgeServer() does not take a slow answer for a wrong clock', () => {
  const seen = sight({}, { clockSkewMs: 5000, toleranceMs: 4000 });
  assert.deepEqual(notOk(judged((findings) => judgeServer(seen, findings))), []);
});

test('judgeServers() wants one cluster with one primary', () => {
  const judge = (seen: ServerSight[], source: object = {}): [string, string][] =>
    notOk(judged((findings) => judgeServers(seen, cluster(source), findings)));
  assert.deepEqual(judge([sight(), standby()]), []);
  const other = parseSystemIdentifier('7711133327898090813');
  assert.match(judge([sight(), standby({ systemIdentifier: other })])[0]?.[1] ?? '', /different clusters/);
  assert.match(judge([sight(), sight({ server: 'db2:5432' })])[0]?.[1] ?? '', /2 primaries/);
  assert.match(judge([standby()])[0]?.[1] ?? '', /none of its servers is a primary/);
  assert.match(judge([sight()], { prefer: 'standby' })[0]?.[1] ?? '', /there is none/);
  assert.deepEqual(judge([]), []);
});

test('judgeArchiving() is content where WAL arrives in every repository', () => {
  const findings = archiving(sight());
  assert.deepEqual(notOk(findings), []);
  assert.match(findings.at(-1)?.message ?? '', /WAL arrives in local: 000000010000000000000004, 30 s ago/);
});

test('judgeArchiving() finds a server that does not archive with Holdfast, and gives the command', () => {
  const cases: [Partial<ServerFacts>, RegExp, RegExp][] = [
    [{ archiveMode: 'off' }, /archive_mode = off/, /archive_mode = 'on'/],
    [{ archiveLibrary: 'basic_archive' }, /basic_archive/, /archive_library = ''/],
    [{ archiveCommand: '' }, /no archive_command/, /wal push %p/],
    [{ archiveCommand: "test ! -f '/x'" }, /another command: test/, /wal push %p/],
  ];
  for (const [facts, message, fix] of cases) {
    const [finding] = archiving(sight(facts));
    assert.equal(finding?.status, 'fail');
    assert.match(finding.message, message);
    assert.match(finding.fix ?? '', fix);
  }
});

test('judgeArchiving() does not believe the server: the repository must have what it says is archived', () => {
  const findings = archiving(sight(), [
    { repository: 'local', present: true },
    { repository: 'usb', present: false },
  ]);
  assert.match(notOk(findings)[0]?.[1] ?? '', /repository usb does not have it/);
});

test('judgeArchiving() finds archiving that fails, has not begun, or falls behind', () => {
  const failing = { lastFailed: '000000010000000000000005', lastFailedAt: NOW, failedCount: 3 };
  assert.match(
    notOk(archiving(sight({}, { archiver: { ...ARCHIVER, ...failing } })))[0]?.[1] ?? '',
    /archiving of 000000010000000000000005 fails on db1:5432 \(3 times/,
  );
  const recovered = { ...ARCHIVER, lastFailedAt: new Date(NOW.getTime() - 60_000), failedCount: 3 };
  assert.deepEqual(notOk(archiving(sight({}, { archiver: recovered }))), []);
  const none = { ...ARCHIVER, lastArchived: undefined, lastArchivedAt: undefined };
  assert.match(notOk(archiving(sight({}, { archiver: none }), []))[0]?.[1] ?? '', /archived nothing yet/);
  const behind = { ...ARCHIVER, current: '00000001000000000000000B' };
  assert.match(notOk(archiving(sight({}, { archiver: behind })))[0]?.[1] ?? '', /6 segments are written/);
  const promoted = { ...ARCHIVER, current: '0000000200000000000000FF' };
  assert.deepEqual(notOk(archiving(sight({}, { archiver: promoted }))), []);
});

test('judgeArchiving() finds archiving that stands still though failed_count does not rise', () => {
  const minutes = (count: bigint): bigint => NOW_MICROS - count * 60_000_000n;
  const waiting = (at: bigint | undefined, readyFiles = 1): [string, string][] =>
    notOk(archiving(sight({}, { wal: walSight({ readyFiles }, { oldestReadyAt: at }) })));
  assert.deepEqual(waiting(minutes(4n)), [], 'it is at work');
  assert.match(
    waiting(minutes(6n))[0]?.[1] ?? '',
    /waits to be archived for 6 min, and failed_count does not/,
  );
  assert.deepEqual(waiting(undefined, 0), []);

  // A role that may not list the files: by what was written since the last one that was archived.
  const behind = {
    ...ARCHIVER,
    lastArchivedAt: new Date(NOW.getTime() - 3_600_000),
    current: '00000001000000000000000B',
  };
  const blind = { wal: walSight({ readyFiles: undefined }) };
  const [found] = notOk(archiving(sight({}, { ...blind, archiver: behind })));
  assert.equal(found?.[0], 'fail');
  assert.match(found?.[1] ?? '', /waits to be archived for 1 h/);
  const idle = { ...behind, current: '000000010000000000000005' };
  assert.deepEqual(notOk(archiving(sight({}, { ...blind, archiver: idle }))), [], 'nothing is written');

  const failing = { ...ARCHIVER, lastFailed: ARCHIVER.current, lastFailedAt: NOW, failedCount: 3 };
  const both = sight(
    {},
    { wal: walSight({ readyFiles: 1 }, { oldestReadyAt: minutes(9n) }), archiver: failing },
  );
  assert.equal(notOk(archiving(both)).length, 1, 'said once');
});

test('Findings.failure() takes the words and the hint of an error, and passes defects on', () => {
  const [finding] = judged((findings) =>
    findings.failure(new HoldfastError('connection-failed', 'db1 does not answer', { hint: 'start it' })),
  );
  assert.deepEqual(finding, {
    subject: 'cluster app',
    status: 'fail',
    message: 'db1 does not answer',
    fix: 'start it',
  });
  assert.throws(() => judged((findings) => findings.failure(new TypeError('x'))), TypeError);
  assert.throws(() => judged((findings) => findings.failure(new HoldfastError('cancelled', 'x'))), {
    code: 'cancelled',
  });
});

test('formatFinding() puts the fix below, and summarizeFindings() counts', () => {
  const findings = judged((all) => {
    all.ok('good');
    all.warn('so so', 'do this');
    all.fail('bad', 'do that');
  });
  assert.equal(
    findings.map(formatFinding).join('\n'),
    'ok    cluster app: good\nwarn  cluster app: so so\n      → do this\nfail  cluster app: bad\n      → do that',
  );
  assert.equal(summarizeFindings(findings), '3 findings: 1 ok, 1 warning, 1 failed');
});
