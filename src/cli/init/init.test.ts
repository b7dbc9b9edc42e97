import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseConfiguration } from '../../config/load.ts';
import { repositoriesOf } from './answers.ts';
import { configurationText, type InitAnswers } from '../../config/configuration-text.ts';
import { sight, standby, walSight } from '../../../test/server-sight.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import type { WalFacts } from '../../postgres/inspect-wal.ts';
import { judgeWalMode } from './choose-wal-mode.ts';
import { formatSetup, type ServerSetup, serverSetups } from './server-setup.ts';
import { receiveUnit } from './systemd-unit.ts';

const ANSWERS: InitAnswers = {
  cluster: 'app',
  servers: [
    'postgres://holdfast@db1/postgres',
    'postgres://holdfast@db2/postgres?host=%2Frun%2Fpg&port=5433',
  ],
  wal: 'push',
  repositories: [{ name: 'local', url: 'file:///var/backups/a%20b' }],
  recipients: [],
};

const AGE = 'age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p';

function parse(answers: InitAnswers): ReturnType<typeof parseConfiguration> {
  return parseConfiguration(configurationText(answers), '/etc/holdfast/holdfast.yaml', {});
}

test('configurationText() reads back as what was answered', () => {
  const plain = parse(ANSWERS);
  assert.deepEqual(plain.clusters['app']?.servers, ANSWERS.servers);
  assert.equal(plain.repositories[0]?.url, 'file:///var/backups/a%20b');
  assert.equal(plain.clusters['app']?.wal.mode, 'push');
  assert.equal(parse({ ...ANSWERS, wal: 'stream' }).clusters['app']?.wal.mode, 'stream');
  assert.deepEqual(plain.recipients, []);
  const sealed = parse({
    ...ANSWERS,
    recipients: [AGE],
    identity: '/k/identity.txt',
    state: '/var/lib/holdfast',
  });
  assert.deepEqual(sealed.recipients, [AGE]);
  assert.equal(sealed.identity, '/k/identity.txt');
  assert.equal(sealed.stateDirectory, '/var/lib/holdfast');
});

test('configurationText() quotes what YAML would read otherwise', () => {
  const odd = parse({ ...ANSWERS, servers: ['postgres://u@h/d?application_name=a: b # c'] });
  assert.deepEqual(odd.clusters['app']?.servers, ['postgres://u@h/d?application_name=a: b # c']);
});

test('repositoriesOf() takes names, URLs and paths', () => {
  assert.deepEqual(
    repositoriesOf(['local=/var/backups/a b', 'usb=file:///mnt/usb', 'far=s3://b/p?region=x'], '/home/u'),
    [
      { name: 'local', url: 'file:///var/backups/a%20b' },
      { name: 'usb', url: 'file:///mnt/usb' },
      { name: 'far', url: 's3://b/p?region=x' },
    ],
  );
  assert.deepEqual(repositoriesOf(['repo'], '/home/u'), [{ name: 'local', url: 'file:///home/u/repo' }]);
  assert.throws(() => repositoriesOf(['/a', '/b'], '/'), { code: 'option-conflict' });
});

test('serverSetups() grants to the roles that connect, and none to the superuser', () => {
  const [setup] = serverSetups(parse(ANSWERS));
  assert.match(setup?.grants ?? '', /CREATE ROLE "?holdfast"? LOGIN REPLICATION;/);
  assert.match(
    setup?.settings ?? '',
    /archive_command = '.* wal push %p --config \/etc\/holdfast\/holdfast\.yaml';/,
  );
  const [superuser] = serverSetups(parse({ ...ANSWERS, servers: ['postgres://postgres@h/d'] }));
  assert.equal(superuser?.grants, '');
  assert.doesNotMatch(superuser === undefined ? '' : formatSetup(superuser), /superuser of cluster/);
});

