import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import * as fc from 'fast-check';

import { backupRecord } from '../../test/restore-lab.ts';
import { lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { quoteSetting, quoteShellWord, readSettings } from './guc-file.ts';
import {
  BLOCK_BEGIN,
  BLOCK_END,
  type RecoveryConfiguration,
  recoverySettings,
  restoreCommand,
  safePostgresqlConf,
  withRecoveryBlock,
  withoutRecovery,
} from './recovery-settings.ts';
import type { RecoverySetting, StopPoint } from './stop-point.ts';

const run = promisify(execFile);
const RECORD = backupRecord('b0', { start: lsnOf(0x100028n), stop: lsnOf(0x100100n), checkpointTime: 0n });

function stopAt(setting: RecoverySetting): StopPoint {
  return {
    lsn: lsnOf(0x3000060n),
    timeline: timelineOf(2),
    neededLsn: lsnOf(0x3000098n),
    setting,
    how: 'exact',
    reason: '',
    lastCommit: undefined,
    lastTransactionTime: undefined,
  };
}

function configuration(more: Partial<RecoveryConfiguration> = {}): RecoveryConfiguration {
  return {
    fetch: {
      launcher: '/opt/holdfast/bin/holdfast',
      configFile: '/etc/holdfast/holdfast.yaml',
      cluster: 'app',
      systemIdentifier: '7000000000000000001',
      repository: 'local',
    },
    request: { target: { kind: 'latest' }, timeline: 'auto', action: 'promote', standby: false },
    stop: stopAt({ kind: 'lsn', lsn: lsnOf(0x3000000n), inclusive: true }),
    record: RECORD,
    hasInPlaceTablespaces: false,
    ...more,
  };
}

test('quoteShellWord() survives a real shell, once PostgreSQL has expanded it', async () => {
  const words = [
    'plain',
    "it's",
    'a b',
    '$(id)',
    '`id`',
    'x"y',
    '%f %p %%',
    'back\\slash',
    '*',
    '',
    'ü',
    "'",
    '~',
  ];
  for (const word of words) {
    const expanded = quoteShellWord(word).replaceAll('%%', '%');
    const { stdout } = await run('/bin/sh', ['-c', `printf %s ${expanded}`]);
    assert.equal(stdout, word);
  }
});

test('quoteShellWord() leaves nothing for PostgreSQL to expand', () => {
  assert(!/%[^%]/.test(quoteShellWord('/a%f/%p').replaceAll('%%', '')));
});

test('quoteSetting() and readSettings() are inverse', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (value) => {
      fc.pre(!/[\n\r\0]/.test(value));
      assert.equal(readSettings(`name = ${quoteSetting(value)} # more`).get('name'), value);
    }),
  );
});

test('quoteSetting() refuses what no line can hold', () => {
  assert.throws(() => quoteSetting('a\nb'), { code: 'usage-invalid' });
});

test('readSettings() reads every form, the last one of a name wins', () => {
  const text = "a=1\n  A 2 # two\nb = 'x''y'\n#c = 1\nd\t=\ton\nB = 'it\\'s'\ninclude 'x'";
  const found = readSettings(text);
  assert.equal(found.get('a'), '2');
  assert.equal(found.get('b'), "it's");
  assert.equal(found.get('d'), 'on');
  assert.equal(found.has('c'), false);
});

test('restoreCommand() names everything absolutely and says how far recovery must come', () => {
  const { fetch, stop } = configuration();
  const odd = { ...fetch, launcher: "/o'dd dir/100%/holdfast" };
  assert.equal(
    restoreCommand(odd, stop),
    `'/o'\\''dd dir/100%%/holdfast' wal fetch "%f" "%p" --config /etc/holdfast/holdfast.yaml --cluster app --system-identifier 7000000000000000001 --repository local --until 0/3000098`,
  );
});

test('recoverySettings() tells PostgreSQL exactly one target, an explicit timeline and no archiving', () => {
  const settings: [RecoverySetting, Record<string, string>][] = [
    [{ kind: 'immediate' }, { recovery_target: 'immediate' }],
    [
      { kind: 'xid', xid: 742, inclusive: false },
      { recovery_target_xid: '742', recovery_target_inclusive: 'off' },
    ],
    [{ kind: 'name', name: "it's" }, { recovery_target_name: "it's" }],
    [
      { kind: 'time', time: 1_767_225_600_000_001n, inclusive: true },
      { recovery_target_time: '2026-01-01 00:00:00.000001+00', recovery_target_inclusive: 'on' },
    ],
    [
      { kind: 'lsn', lsn: lsnOf(0x3000060n), inclusive: true },
      { recovery_target_lsn: '0/3000060', recovery_target_inclusive: 'on' },
    ],
  ];
  for (const [setting, expected] of settings) {
    const found = Object.fromEntries(recoverySettings(configuration({ stop: stopAt(setting) }), ''));
    for (const [name, value] of Object.entries(expected)) assert.equal(found[name], value);
    const targets = Object.keys(found).filter((name) =>
      [
        'recovery_target',
        'recovery_target_xid',
        'recovery_target_name',
        'recovery_target_time',
        'recovery_target_lsn',
      ].includes(name),
    );
    assert.equal(targets.length, 1);
    assert.equal(found['recovery_target_timeline'], '2');
    assert.equal(found['recovery_target_action'], 'promote');
    assert.equal(found['archive_mode'], 'off');
    assert.equal(found['max_logical_replication_workers'], '0');
  }
});

