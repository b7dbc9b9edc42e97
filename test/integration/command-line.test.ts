import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';

import { launcherFor } from '../../src/cli/demo/stage-program.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { createCluster, giveToServer, type TestCluster } from '../harness/cluster.ts';

interface Run {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the launcher as the user the server runs as: so an operator's cron and PostgreSQL share one repository. */
async function runnerFor(cluster: TestCluster): Promise<(...words: string[]) => Run> {
  const user = await serverUser();
  const launcher = await launcherFor(user, cluster.scratch);
  await giveToServer(cluster.scratch);
  const identity = user === undefined ? {} : { uid: user.uid, gid: user.gid };
  return (...words) => {
    const { status, stdout, stderr } = spawnSync(launcher, words, {
      cwd: cluster.scratch,
      env: { PATH: process.env['PATH'], HOME: cluster.scratch },
      encoding: 'utf8',
      timeout: 120_000,
      ...identity,
    });
    return { status, stdout, stderr };
  };
}

interface InitResult {
  created: boolean;
  servers: { grants: string; settings: string }[];
}

interface CheckResult {
  ok: boolean;
  findings: { subject: string; status: string; message: string; fix?: string }[];
}

function failures(run: Run): string[] {
  const { findings } = JSON.parse(run.stdout) as CheckResult;
  return findings.filter((finding) => finding.status === 'fail').map((finding) => finding.message);
}

test('init, check, archiving, backup base, list and show work together on a real server', async () => {
  await using cluster = await createCluster({ settings: { archive_mode: 'on' } });
  const holdfast = await runnerFor(cluster);

  const server = cluster.urlOf('holdfast');
  const words = [
    'init',
    '--cluster',
    'app',
    '--wal',
    'push',
    '--repository',
    'repository',
    '--state',
    'state',
    '--yes',
    '--json',
  ];
  const role = holdfast(...words, '--server', server);
  assert.equal(role.status, 3, role.stderr);
  const made = JSON.parse(role.stdout) as InitResult;
  assert.equal(made.created, true);
  const [setup] = made.servers;
  assert.ok(setup !== undefined);

  // What init printed is all it takes.
  await cluster.sql(setup.grants);
  await follow(cluster, setup.settings);
  await cluster.sql('CREATE TABLE t AS SELECT generate_series(1, 1000) AS i');
  await cluster.sql('SELECT pg_switch_wal()');
  await archived(cluster);
  const check = holdfast('check', '--json');
  assert.deepEqual(failures(check), []);
  assert.equal(check.status, 0, check.stderr);
  const { findings } = JSON.parse(check.stdout) as CheckResult;
  assert.ok(findings.some((finding) => /WAL arrives in local/.test(finding.message)));
  assert.ok(findings.some((finding) => /lets holdfast open replication sessions/.test(finding.message)));

  const backup = holdfast('backup', 'base', 'app', '--label', 'first', '--json');
  assert.equal(backup.status, 0, backup.stderr);
  const listed = holdfast('list', 'app', '--json');
  const { backups } = JSON.parse(listed.stdout) as { backups: { id: string; label: string }[] };
  assert.deepEqual(
    backups.map(({ label }) => label),
    ['first'],
  );
  const shown = holdfast('show', backups[0]?.id ?? '');
  assert.equal(shown.status, 0, shown.stderr);
  assert.match(shown.stdout, /first/);
  assert.equal(holdfast('show', '20000101T000000Z-0000').status, 2);
  const window = holdfast('window', 'app', '--json');
  assert.equal(window.status, 0, window.stderr);
});

test('check names the fix where the role lacks rights, archiving is off or the server is wrong', async () => {
  await using cluster = await createCluster();
  const holdfast = await runnerFor(cluster);
  await cluster.sql('CREATE ROLE plain LOGIN');
  const init = ['init', '--cluster', 'app', '--repository', 'repository', '--state', 'state', '--json'];
  const run = holdfast(...init, '--server', cluster.urlOf('plain'));
  assert.equal(run.status, 3, run.stderr);
  const { check } = JSON.parse(run.stdout) as { check: CheckResult };
  const failed = check.findings.filter((finding) => finding.status === 'fail');
  assert.ok(failed.some((finding) => /replication/i.test(finding.message + (finding.fix ?? ''))));
  assert.ok(failed.some((finding) => /archive_mode = off/.test(finding.message)));
  for (const finding of failed) assert.ok((finding.fix ?? '').length > 0, finding.message);

  await cluster.stop();
  const stopped = holdfast('check', '--json');
  assert.equal(stopped.status, 3);
  assert.equal(failures(stopped).length, 1);
  assert.match(
    (await readFile(join(cluster.scratch, 'holdfast.yaml'), 'utf8')).slice(0, 30),
    /Configuration/,
  );
});

test('check finds a repository that is not the one the server archives to', async () => {
  await using cluster = await createCluster({ settings: { archive_mode: 'on' } });
  const holdfast = await runnerFor(cluster);
  const init = [
    'init',
    '--cluster',
    'app',
    '--server',
    cluster.url,
    '--wal',
    'push',
    '--state',
    'state',
    '--json',
  ];
  const one = holdfast(...init, '--repository', 'one', '--config', 'one.yaml');
  holdfast(...init, '--repository', 'two', '--config', 'two.yaml');
  await follow(cluster, (JSON.parse(one.stdout) as InitResult).servers[0]?.settings ?? '');
  await cluster.sql('CREATE TABLE t ()');
  await cluster.sql('SELECT pg_switch_wal()');
  await archived(cluster);
  assert.equal(holdfast('check', '--config', 'one.yaml', '--json').status, 0);
  const wrong = holdfast('check', '--config', 'two.yaml', '--json');
  assert.equal(wrong.status, 3);
  assert.match(failures(wrong)[0] ?? '', /repository local does not have it/);
});

/** Does what `init` says: ALTER SYSTEM stands alone in a transaction, so one statement at a time. */
async function follow(cluster: TestCluster, settings: string): Promise<void> {
  for (const statement of settings.trim().split('\n')) await cluster.sql(statement);
  await cluster.sql('SELECT pg_reload_conf()');
}

/** Waits for the first archived segment. */
async function archived(cluster: TestCluster): Promise<void> {
  const giveUpAt = performance.now() + 60_000;
  for (;;) {
    const [row] = await cluster.sql<{ last: string | null }>(
      'SELECT last_archived_wal AS last FROM pg_stat_archiver',
    );
    if (typeof row?.last === 'string') return;
    assert.ok(performance.now() < giveUpAt, 'nothing was archived within a minute');
    await sleep(100);
  }
}