test('serverSetups() names the cluster in the archive command where there are several', () => {
  const two = configurationText(ANSWERS).replace(
    'clusters:',
    'clusters:\n  other:\n    servers: [env:OTHER_URL]',
  );
  const setups = serverSetups(parseConfiguration(two, '/c.yaml', {}));
  assert.deepEqual(
    setups.map((setup) => /--cluster (\w+)/.exec(setup.settings)?.[1]),
    ['other', 'app'],
  );
  assert.match(setups[0]?.grants ?? '', /CREATE ROLE "?holdfast"?/);
});

test('serverSetups() of a cluster that streams asks for no archiving, and only for what is not so already', () => {
  const streaming = parse({ ...ANSWERS, wal: 'stream' });
  const [blind] = serverSetups(streaming);
  assert.equal(
    blind?.settings,
    "ALTER SYSTEM SET max_slot_wal_keep_size = '10GB';\nSELECT pg_reload_conf();\n",
  );
  assert.equal(blind.needsRestart, false);
  assert.match(
    blind.receive?.command ?? '',
    /holdfast wal receive app --config \/etc\/holdfast\/holdfast\.yaml$/,
  );
  assert.match(formatSetup(blind), /systemctl enable --now holdfast-receive-app\.service/);

  const setup = (facts: Partial<ServerFacts>, wal: Partial<WalFacts> = {}): ServerSetup | undefined =>
    serverSetups(streaming, new Map([['app', sight(facts, { wal: walSight(wal) })]]))[0];
  const ready = setup({ archiveMode: 'off' });
  assert.equal(ready?.settings, '');
  assert.doesNotMatch(ready === undefined ? '' : formatSetup(ready), /On its primary/);
  const minimal = setup({ walLevel: 'minimal', maxWalSenders: 0, archiveMode: 'off' });
  assert.equal(minimal?.needsRestart, true);
  assert.match(minimal.settings, /wal_level = 'replica';\nALTER SYSTEM SET max_wal_senders = 10;/);
  assert.match(formatSetup(minimal), /On its primary, followed by a restart of the server:/);
  const unlimited = setup({ archiveMode: 'off' }, { maxSlotWalKeepSize: undefined });
  assert.match(unlimited?.settings ?? '', /max_slot_wal_keep_size = '25GB'/, 'half of the disk it lies on');
  // Archiving that is on and archives nothing would keep every segment.
  assert.match(setup({ archiveCommand: '' })?.settings ?? '', /archive_command = '\/bin\/true'/);
  assert.doesNotMatch(setup({})?.settings ?? '', /archive_command/);
});

test('receiveUnit() quotes for systemd, and is not started again where only a person can help', () => {
  const unit = receiveUnit({ cluster: 'app', configurationFile: '/srv/50%/my $holdfast.yaml', user: 'pg' });
  assert.match(unit, /^User=pg$/m);
  assert.match(
    unit,
    /^ExecStart=\S+\/bin\/holdfast wal receive app --config "\/srv\/50%%\/my \$\$holdfast\.yaml"$/m,
  );
  assert.match(unit, /^RestartPreventExitStatus=2 40$/m);
});

test('judgeWalMode() streams where a replication connection can be opened and nobody archives yet', () => {
  const quiet = { archiveMode: 'off' as const, archiveCommand: '' };
  assert.equal(judgeWalMode([sight(quiet)], '').mode, 'stream');
  assert.equal(judgeWalMode([standby(quiet), sight(quiet)], '').sight?.facts.inRecovery, false);
  assert.equal(judgeWalMode([sight({ archiveMode: 'on', archiveCommand: '' })], '').mode, 'stream');
  const refused = { replication: { reason: 'no pg_hba line', fix: 'add one' } };
  for (const [sights, reason] of [
    [[sight(quiet, refused)], /no pg_hba line/],
    [[sight({ archiveCommand: 'cp %p /x' })], /archives already: archive_command = 'cp %p \/x'/],
    [[sight({ archiveCommand: '', archiveLibrary: 'basic_archive' })], /basic_archive/],
    [[], /no server could be asked: it is away/],
  ] as const) {
    const choice = judgeWalMode(sights, 'it is away');
    assert.equal(choice.mode, 'push');
    assert.match(choice.reason, reason);
  }
});
