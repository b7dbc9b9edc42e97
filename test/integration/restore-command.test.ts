/** `restore base` and `window` as they are typed: what they print, and what each kind of bad input ends with. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Client } from 'pg';

import { startInstance, stopInstance } from '../../src/postgres/instance.ts';
import { encodeClearObject } from '../../src/repository/clear-object.ts';
import { recordKey } from '../../src/repository/layout.ts';
import type { BackupRecord } from '../../src/repository/backup-record.ts';
import { createBackupLab, type BackupLab } from '../harness/backup.ts';
import { freePort } from '../harness/free-port.ts';
import { giveToServer, scratchDirectory } from '../harness/cluster.ts';
import { type Commit, commitRows, createOracleTable, ORACLE_SETTINGS } from '../harness/restore.ts';
import { reachableLauncher } from '../harness/launcher.ts';
import { createWalRepository, type WalRepository } from '../harness/wal-repository.ts';

let wal: WalRepository;
let lab: BackupLab;
let scratch: string;
let config: string;
let backup: BackupRecord;
let commits: Commit[];

/** The program whose launcher the servers' user can run: it writes the path of its own launcher into settings. */
let program: {
  runProgram: typeof import('../../src/cli/program.ts').runProgram;
  exitStatus: typeof import('../../src/cli/exit.ts').exitStatus;
  HoldfastError: typeof import('../../src/errors.ts').HoldfastError;
};

before(async () => {
  const sources = join(await reachableLauncher(), '..', '..', 'src');
  program = {
    ...((await import(join(sources, 'cli', 'program.ts'))) as Pick<typeof program, 'runProgram'>),
    ...((await import(join(sources, 'cli', 'exit.ts'))) as Pick<typeof program, 'exitStatus'>),
    ...((await import(join(sources, 'errors.ts'))) as Pick<typeof program, 'HoldfastError'>),
  };
  wal = await createWalRepository();
  lab = await createBackupLab({ segmentSizeMb: 1, repository: wal.repository, settings: ORACLE_SETTINGS });
  await createOracleTable(lab.cluster);
  const location = join(lab.cluster.scratch, 'fast one');
  await mkdir(location);
  await giveToServer(lab.cluster.scratch);
  backup = await lab.backup();
  commits = await commitRows(lab.cluster, [1, 2, 3]);
  await lab.archiveNow();
  scratch = await scratchDirectory();
  config = await writeConfig('holdfast.yaml', `file://${wal.root}`);
  await giveToServer(wal.directory);
});

after(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(scratch, { recursive: true, force: true });
});

async function writeConfig(name: string, url: string, more = ''): Promise<string> {
  const path = join(scratch, name);
  await writeFile(
    path,
    `clusters:\n  lab:\n    servers: ["postgres://holdfast@localhost/postgres"]\nrepositories:\n  local: { url: "${url}" }\nstate: ${scratch}/state\n${more}`,
  );
  await giveToServer(scratch);
  return path;
}

interface Ended {
  status: number;
  code: string | undefined;
  message: string;
  hint: string;
  out: string;
  /** The last line, where that is JSON. */
  json: Record<string, unknown>;
}

async function holdfast(...words: string[]): Promise<Ended> {
  let out = '';
  const sink = (write: (text: string) => void) => ({ write, isTerminal: false, columns: () => 80 });
  const { runProgram, exitStatus, HoldfastError } = program;
  const ended = await runProgram(words.includes('--config') ? words : [...words, '--config', config], {
    stdout: sink((text) => {
      out += text;
    }),
    stderr: sink(() => undefined),
    environment: process.env,
    directory: scratch,
    signal: new AbortController().signal,
  }).then(
    () => undefined,
    (error: unknown) => error,
  );
  const last = out.trimEnd().split('\n').at(-1) ?? '';
  return {
    status: ended === undefined ? 0 : exitStatus(ended),
    code: ended instanceof HoldfastError ? ended.code : undefined,
    message: ended instanceof Error ? ended.message : '',
    hint: ended instanceof HoldfastError ? (ended.hint ?? '') : '',
    out,
    json: last.startsWith('{') ? (JSON.parse(last) as Record<string, unknown>) : {},
  };
}

async function rowsAt(url: string): Promise<number[]> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query<{ id: number }>('SELECT id FROM oracle ORDER BY id')).rows.map(({ id }) => id);
  } finally {
    await client.end();
  }
}

test('restore base --start --json restores, proves and says how to go on', async () => {
  const to = join(scratch, 'started');
  const xid = String(commits[1]?.xid);
  const ended = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    to,
    '--target-xid',
    xid,
    '--start',
    '--json',
  );
  assert.equal(ended.status, 0, ended.message);
  const { json } = ended;
  const server = json['server'] as { url: string };
  assert.deepEqual(await rowsAt(server.url), [1, 2]);
  const reached = json['reached'] as { lsn: string; timeline: number; lastCommitTime: string };
  const promised = json['promised'] as { lsn: string; timeline: number; lastCommitTime: string };
  assert.deepEqual(
    [reached.lsn, reached.timeline, reached.lastCommitTime],
    [promised.lsn, 1, promised.lastCommitTime],
  );
  assert.equal(json['backup'], backup.id);
  assert.equal(json['state'], 'promoted');
  // A running server's directory is never touched, with or without --delta.
  for (const flags of [[], ['--delta']]) {
    const again = await holdfast('restore', 'base', 'lab', '--to', to, ...flags);
    assert.deepEqual([again.status, again.code], [60, 'data-directory-in-use']);
  }
  await stopInstance(to, 'fast');
  const full = await holdfast('restore', 'base', 'lab', '--to', to);
  assert.deepEqual([full.status, full.code], [60, 'data-directory-not-empty']);
});

