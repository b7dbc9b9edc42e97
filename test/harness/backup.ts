/** A cluster with a repository: base backups of it, its WAL in the repository, and clusters restored from there. */
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';

import {
  type BaseBackupEvent,
  type BaseBackupRequest,
  takeBaseBackup,
} from '../../src/backup/base-backup.ts';
import { systemClock } from '../../src/clock.ts';
import { type Lsn, parseLsn } from '../../src/postgres/lsn.ts';
import { historyFileName, type TimelineId, timelineOf } from '../../src/postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../../src/postgres/wal-segment.ts';
import { serverUser } from '../../src/postgres/server-user.ts';
import type { BackupRecord } from '../../src/repository/backup-record.ts';
import type { ClusterIdentity } from '../../src/repository/layout.ts';
import { initializeRepository, type Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../../src/repository/wal-file.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { commitDataDirectory } from '../../src/restore/data-tree.ts';
import { type WrittenFiles, writeBackupFiles } from '../../src/restore/write-files.ts';
import { generateIdentity, parseIdentities } from '../../src/seal/identity.ts';
import { openerFor, sealerFor } from '../../src/seal/sealers.ts';
import { createMemoryStorage } from '../../src/storage/memory.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { pushWal } from '../../src/wal/push.ts';
import { type ClusterOptions, createCluster, giveToServer, type TestCluster } from './cluster.ts';

/** `age-write-only`: sealed for a recipient whose identity this host does not have. */
export type SealChoice = 'none' | 'age' | 'age-write-only';

const ageKey = generateIdentity();

/** An initialised repository on a store; a new one in memory if none is given. The key of `age` is this process's. */
export async function testRepository(
  options: { storage?: Storage; seal?: SealChoice; name?: string } = {},
): Promise<Repository> {
  const { storage = createMemoryStorage(), seal = 'none', name = 'local' } = options;
  const identities = seal === 'age' ? parseIdentities(ageKey.identity, 'the test') : [];
  const keys = {
    sealer: await sealerFor(seal === 'none' ? [] : [ageKey.recipient]),
    opener: (kind: Parameters<Repository['opener']>[0]) => openerFor(kind, identities),
  };
  const now = new Date('2026-01-01T00:00:00Z');
  return (await initializeRepository(name, storage, keys, now)).repository;
}

/** The same repository on a host that has the identity. */
export async function withIdentity(repository: Repository): Promise<Repository> {
  return testRepository({ storage: repository.storage, seal: 'age', name: repository.name });
}

export interface BackupLabOptions extends ClusterOptions {
  /** Default: a new one in memory, not sealed. */
  repository?: Repository;
}

export interface TakeOptions extends Partial<Omit<BaseBackupRequest, 'report'>> {
  /** Where the backup is read from; default the lab's cluster. WAL always comes from the lab's cluster. */
  from?: TestCluster;
  report?: (event: BaseBackupEvent) => void;
}

export interface BackupLab extends AsyncDisposable {
  readonly cluster: TestCluster;
  readonly repository: Repository;
  readonly identity: ClusterIdentity;
  readonly stateDirectory: string;
  /** What the backups so far reported, in order, but for their progress. */
  readonly events: BaseBackupEvent[];
  /** Takes a base backup; WAL is pushed when it is waited for. */
  backup(options?: TakeOptions): Promise<BackupRecord>;
  /**
   * Pushes the finished segments of the cluster's timeline, and its history file, as its archiver would: those from an
   * LSN on, or all.
   */
  pushWal(from?: string): Promise<void>;
  /** Ends the current segment and pushes it. */
  archiveNow(from?: string): Promise<void>;
}

/** Starts a cluster to be backed up. It does not archive by itself: the lab pushes its WAL. */
export async function createBackupLab(options: BackupLabOptions = {}): Promise<BackupLab> {
  const { repository = await testRepository(), ...clusterOptions } = options;
  const cluster = await createCluster({
    ...clusterOptions,
    // Nothing may be recycled before it is pushed.
    settings: { wal_keep_size: '1GB', max_wal_senders: '8', ...clusterOptions.settings },
  });
  try {
    return await backupLab(cluster, repository);
  } catch (error) {
    await cluster[Symbol.asyncDispose]();
    throw error;
  }
}

/** The same for a cluster that runs already; ending the lab ends it. */
export async function backupLab(cluster: TestCluster, repository: Repository): Promise<BackupLab> {
  const identity = { cluster: 'lab', systemIdentifier: await systemIdentifierOf(cluster) };
  const stateDirectory = join(cluster.scratch, 'state');
  const events: BaseBackupEvent[] = [];
  const pushed = new Set<string>();

  const push = async (name: string): Promise<void> => {
    if (pushed.has(name)) return;
    await pushWal({
      path: join(cluster.dataDir, 'pg_wal', name),
      repositories: [repository],
      cluster: { configured: [identity.cluster] },
      host: hostname(),
      now: () => new Date(),
    });
    pushed.add(name);
  };
  const lab: BackupLab = {
    cluster,
    repository,
    identity,
    stateDirectory,
    events,
    async pushWal(from) {
      const { timeline, segmentSize, flushed, oldest } = await walPosition(cluster);
      if (timeline > 1) await push(historyFileName(timeline));
      const end = segmentOfLsn(flushed, segmentSize);
      const first = from === undefined ? oldest : segmentOfLsn(parseLsn(from), segmentSize);
      for (let number = first; number < end; number += 1n) {
        await push(walSegmentName(timeline, number, segmentSize));
      }
    },
    async archiveNow(from) {
      await cluster.sql('SELECT pg_switch_wal()');
      await lab.pushWal(from);
    },
    async backup({ from = cluster, ...overrides } = {}) {
      const [facts] = await from.sql<{ version: string; text: string; standby: boolean }>(
        `SELECT current_setting('server_version_num') AS version, current_setting('server_version') AS text,
                pg_is_in_recovery() AS standby`,
      );
      let startLsn: string | undefined;
      return await takeBaseBackup({
        repository,
        identity,
        server: {
          url: from.url,
          version: Number(facts?.version),
          versionText: facts?.text ?? '',
          role: facts?.standby === true ? 'standby' : 'primary',
          reason: 'the only one',
        },
        label: 'test',
        pinned: false,
        stateDirectory,
        programVersion: '0.0.0',
        clock: systemClock,
        walTimeoutMs: 30_000,
        endSegment: () => (facts?.standby === true ? lab.archiveNow(startLsn) : lab.pushWal(startLsn)),
        ...overrides,
        report: (event) => {
          if (event.event !== 'progress') events.push(event);
          if (event.event === 'started') startLsn = event.startLsn;
          overrides.report?.(event);
        },
      });
    },
    [Symbol.asyncDispose]: () => cluster[Symbol.asyncDispose](),
  };
  return lab;
}

export interface RestoreOptions {
  /** New location by old location. */
  tablespaces?: ReadonlyMap<string, string>;
  /** Where it is read from; default the lab's repository. */
  repository?: Repository;
  /** Appended to postgresql.conf behind the recovery settings. */
  settings?: Record<string, string>;
}

export interface RestoredCluster extends TestCluster {
  readonly written: WrittenFiles;
}

/** Restores a backup into a new cluster and recovers it to consistency, where it is promoted. */
export async function restoreCluster(
  lab: BackupLab,
  record: BackupRecord,
  options: RestoreOptions = {},
): Promise<RestoredCluster> {
  const { repository = lab.repository } = options;
  const cluster = await createCluster({ major: lab.cluster.major, start: false });
  try {
    await rm(cluster.dataDir, { recursive: true });
    const written = await restoreFiles(cluster.dataDir, record, { ...options, repository });
    const archive = join(cluster.scratch, 'wal');
    await fetchAllWal(repository, lab.identity, archive);
    await writeFile(join(cluster.dataDir, 'recovery.signal'), '');
    await cluster.configure({
      archive_mode: 'off',
      restore_command: `cp "${archive}/%f" "%p"`,
      recovery_target: 'immediate',
      recovery_target_action: 'promote',
      ...options.settings,
    });
    await giveToServer(cluster.scratch);
    await cluster.start();
    await untilPromoted(cluster);
    return Object.assign(Object.create(cluster) as TestCluster, { written });
  } catch (error) {
    await cluster[Symbol.asyncDispose]();
    throw error;
  }
}

/** Writes the files of a backup into a new directory and makes it a data directory. */
export async function restoreFiles(
  directory: string,
  record: BackupRecord,
  options: RestoreOptions & { repository: Repository; delta?: boolean },
): Promise<WrittenFiles> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const owner = await serverUser();
  const { repository, tablespaces = new Map<string, string>(), delta = false } = options;
  const written = await writeBackupFiles({
    repository,
    record,
    targetDirectory: directory,
    tablespaceMapping: tablespaces,
    delta,
    scratchDirectory: tmpdir(),
    ...(owner && { owner }),
  });
  await commitDataDirectory(directory);
  return written;
}

