/** Restores through the product's own plan, files and proof, of clusters whose commits are known one by one. */
import { chmod, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Client, type QueryResult } from 'pg';

import { systemClock } from '../../src/clock.ts';
import { stopInstance } from '../../src/postgres/instance.ts';
import { type Lsn, parseLsn } from '../../src/postgres/lsn.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { type PlanOptions, type RestorePlan, planRestore } from '../../src/restore/plan.ts';
import { type Proof, proveRestore } from '../../src/restore/proof.ts';
import {
  type RecoveryRequest,
  type TargetOptions,
  parseRecoveryRequest,
} from '../../src/restore/recovery-target.ts';
import { restoreFiles } from '../../src/restore/restore-files.ts';
import { checkTarget } from '../../src/restore/target-directory.ts';
import { readWalArchive } from '../../src/restore/wal-archive.ts';
import { type BackupLab, fetchAllWal } from './backup.ts';
import { type TestCluster, giveToServer, scratchDirectory } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';
import type { WalRepository } from './wal-repository.ts';

/** One transaction of the oracle: it put the row `id` into the table. */
export interface Commit {
  id: number;
  xid: number;
  /** In microseconds since 1970. */
  time: bigint;
  /** Where WAL was to go on right behind it. */
  lsn: Lsn;
}

/** Settings that make commit times readable. */
export const ORACLE_SETTINGS = {
  track_commit_timestamp: 'on',
  autovacuum: 'off',
  checkpoint_timeout: '1d',
  // Where PostgreSQL would read a time without offset nine hours early.
  timezone: 'Asia/Tokyo',
};

export async function createOracleTable(cluster: TestCluster): Promise<void> {
  await cluster.sql(
    'CREATE TABLE oracle (id int PRIMARY KEY, noise text); ALTER TABLE oracle ALTER noise SET STORAGE EXTERNAL',
  );
}

/** Commits rows one by one and notes what the server says about each. `bytes`: WAL of each, about. */
export async function commitRows(
  cluster: TestCluster,
  ids: readonly number[],
  bytes = 20_000,
): Promise<Commit[]> {
  const client = await cluster.connect();
  try {
    const commits: Commit[] = [];
    for (const id of ids) {
      const result = (await client.query(
        `BEGIN; INSERT INTO oracle VALUES (${id}, repeat('${String(id % 10)}abc', ${Math.ceil(bytes / 4)}));
         SELECT pg_current_xact_id()::text AS xid; COMMIT`,
      )) as unknown as QueryResult<{ xid: string }>[];
      const xid = result.find(({ command }) => command === 'SELECT')?.rows[0]?.xid ?? '0';
      const { rows } = await client.query<{ micros: string; lsn: string }>(
        `SELECT (extract(epoch FROM pg_xact_commit_timestamp('${xid}'::xid)) * 1000000)::bigint::text AS micros,
                pg_current_wal_insert_lsn()::text AS lsn`,
      );
      const row = rows[0];
      if (row === undefined) throw new Error('the server said nothing about a commit');
      commits.push({ id, xid: Number(xid), time: BigInt(row.micros), lsn: parseLsn(row.lsn) });
    }
    return commits;
  } finally {
    await client.end();
  }
}

export interface RestoreBench extends AsyncDisposable {
  /** Plans and restores into the same directory again and again, with `delta`. */
  readonly dataDirectory: string;
  /** The program itself, from its sources, under a path that needs quoting. */
  readonly programLauncher: string;
  /** Hands out plain copies of the archive's files as they were when `refresh` ran: fast, and without any judgement. */
  readonly copyLauncher: string;
  /** Brings the plain copies up to date. */
  refresh(): Promise<void>;
  plan(
    options: TargetOptions,
    more?: Partial<PlanOptions>,
  ): Promise<{ plan: RestorePlan; request: RecoveryRequest }>;
  files(
    plan: RestorePlan,
    request: RecoveryRequest,
    launcher?: string,
    more?: { signal?: AbortSignal; progress?: () => void },
  ): Promise<void>;
  prove(plan: RestorePlan, request: RecoveryRequest): Promise<Proof>;
  /** The rows of the oracle in the restored server, which is then stopped. */
  rows(proof: Proof): Promise<number[]>;
  /** Everything: plan, files, proof, rows. */
  restore(
    options: TargetOptions,
    launcher?: string,
  ): Promise<{ plan: RestorePlan; proof: Proof; rows: number[] }>;
}

