import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { loadConfiguration, parseConfiguration } from './load.ts';

const SMALL = `clusters:
  app:
    servers: [postgres://holdfast@db1/postgres]
repositories:
  local: { url: file:///var/backups/holdfast }
`;

const FULL = `clusters:
  app:
    servers:
      - postgres://holdfast@db1.internal/postgres
      - postgres://holdfast@db2.internal/postgres
    source: { prefer: standby, maxLag: 2MiB, maxWait: 1m, fallback: fail }
    wal: { mode: stream, slot: holdfast, tailInterval: 5s }
    databases: { include: ["*"], exclude: [template*] }
repositories:
  local:   { url: file:///var/backups/holdfast, required: true }
  offsite: { url: "s3://backups/holdfast?region=eu-central-1", storageClass: GLACIER_IR }
encryption:
  recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p, "gpg:admin@example.org"]
  identity: identity.txt
retention:
  local:   { dumps: { daily: 30 }, base: { weekly: 12 }, wal: 7d, minimumBackups: 2 }
schedule:
  dump:   "0 2 * * *"
  drill:  "0 6 1 1,4,7,10 *"
drill:
  assertions:
    - { database: shop, sql: "select count(*) > 0 from orders" }
state: /var/lib/holdfast
alerts:
  mail:  { smtp: smtp://mail.internal, to: [dba@example.org] }
  slack: { webhook: env:SLACK_WEBHOOK }
  deadMan: https://hc.example/ping/x
`;

function parse(text: string): ReturnType<typeof parseConfiguration> {
  return parseConfiguration(text, '/etc/holdfast/holdfast.yaml', { XDG_STATE_HOME: '/state' });
}

/** What is wrong with a text: message and hint. */
function faults(text: string): { message: string; hint: string } {
  try {
    parse(text);
  } catch (error) {
    assert.ok(error instanceof HoldfastError);
    assert.equal(error.code, 'config-invalid');
    return { message: error.message, hint: error.hint ?? '' };
  }
  throw new Error('the configuration was accepted');
}

test('parseConfiguration() needs a cluster and a repository and fills in the rest', () => {
  const configuration = parse(SMALL);
  assert.deepEqual(configuration.clusterNames, ['app']);
  assert.deepEqual(configuration.clusters['app'], {
    servers: ['postgres://holdfast@db1/postgres'],
    source: { prefer: 'auto', maxLag: 1_048_576, maxWait: 300_000, fallback: 'primary' },
    wal: { mode: 'push', slot: 'holdfast', tailInterval: 5000 },
    databases: { include: ['*'], exclude: [] },
  });
  assert.deepEqual(configuration.repositories, [
    { name: 'local', url: 'file:///var/backups/holdfast', required: true },
  ]);
  assert.deepEqual(configuration.recipients, []);
  assert.equal(configuration.identity, undefined);
  assert.equal(configuration.stateDirectory, '/state/holdfast');
});

test('parseConfiguration() takes every key of the documented file', () => {
  const configuration = parse(FULL);
  assert.equal(configuration.clusters['app']?.source.maxLag, 2 * 1024 ** 2);
  assert.equal(configuration.clusters['app']?.source.maxWait, 60_000);
  assert.equal(configuration.identity, '/etc/holdfast/identity.txt');
  assert.equal(configuration.retention['local']?.wal, 7 * 86_400_000);
  assert.equal(configuration.stateDirectory, '/var/lib/holdfast');
  assert.deepEqual(
    configuration.repositories.map(({ name, required }) => [name, required]),
    [
      ['local', true],
      ['offsite', false],
    ],
  );
});

test('parseConfiguration() requires every repository where none says so', () => {
  const two = `${SMALL}  other: { url: file:///mnt/other }\n`;
  assert.deepEqual(
    parse(two).repositories.map(({ required }) => required),
    [true, true],
  );
  const optional = `${SMALL}  other: { url: file:///mnt/other, required: false }\n`;
  assert.deepEqual(
    parse(optional).repositories.map(({ required }) => required),
    [true, false],
  );
});