/** Every WAL file of the repository, as plain files in a directory. */
export async function fetchAllWal(
  repository: Repository,
  identity: ClusterIdentity,
  directory: string,
): Promise<void> {
  await mkdir(directory, { recursive: true });
  for await (const { name } of listWal(repository, identity)) {
    const header = await readWalHeader(repository, identity, name);
    if (header === undefined) throw new Error(`${name} was listed and is gone`);
    await writeFile(join(directory, name), await readWholeWalFile(repository, header, 2 ** 30));
  }
}

/** A streaming standby of a running cluster, made from a cold copy of it. */
export async function createStandby(primary: TestCluster): Promise<TestCluster> {
  const standby = await createCluster({ major: primary.major, start: false });
  try {
    await primary.stop();
    await rm(standby.dataDir, { recursive: true });
    await cp(primary.dataDir, standby.dataDir, { recursive: true, preserveTimestamps: true });
    await primary.start();
    await writeFile(join(standby.dataDir, 'standby.signal'), '');
    await standby.configure({
      primary_conninfo: `host=${primary.socketDir} port=${primary.port} user=postgres`,
    });
    await giveToServer(standby.scratch);
    await standby.start();
    return standby;
  } catch (error) {
    await standby[Symbol.asyncDispose]();
    throw error;
  }
}