test('restore base --start --port leaves a server that listens and needs nothing of ours', async () => {
  const to = join(scratch, 'ported');
  const port = await freePort();
  const ended = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    to,
    '--start',
    '--port',
    String(port),
    '--json',
  );
  assert.equal(ended.status, 0, ended.message);
  const server = ended.json['server'] as { url: string; port: number };
  assert.equal(server.port, port);
  assert.deepEqual(await rowsAt(server.url), [1, 2, 3]);
  await stopInstance(to, 'fast');
});

test('restore base without --start prints what to type, and that works', async () => {
  const to = join(scratch, 'plain');
  const ended = await holdfast('restore', 'base', 'lab', '--to', to, '--target', 'latest');
  assert.equal(ended.status, 0, ended.message);
  assert.match(ended.out, /pg_ctl -D .*plain/);
  assert.match(ended.out, /pg_last_wal_replay_lsn/);
  const { binaries } = lab.cluster;
  const instance = await startInstance({ binaries, dataDirectory: to });
  try {
    for (let tries = 0; ; tries += 1) {
      const rows = await rowsAt(instance.url());
      if (rows.length === 3) break;
      assert(tries < 100, `only ${rows.length} rows`);
    }
  } finally {
    await instance.stop('fast');
  }
});

test('restore base --dry-run prints the plan and writes nothing', async () => {
  const before = await readdir(scratch);
  const words = [
    'restore',
    'base',
    'lab',
    '--to',
    join(scratch, 'dry'),
    '--target-xid',
    String(commits[0]?.xid),
    '--dry-run',
  ];
  const text = await holdfast(...words);
  assert.equal(text.status, 0, text.message);
  assert.match(text.out, new RegExp(`Backup +${backup.id}`));
  const { json } = await holdfast(...words, '--json');
  for (const key of [
    'backup',
    'repository',
    'segments',
    'bytes',
    'promised',
    'stop',
    'missing',
    'timelines',
  ]) {
    assert(key in json, key);
  }
  assert.deepEqual(json['missing'], []);
  assert.deepEqual(await readdir(scratch), before);
});

test('window tells what can be restored', async () => {
  const { json, out } = await holdfast('window', 'lab', '--json');
  const [repository] = json['repositories'] as {
    branches: { timeline: number; ranges: { from: { backup: string; lsn: string }; gap: null }[] }[];
  }[];
  const range = repository?.branches[0]?.ranges[0];
  assert.deepEqual([range?.from.backup, range?.from.lsn, range?.gap], [backup.id, backup.stopLsn, null], out);
  assert.match((await holdfast('window', 'lab')).out, new RegExp(backup.stopLsn));
});

test('restore base refuses bad input, each with its own error, and writes nothing', async () => {
  const to = join(scratch, 'refused');
  const base = ['restore', 'base', 'lab', '--to', to];
  await mkdir(join(scratch, 'full', 'inner'), { recursive: true });
  await symlink(join(scratch, 'full'), join(scratch, 'link'));
  const cases: [string[], number, string][] = [
    [['restore', 'base', 'nobody', '--to', to], 2, 'cluster-unknown'],
    [['restore', 'base', 'lab'], 2, 'usage-invalid'],
    [[...base, '--target-xid', '800', '--target-lsn', '0/1'], 2, 'option-conflict'],
    [[...base, '--target-time', '2026-01-01 00:00:00'], 2, 'time-ambiguous'],
    [[...base, '--target-time', 'yesterday'], 2, 'usage-invalid'],
    [[...base, '--target-time', '2020-01-01 00:00:00Z'], 60, 'target-unreachable'],
    [[...base, '--target-time', '2099-01-01 00:00:00Z'], 60, 'target-unreachable'],
    [[...base, '--target-lsn', '0/10'], 60, 'target-unreachable'],
    [[...base, '--target-lsn', 'F/0'], 60, 'target-unreachable'],
    [[...base, '--target-xid', '4000000000'], 60, 'target-unreachable'],
    [[...base, '--target-name', 'nowhere'], 60, 'target-unreachable'],
    [[...base, '--target-timeline', '9'], 60, 'target-unreachable'],
    [[...base, '--backup', 'nothing'], 2, 'backup-unknown'],
    [[...base, '--repository', 'nowhere'], 2, 'config-invalid'],
    [[...base, '--tablespace-mapping', '/a=/b'], 2, 'usage-invalid'],
    [[...base, '--port', '5432'], 2, 'option-conflict'],
    [['restore', 'base', 'lab', '--to', join(scratch, 'full')], 60, 'data-directory-not-empty'],
    [['restore', 'base', 'lab', '--to', join(scratch, 'link')], 60, 'data-directory-not-empty'],
    [['restore', 'base', 'lab', '--to', lab.cluster.dataDir], 60, 'data-directory-in-use'],
    [['restore', 'base', 'lab', '--to', join(lab.cluster.dataDir, 'base', 'x')], 60, 'data-directory-in-use'],
    [['restore', 'base', 'lab', '--to', join(scratch, 'no', 'such')], 2, 'usage-invalid'],
  ];
  const before = (await readdir(scratch)).sort();
  for (const [words, status, code] of cases) {
    const ended = await holdfast(...words);
    assert.deepEqual([ended.status, ended.code], [status, code], `${words.join(' ')}: ${ended.message}`);
    assert.equal(ended.out, '', words.join(' '));
    if (!['usage-invalid', 'option-conflict'].includes(code))
      assert.notEqual(ended.hint, '', words.join(' '));
  }
  assert.deepEqual((await readdir(scratch)).sort(), before);
  assert.deepEqual(await readdir(join(scratch, 'full')), ['inner']);
});