test('parseConfiguration() refuses a misspelt key with its line and the nearest known key', () => {
  const { message, hint } = faults(FULL.replace('maxLag', 'max_lag'));
  assert.match(message, /^holdfast\.yaml:6: clusters\.app\.source\.max_lag is not a known key$/);
  assert.match(hint, /"maxLag"/);
});

test('parseConfiguration() refuses a misspelt section', () => {
  const { message, hint } = faults(SMALL.replace('repositories:', 'repository:'));
  assert.match(message, /repository is not a known key/);
  assert.match(message, /repositories is missing/);
  assert.match(hint, /"repositories"/);
});

test('parseConfiguration() lists the known keys where none is near', () => {
  assert.match(faults(`${SMALL}compression: zstd\n`).hint, /known here: clusters, repositories/);
});

test('parseConfiguration() reports everything that is wrong at once', () => {
  const text = FULL.replace('7d', 'seven').replace('fallback: fail', 'fallback: none');
  const { message } = faults(text);
  assert.match(message, /retention\.local\.wal/);
  assert.match(message, /source\.fallback must be one of primary, fail/);
});

test('parseConfiguration() refuses a data directory in place of a connection', () => {
  const { message } = faults(
    SMALL.replace('postgres://holdfast@db1/postgres', '/var/lib/postgresql/15/main'),
  );
  assert.match(message, /holdfast\.yaml:3: .*is a path; .*over a connection/);
});

test('parseConfiguration() refuses other faults, each in its own words', () => {
  const cases: [string, string, RegExp][] = [
    ['file:///var/backups/holdfast', '/var/backups', /write file:\/\/\/var\/backups/],
    ['file:///var/backups/holdfast', 'file://host/backups', /three slashes/],
    ['file:///var/backups/holdfast', 'ftp://host/x', /ftp:\/\/ is not a kind of repository/],
    ['[postgres://holdfast@db1/postgres]', '[]', /at least one server/],
    ['[postgres://holdfast@db1/postgres]', 'postgres://h/d', /servers must be a list/],
    ['  app:', '  "../app":', /must be a name of letters/],
    ['repositories:', 'state: relative\nrepositories:', /absolute path/],
    ['repositories:', 'schedule: { dump: "0 2 * *" }\nrepositories:', /five cron fields/],
    [
      'repositories:',
      'retention: { elsewhere: { wal: 7d } }\nrepositories:',
      /names no repository; there are local/,
    ],
    ['repositories:', 'encryption: { recipients: [bob] }\nrepositories:', /age recipient/],
  ];
  for (const [from, to, wanted] of cases) {
    const text = SMALL.replace(from, to);
    assert.notEqual(text, SMALL);
    assert.match(faults(text).message, wanted, to);
  }
});

test('parseConfiguration() refuses what is not YAML, duplicate keys and an empty file', () => {
  assert.match(faults('clusters: [').message, /^\/etc\/holdfast\/holdfast\.yaml:\d+: /);
  assert.match(faults(`${SMALL}state: /a\nstate: /b\n`).message, /unique/i);
  assert.match(faults('').message, /clusters is missing/);
  assert.match(faults('just text').message, /the file must be a mapping/);
});

test('loadConfiguration() tells a missing file from one that is none', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-config-'));
  try {
    const file = join(directory, 'holdfast.yaml');
    await assert.rejects(loadConfiguration(file, {}), { code: 'config-missing', message: new RegExp(file) });
    await assert.rejects(loadConfiguration(directory, {}), { code: 'config-invalid' });
    await writeFile(file, SMALL);
    assert.equal((await loadConfiguration(file, {})).file, file);
  } finally {
    await rm(directory, { recursive: true });
  }
});

test('parseConfiguration() accepts every example of docs/configuration.md', async () => {
  const document = await readFile(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
  const examples = Array.from(
    document.matchAll(/```yaml\n(clusters:[\s\S]*?)```/g),
    (match) => match[1] ?? '',
  );
  assert.equal(examples.length, 2);
  for (const example of examples) parse(example);
});