export async function createRestoreBench(lab: BackupLab, wal: WalRepository): Promise<RestoreBench> {
  const scratch = await scratchDirectory();
  const copies = join(scratch, 'wal');
  const dataDirectory = join(scratch, "da ta's");
  const programLauncher = join(scratch, "hold'fast 100%");
  const copyLauncher = join(scratch, 'copy');
  await writeFile(
    programLauncher,
    `#!/bin/sh\nHOLDFAST_SOURCE=1 XDG_CACHE_HOME='${scratch}/cache' exec '${await reachableLauncher()}' "$@"\n`,
  );
  await writeFile(
    copyLauncher,
    `#!/bin/sh\n[ -e '${copies}'/"$3" ] || exit 1\nexec cp '${copies}'/"$3" "$4"\n`,
  );
  for (const script of [programLauncher, copyLauncher]) await chmod(script, 0o755);
  await giveToServer(scratch);
  const { repository, identity } = lab;
  const bench: RestoreBench = {
    dataDirectory,
    programLauncher,
    copyLauncher,
    async refresh() {
      await rm(copies, { recursive: true, force: true });
      await fetchAllWal(repository, identity, copies);
      await giveToServer(scratch);
      // The lab wrote as this user; the program reads as the server's.
      await giveToServer(wal.directory);
    },
    async plan(options, more = {}) {
      const request = parseRecoveryRequest(options, { now: BigInt(Date.now()) * 1000n });
      const { backups } = await listBackups(repository, identity);
      const size = backups[0]?.server.walSegmentSizeBytes ?? 0;
      const known = backups.map(({ timeline }) => timelineOf(timeline));
      const archive = await readWalArchive(repository, identity, size, known);
      const { target, timeline } = request;
      return { request, plan: await planRestore({ archive, backups, target, timeline, ...more }) };
    },
    async files(plan, request, launcher = copyLauncher, more = {}) {
      await stopInstance(dataDirectory, 'immediate');
      const target = await checkTarget({
        to: dataDirectory,
        record: plan.backup,
        tablespaceMapping: new Map(),
        delta: true,
      });
      await restoreFiles({
        plan,
        target,
        request,
        fetch: {
          launcher,
          configFile: wal.configFile,
          cluster: identity.cluster,
          systemIdentifier: identity.systemIdentifier,
          repository: 'local',
        },
        scratchDirectory: tmpdir(),
        ...more,
      });
    },
    prove: async (plan, request) =>
      await proveRestore({
        plan,
        request,
        dataDirectory,
        owner: await serverUser(),
        roles: ['postgres'],
        stopAfter: false,
        binaries: lab.cluster.binaries,
      }),
    async rows(proof) {
      const client = new Client({ connectionString: proof.server?.url });
      client.on('error', () => undefined);
      await client.connect();
      try {
        const { rows } = await client.query<{ id: number }>('SELECT id FROM oracle ORDER BY id');
        return rows.map(({ id }) => id);
      } finally {
        await client.end();
        await stopInstance(dataDirectory, 'immediate');
        if (proof.server !== undefined)
          await rm(proof.server.socketDirectory, { recursive: true, force: true });
      }
    },
    async restore(options, launcher = copyLauncher) {
      const { plan, request } = await bench.plan(options);
      await bench.files(plan, request, launcher);
      const proof = await bench.prove(plan, request);
      return { plan, proof, rows: await bench.rows(proof) };
    },
    async [Symbol.asyncDispose]() {
      await stopInstance(dataDirectory, 'immediate').catch(() => undefined);
      await rm(scratch, { recursive: true, force: true });
    },
  };
  return bench;
}

/** Waits until the server's clock has moved on by more than a second: a checkpoint's time has whole seconds only. */
export async function passSecond(): Promise<void> {
  await systemClock.sleep(1100);
}
