/** Five real timelines in one repository, made once, and copies of it to punch holes into. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { parseLsn } from '../../src/postgres/lsn.ts';
import { parseWalSegmentName, segmentStart } from '../../src/postgres/wal-segment.ts';
import { summarizeWalSegment } from '../../src/postgres/wal-summary.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { type ClusterIdentity, walHeaderKey } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile, storeWalFile } from '../../src/repository/wal-file.ts';
import { compressFrames, piecesOf } from '../../src/repository/wal-frames.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { blake3Hex } from '../../src/stream/hash.ts';
import { seededRandom } from '../seeded-random.ts';
import { storePiece } from '../tail-lab.ts';
import { openTestRepository } from '../wal-lab.ts';
import { type BackupLab, createBackupLab } from './backup.ts';
import { scratchDirectory } from './cluster.ts';
import { fork } from './fork.ts';
import {
  type Commit,
  commitRows,
  createOracleTable,
  createRestoreBench,
  ORACLE_SETTINGS,
  passSecond,
} from './restore.ts';
import { type WalRepository, createWalRepository } from './wal-repository.ts';

/** Of the segments. */
export const SIZE = 2 ** 20;

/** A copy of the repository to punch holes into. */
export interface Copy {
  root: string;
  repository: Repository;
  random: () => number;
  /** Of those a timeline had in the beginning; negative counts from the end. */
  segment: (timeline: number, index: number) => string;
  deleteHeader: (name: string) => Promise<void>;
  deleteData: (name: string) => Promise<void>;
  truncateData: (name: string) => Promise<void>;
  corruptHeader: (name: string) => Promise<void>;
  /** Stores it anew as a server with bad memory would have written it. */
  damageAtSource: (name: string) => Promise<void>;
}

export interface Family extends AsyncDisposable {
  readonly lab: BackupLab;
  readonly wal: WalRepository;
  readonly scratch: string;
  /** Names of the segments of each timeline, in order. The newest, 5, ends in tails. */
  readonly stored: ReadonlyMap<number, readonly string[]>;
  /** Ids of the backups of each timeline. */
  readonly backups: ReadonlyMap<number, readonly string[]>;
  /** Of timeline 1. */
  readonly commits: readonly Commit[];
  copy(name: string, seed: number): Promise<Copy>;
}

function ids(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => from + index);
}

/**
 * Timeline 1 with two backups, 2 off it with one, 3 and 5 off 2, 4 off 1, each with some segments of its own; a backup on
 * 5, which is the newest.
 */