/** Waits until a standby has replayed all that the primary has written so far. */
export async function untilCaughtUp(standby: TestCluster, primary: TestCluster): Promise<void> {
  const [row] = await primary.sql<{ lsn: string }>('SELECT pg_current_wal_flush_lsn()::text AS lsn');
  await until(
    `replay of ${row?.lsn}`,
    async () =>
      (await standby.sql<{ done: boolean }>(`SELECT pg_last_wal_replay_lsn() >= '${row?.lsn}' AS done`))[0]
        ?.done === true,
  );
}

/** Asks again and again; fails after 30 s. */
export async function until(what: string, reached: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!(await reached())) {
    if (performance.now() > deadline) throw new Error(`${what} did not come about within 30 s`);
    await systemClock.sleep(50);
  }
}

async function untilPromoted(cluster: TestCluster): Promise<void> {
  await until('the end of recovery', async () => {
    const [row] = await cluster.sql<{ standby: boolean }>('SELECT pg_is_in_recovery() AS standby');
    return row?.standby === false;
  });
}

async function systemIdentifierOf(cluster: TestCluster): Promise<string> {
  const [row] = await cluster.sql<{ id: string }>(
    'SELECT system_identifier::text AS id FROM pg_control_system()',
  );
  return row?.id ?? '';
}

interface WalPosition {
  timeline: TimelineId;
  segmentSize: number;
  flushed: Lsn;
  /** Number of the oldest segment of this timeline in pg_wal. */
  oldest: bigint;
}

async function walPosition(cluster: TestCluster): Promise<WalPosition> {
  const [row] = await cluster.sql<{ lsn: string; timeline: number; size: string; oldest: string }>(
    `SELECT pg_current_wal_flush_lsn()::text AS lsn, size, timeline,
            (SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'
              AND name LIKE lpad(upper(to_hex(timeline)), 8, '0') || '%') AS oldest
       FROM (SELECT setting AS size FROM pg_settings WHERE name = 'wal_segment_size') AS s,
            (SELECT ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int AS timeline) AS t`,
  );
  if (row === undefined) throw new Error('the server gave no position');
  const segmentSize = Number(row.size);
  const perHigh = 2n ** 32n / BigInt(segmentSize);
  const [high, low] = [row.oldest.slice(8, 16), row.oldest.slice(16)];
  return {
    timeline: timelineOf(row.timeline),
    segmentSize,
    flushed: parseLsn(row.lsn),
    oldest: BigInt(`0x${high}`) * perHigh + BigInt(`0x${low}`),
  };
}