test('restore base names the nearest points that can be reached', async () => {
  const early = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    join(scratch, 'x'),
    '--target-time',
    '2020-01-01 00:00Z',
  );
  assert.match(early.message, new RegExp(`behind it: ${backup.stopLsn}`));
  const late = await holdfast('restore', 'base', 'lab', '--to', join(scratch, 'x'), '--target-lsn', 'F/0');
  assert.match(late.message, /before it: 0\//);
  const future = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    join(scratch, 'x'),
    '--target-time',
    '2099-01-01 00:00Z',
  );
  assert.match(future.hint, /--target latest/);
});

test('restore base refuses a misspelt key, a missing repository, a newer format and a damaged record', async () => {
  const to = join(scratch, 'refused');
  const misspelt = await writeConfig('misspelt.yaml', `file://${wal.root}`, 'retentoin: {}\n');
  const first = await holdfast('restore', 'base', 'lab', '--to', to, '--config', misspelt);
  assert.deepEqual([first.status, first.code], [2, 'config-invalid']);
  assert.match(`${first.message} ${first.hint}`, /retention/);
  await mkdir(join(scratch, 'empty'));
  const nothing = await writeConfig('nothing.yaml', `file://${scratch}/empty`);
  const second = await holdfast('restore', 'base', 'lab', '--to', to, '--config', nothing);
  assert.deepEqual([second.status, second.code], [10, 'repository-missing']);
  await writeFile(
    join(scratch, 'empty', 'holdfast.json'),
    encodeClearObject({ format: 2, repositoryId: 'x', created: '2026-01-01T00:00:00Z' }),
  );
  const third = await holdfast('restore', 'base', 'lab', '--to', to, '--config', nothing);
  assert.deepEqual([third.status, third.code], [13, 'format-too-new']);
  const key = join(wal.root, recordKey(lab.identity, backup.id));
  const bytes = await readFile(key);
  try {
    await writeFile(key, bytes.subarray(0, bytes.length - 20));
    const fourth = await holdfast('restore', 'base', 'lab', '--to', to);
    assert.deepEqual([fourth.status, fourth.code], [50, 'object-damaged'], fourth.message);
  } finally {
    await writeFile(key, bytes);
    await giveToServer(wal.directory);
  }
  assert(!(await readdir(scratch)).includes('refused'));
});

test('restore base asks where tablespaces go, and puts them there', async () => {
  const { cluster } = lab;
  const location = join(cluster.scratch, 'fast one');
  await cluster.sql(`CREATE TABLESPACE fast LOCATION '${location}'`);
  await cluster.sql('CREATE TABLE away (id int) TABLESPACE fast; INSERT INTO away VALUES (42)');
  await lab.backup();
  await lab.archiveNow();
  await giveToServer(wal.directory);
  const to = join(scratch, 'spaced');
  const refused = await holdfast('restore', 'base', 'lab', '--to', to);
  assert.deepEqual([refused.status, refused.code], [2, 'usage-invalid']);
  assert(refused.hint.includes(`--tablespace-mapping '${location}=`), refused.hint);
  const same = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    to,
    '--tablespace-mapping',
    `${location}=${location}`,
  );
  assert.deepEqual([same.status, same.code], [60, 'data-directory-not-empty']);
  const mapping = `${location}=${join(scratch, 'spaced fast')}`;
  const ended = await holdfast(
    'restore',
    'base',
    'lab',
    '--to',
    to,
    '--tablespace-mapping',
    mapping,
    '--start',
    '--json',
  );
  assert.equal(ended.status, 0, ended.message);
  const client = new Client({ connectionString: (ended.json['server'] as { url: string }).url });
  await client.connect();
  const { rows } = await client.query<{ id: number; place: string }>(
    "SELECT id, pg_tablespace_location(oid) AS place FROM away, pg_tablespace WHERE spcname = 'fast'",
  );
  await client.end();
  await stopInstance(to, 'fast');
  assert.deepEqual(rows, [{ id: 42, place: join(scratch, 'spaced fast') }]);
});