export async function createFamily(): Promise<Family> {
  const scratch = await scratchDirectory();
  const wal = await createWalRepository();
  const lab = await createBackupLab({
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  const commits = await makeBranches(lab, wal);
  const stored = new Map<number, string[]>();
  for await (const { kind, name, timeline } of listWal(wal.repository, lab.identity)) {
    if (kind === 'segment') stored.set(timeline, [...(stored.get(timeline) ?? []), name]);
  }
  const backups = new Map<number, string[]>();
  for (const { id, timeline } of (await listBackups(wal.repository, lab.identity)).backups) {
    backups.set(timeline, [...(backups.get(timeline) ?? []), id]);
  }
  assert.deepEqual([...stored.keys()], [1, 2, 3, 4, 5]);
  return {
    lab,
    wal,
    scratch,
    stored,
    backups,
    commits,
    copy: async (name, seed) => copyOf(join(scratch, name), seed, wal.root, lab.identity, stored),
    async [Symbol.asyncDispose]() {
      await lab[Symbol.asyncDispose]();
      await rm(wal.directory, { recursive: true, force: true });
    },
  };
}

async function makeBranches(lab: BackupLab, wal: WalRepository): Promise<Commit[]> {
  await createOracleTable(lab.cluster);
  await using bench = await createRestoreBench(lab, wal);
  /** Some segments with some commits each. */
  const grow = async (on: BackupLab, from: number, segments: number): Promise<Commit[]> => {
    const made: Commit[] = [];
    for (let n = 0; n < segments; n += 1) {
      made.push(...(await commitRows(on.cluster, ids(from + n * 3, 3))));
      await on.archiveNow();
    }
    return made;
  };
  await lab.backup();
  await passSecond();
  const first = await grow(lab, 0, 3);
  await lab.backup();
  await passSecond();
  const second = await grow(lab, 100, 3);
  const at = (
    commit: Commit | undefined,
    timeline: number,
  ): { targetXid: string; targetTimeline: string } => ({
    targetXid: String(commit?.xid),
    targetTimeline: String(timeline),
  });
  {
    await using two = await fork(lab, bench, at(second[4], 1));
    await two.backup();
    await passSecond();
    const own = await grow(two, 200, 3);
    {
      await using three = await fork(lab, bench, at(own[4], 2));
      await grow(three, 300, 2);
    }
    await using four = await fork(lab, bench, at(second[1], 1));
    await grow(four, 400, 2);
    await using five = await fork(lab, bench, at(own[7], 2));
    await grow(five, 500, 2);
    await five.backup();
    await passSecond();
    await grow(five, 600, 2);
    await storeTailOf(five);
  }
  return [...first, ...second];
}

/** What the server has written of its current segment, as two tails. */
async function storeTailOf({ cluster, repository, identity }: BackupLab): Promise<void> {
  await commitRows(cluster, ids(700, 3));
  const [row] = await cluster.sql<{ lsn: string; name: string }>(
    'SELECT pg_current_wal_flush_lsn()::text AS lsn, pg_walfile_name(pg_current_wal_flush_lsn()) AS name',
  );
  assert(row !== undefined);
  const bytes = await readFile(join(cluster.dataDir, 'pg_wal', row.name));
  const { segmentNumber } = parseWalSegmentName(row.name, SIZE);
  const end = Number(parseLsn(row.lsn) - segmentStart(segmentNumber, SIZE));
  const middle = Math.floor(end / 2);
  await storePiece(repository, identity, row.name, bytes, 0, middle);
  await storePiece(repository, identity, row.name, bytes, middle, end);
}

async function copyOf(
  root: string,
  seed: number,
  original: string,
  identity: ClusterIdentity,
  stored: ReadonlyMap<number, readonly string[]>,
): Promise<Copy> {
  execFileSync('cp', ['-al', original, root]);
  const repository = await openTestRepository(createLocalStorage(root));
  const headerKey = (file: string): string => walHeaderKey(identity, file);
  const dataKey = async (file: string): Promise<string> =>
    (await readWalHeader(repository, identity, file))?.stored.key ?? assert.fail(`no ${file}`);
  // The files are shared with the original by hard links: a changed one is a new one.
  const replace = (key: string, change: (bytes: Buffer) => Buffer): void => {
    const path = join(root, key);
    const bytes = change(readFileSync(path));
    rmSync(path);
    writeFileSync(path, bytes);
  };
  const copy: Copy = {
    root,
    repository,
    random: seededRandom(seed),
    segment: (timeline, index) =>
      stored.get(timeline)?.at(index) ?? assert.fail(`timeline ${timeline} has no segment ${index}`),
    deleteHeader: (file) => repository.storage.delete(headerKey(file)),
    deleteData: async (file) => repository.storage.delete(await dataKey(file)),
    truncateData: async (file) => {
      replace(await dataKey(file), (bytes) => bytes.subarray(0, -1));
    },
    corruptHeader: async (file) => {
      replace(headerKey(file), (bytes) => Buffer.from(bytes.toString().replace('"hash":"', '"hash":"0')));
    },
    damageAtSource: async (file) => {
      const header = await readWalHeader(repository, identity, file);
      assert(header !== undefined);
      const bytes = await readWholeWalFile(repository, header, SIZE);
      bytes.fill(0xff, 20_000, 30_000);
      await copy.deleteData(file);
      await copy.deleteHeader(file);
      const { timeline, segmentNumber } = parseWalSegmentName(file, SIZE);
      const start = segmentStart(segmentNumber, SIZE);
      const summary = { ...summarizeWalSegment(bytes, { start, segmentSize: SIZE, timeline }) };
      assert(summary.damagedAt !== undefined);
      await storeWalFile(
        repository,
        identity,
        {
          name: file,
          sizeBytes: SIZE,
          hash: blake3Hex(bytes),
          modifiedAt: new Date(0),
          frames: () => compressFrames(piecesOf(bytes)),
          wal: summary,
        },
        { host: 'test', now: () => new Date() },
      );
    },
  };
  return copy;
}
