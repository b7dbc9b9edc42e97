import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseConfiguration } from '../../config/load.ts';
import { repositoriesOf } from './answers.ts';
import { configurationText, type InitAnswers } from '../../config/configuration-text.ts';
import { formatSetup, serverSetups } from './server-setup.ts';

const ANSWERS: InitAnswers = {
  cluster: 'app',
  servers: [
    'postgres://holdfast@db1/postgres',
    'postgres://holdfast@db2/postgres?host=%2Frun%2Fpg&port=5433',
  ],
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
