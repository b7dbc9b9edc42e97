/** Restores of a real server with several timelines, each compared with what was known to be committed. */
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import type { HoldfastError } from '../../src/errors.ts';
import { startInstance } from '../../src/postgres/instance.ts';
import { formatInstant } from '../../src/restore/instant.ts';
import { checkTarget } from '../../src/restore/target-directory.ts';
import { formatLsn } from '../../src/postgres/lsn.ts';
import type { TargetOptions } from '../../src/restore/recovery-target.ts';
import { createBackupLab } from '../harness/backup.ts';
import { availableMajors } from '../harness/cluster.ts';
import { fork } from '../harness/fork.ts';
import {
  type Commit,
  commitRows,
  createOracleTable,
  createRestoreBench,
  ORACLE_SETTINGS,
  passSecond,
} from '../harness/restore.ts';
import { createWalRepository } from '../harness/wal-repository.ts';
import { seededRandom } from '../seeded-random.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const TARGETS = Math.ceil(60 * SCALE);
const SEED = Number(process.env['HOLDFAST_TEST_SEED'] ?? 20_260_101);

interface Branch {
  timeline: number;
  /** Everything committed on the way to its end, in order. */
  commits: Commit[];
}

function range(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => from + index);
}

test(`restore() reaches ${TARGETS} random targets over five branches, each with exactly the rows it should have`, async () => {
  const wal = await createWalRepository();
  const major = (await availableMajors()).at(-1) ?? 0;
  await using lab = await createBackupLab({
    major,
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  const { cluster } = lab;
  await createOracleTable(cluster);
  await using bench = await createRestoreBench(lab, wal);
  const random = seededRandom(SEED);
  const pick = (count: number): number => Math.floor(random() * count);

  // Timeline 1, two backups; then branches off it and off one another, each going on by itself.
  const main: Branch = { timeline: 1, commits: await commitRows(cluster, range(0, 5)) };
  await lab.backup();
  await passSecond();
  main.commits.push(...(await commitRows(cluster, range(5, 35))));
  await lab.backup();
  await passSecond();
  main.commits.push(...(await commitRows(cluster, range(40, 30))));
  await cluster.sql("SELECT pg_create_restore_point('before the fork')");
  await lab.archiveNow();
  const branches = [main];
  const grow = async (parent: Branch, at: number, firstId: number, withBackup: boolean): Promise<void> => {
    const last = parent.commits[at];
    assert(last !== undefined);
    const target = { targetXid: String(last.xid), targetTimeline: String(parent.timeline) };
    await using child = await fork(lab, bench, target);
    const commits = [
      ...parent.commits.slice(0, at + 1),
      ...(await commitRows(child.cluster, range(firstId, 15))),
    ];
    if (withBackup) {
      await child.backup();
      await passSecond();
      commits.push(...(await commitRows(child.cluster, range(firstId + 15, 15))));
    }
    await child.archiveNow();
    branches.push({ timeline: child.timeline, commits });
  };
  await grow(main, 55, 1000, true);
  const second = branches.at(-1);
  assert(second !== undefined);
  await grow(second, 60, 2000, false);
  await grow(main, 50, 3000, true);
  await grow(second, second.commits.length - 3, 4000, false);
  // The original goes on all the while.
  main.commits.push(...(await commitRows(cluster, range(70, 20))));
  await lab.archiveNow();
  assert.deepEqual(
    branches.map(({ timeline }) => timeline),
    [1, 2, 3, 4, 5],
  );
  await bench.refresh();

  for (let index = 0; index < TARGETS; index += 1) {
    const branch = branches[pick(branches.length)];
    assert(branch !== undefined);
    // Neither before the first backup, nor the very last commit, behind which a time proves nothing.
    const at = 6 + pick(branch.commits.length - 8);
    const commit = branch.commits[at];
    const next = branch.commits[at + 1];
    assert(commit !== undefined && next !== undefined);
    const inclusive = random() < 0.6;
    const kind = (['xid', 'time', 'lsn', 'between'] as const)[pick(4)];
    const upTo = at + (inclusive || kind === 'lsn' || kind === 'between' ? 1 : 0);
    const options: TargetOptions = {
      targetTimeline: String(branch.timeline),
      targetAction: random() < 0.5 ? 'promote' : 'pause',
      ...(inclusive ? {} : { targetExclusive: true }),
      ...(kind === 'xid' ? { targetXid: String(commit.xid) } : {}),
      ...(kind === 'time' ? { targetTime: formatInstant(commit.time) } : {}),
      ...(kind === 'between' ? { targetTime: formatInstant((commit.time + next.time + 1n) / 2n) } : {}),
      ...(kind === 'lsn' ? { targetLsn: formatLsn(commit.lsn) } : {}),
    };
    // The program itself fetches for every tenth; it costs more.
    const launcher = index % 10 === 0 ? bench.programLauncher : bench.copyLauncher;
    const said = `target ${index} of seed ${SEED}: ${JSON.stringify(options)}`;
    const { rows, plan } = await bench.restore(options, launcher).catch((error: unknown) => {
      throw new Error(said, { cause: error });
    });
    const expected = branch.commits.slice(0, upTo).map(({ id }) => id);
    assert.deepEqual(
      rows,
      expected.toSorted((a, b) => a - b),
      said,
    );
    assert(rows.length > 5, said);
    if (kind === 'xid' && inclusive) assert.equal(plan.stop.lastCommit?.xid, commit.xid, said);
  }
});

for (const major of await availableMajors()) {
  test(`restore() of PostgreSQL ${major} promotes to a clean configuration that does not archive, pauses, shuts down, follows`, async () => {
    const wal = await createWalRepository();
    await using lab = await createBackupLab({
      major,
      segmentSizeMb: 1,
      repository: wal.repository,
      settings: ORACLE_SETTINGS,
    });
    const { cluster } = lab;
    await createOracleTable(cluster);
    await cluster.sql("ALTER SYSTEM SET archive_mode = 'on'");
    await cluster.sql("ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'");
    await lab.backup();
    await commitRows(cluster, [1, 2]);
    await cluster.sql("SELECT pg_create_restore_point('named ''point')");
    await commitRows(cluster, [3]);
    await lab.archiveNow();
    await using bench = await createRestoreBench(lab, wal);
    await bench.refresh();
    const auto = (): Promise<string> => readFile(join(bench.dataDirectory, 'postgresql.auto.conf'), 'utf8');

    const promoted = await bench.restore({ targetName: "named 'point" }, bench.programLauncher);
    assert.deepEqual(promoted.rows, [1, 2]);
    assert.equal(promoted.proof.state, 'promoted');
    assert.equal(promoted.proof.newTimeline, 2);
    const clean = await auto();
    assert(!clean.includes('BEGIN holdfast'), clean);
    assert.match(clean, /^archive_mode = 'off'$/m);
    assert.doesNotMatch(clean, /^\s*(restore_command|recovery_target)/m);

    const paused = await bench.restore({ targetName: "named 'point", targetAction: 'pause' });
    assert.deepEqual(paused.rows, [1, 2]);
    assert.equal(paused.proof.state, 'paused');
    assert.match(await auto(), /recovery_target_action = 'pause'/);

    const everything = await bench.restore({});
    assert.deepEqual(everything.rows, [1, 2, 3]);

    const { plan, request } = await bench.plan({ target: 'immediate', targetAction: 'shutdown' });
    await bench.files(plan, request);
    const proof = await bench.prove(plan, request);
    assert.equal(proof.state, 'shut down');
    assert.equal(proof.server, undefined);
    assert.equal(proof.reached.lsn, plan.backup.stopLsn);

    const standby = await bench.restore({ standby: true });
    assert.deepEqual(standby.rows, [1, 2, 3]);
    assert.equal(standby.proof.state, 'following');
  });
}

test('restore() that was cut off cannot be started, and goes on with delta', async () => {
  const wal = await createWalRepository();
  await using lab = await createBackupLab({
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  await createOracleTable(lab.cluster);
  await lab.backup();
  await commitRows(lab.cluster, [1, 2]);
  await lab.archiveNow();
  await using bench = await createRestoreBench(lab, wal);
  await bench.refresh();
  const { plan, request } = await bench.plan({});
  const cut = new AbortController();
  await assert.rejects(
    bench.files(plan, request, bench.copyLauncher, {
      signal: cut.signal,
      progress: () => {
        cut.abort();
      },
    }),
    { code: 'cancelled' },
  );
  assert.notEqual((await readdir(bench.dataDirectory)).length, 0);
  const { binaries } = lab.cluster;
  await assert.rejects(startInstance({ binaries, dataDirectory: bench.dataDirectory }), {
    code: 'server-start-failed',
  });
  await assert.rejects(
    checkTarget({ to: bench.dataDirectory, record: plan.backup, tablespaceMapping: new Map(), delta: false }),
    (error: HoldfastError) => error.code === 'data-directory-not-empty' && /--delta/.test(error.hint ?? ''),
  );
  assert.deepEqual((await bench.restore({})).rows, [1, 2]);
});