test('recoverySettings() of a following standby has no target at all', () => {
  const request = { target: { kind: 'latest' }, timeline: 'auto', action: undefined, standby: true } as const;
  const found = recoverySettings(configuration({ request }), '').map(([name]) => name);
  assert.deepEqual(
    found.filter((name) => name.startsWith('recovery_target')),
    ['recovery_target_timeline'],
  );
});

test('recoverySettings() raises what a hot standby needs, and only that', () => {
  const record = backupRecord(
    'b0',
    { start: lsnOf(0x100028n), stop: lsnOf(0x100100n), checkpointTime: 0n },
    {
      server: {
        ...RECORD.server,
        settings: { max_connections: 300, max_worker_processes: 8, max_wal_senders: 20 },
      },
    },
  );
  const existing = 'max_connections = 200\nmax_wal_senders = 40\n';
  const found = new Map(recoverySettings(configuration({ record }), existing));
  assert.equal(found.get('max_connections'), '300');
  assert.equal(found.has('max_wal_senders'), false);
  assert.equal(found.has('max_worker_processes'), false);
});

test('withRecoveryBlock() replaces its own block and disarms older recoveries', () => {
  const old = "work_mem = '8MB'\nrecovery_target_time = 'x'\nRestore_Command 'rm'\n";
  const once = withRecoveryBlock(old, '', configuration());
  const twice = withRecoveryBlock(once, '', configuration());
  assert.equal(twice, once);
  assert.equal(once.split(BLOCK_BEGIN).length, 2);
  assert.equal(once.split(BLOCK_END).length, 2);
  const [before = ''] = once.split(BLOCK_BEGIN);
  assert.deepEqual([...readSettings(before)], [['work_mem', '8MB']]);
  assert.equal(readSettings(once).get('recovery_target_time'), undefined);
});

test('withRecoveryBlock() overrules what an included file may say', () => {
  const found = readSettings(withRecoveryBlock('', "include_dir 'conf.d'\n", configuration()));
  assert.equal(found.get('recovery_target_time'), '');
  assert.equal(found.get('archive_cleanup_command'), '');
  assert.equal(found.get('recovery_target_lsn'), '0/3000000');
});

test('withoutRecovery() leaves what was there, and archiving off with a reason', () => {
  const old = "work_mem = '8MB'\narchive_mode = 'on'\n";
  const clean = withoutRecovery(withRecoveryBlock(old, '', configuration()), RECORD);
  assert(clean.startsWith(old));
  assert.equal(readSettings(clean).get('archive_mode'), 'off');
  assert.deepEqual([...readSettings(clean).keys()].sort(), ['archive_mode', 'work_mem']);
  assert.match(clean, /^# .*archive/m);
  assert.equal(withoutRecovery(clean, RECORD), clean);
});

test('withoutRecovery() removes a block that was cut off', () => {
  const clean = withoutRecovery(`a = 1\n${BLOCK_BEGIN}\nrestore_command = 'x'\n`, RECORD);
  assert.equal(readSettings(clean).has('restore_command'), false);
});

test('safePostgresqlConf() disables paths that lead out of the copy', () => {
  const text = [
    "data_directory = '/var/lib/postgresql/15/main'",
    "hba_file = '/etc/postgresql/pg_hba.conf'",
    "log_directory = 'log'",
    "log_directory = '/var/log/postgresql'",
    "recovery_target_name = 'old'",
    'port = 5433',
  ].join('\n');
  const { text: safe, disabled } = safePostgresqlConf(text);
  assert.deepEqual(
    [...readSettings(safe)],
    [
      ['log_directory', 'log'],
      ['port', '5433'],
    ],
  );
  assert.equal(disabled.length, 4);
  assert.deepEqual(safePostgresqlConf(safe).disabled, []);
});

test('recoverySettings() allows in-place tablespaces exactly where the copy has them', () => {
  for (const hasInPlaceTablespaces of [true, false]) {
    const settings = new Map(recoverySettings(configuration({ hasInPlaceTablespaces }), ''));
    assert.equal(settings.get('allow_in_place_tablespaces'), hasInPlaceTablespaces ? 'on' : undefined);
  }
});
