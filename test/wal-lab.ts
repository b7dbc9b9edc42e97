/** For tests of pushing and fetching WAL without a server: a data directory with WAL in it, and repositories. */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

import { lsnOf } from '../src/postgres/lsn.ts';
import { timelineOf } from '../src/postgres/timeline.ts';
import type { MajorVersion } from '../src/postgres/version.ts';
import { walSegmentName } from '../src/postgres/wal-segment.ts';
import { type Repository, initializeRepository } from '../src/repository/repository.ts';
import { noneOpener, noneSealer } from '../src/seal/none.ts';
import { createMemoryStorage } from '../src/storage/memory.ts';
import type { Storage } from '../src/storage/storage.ts';
import { seededRandom } from './seeded-random.ts';
import { WalWriter } from './wal-writer.ts';

export const SEGMENT_SIZE = 2 ** 20;
export const SYSTEM_IDENTIFIER = '7000000000000000001';

export interface SegmentOptions {
  /** Its number, from 0 at LSN 0/0. */
  segment?: number;
  timeline?: number;
  /** The timeline of its first page, where that is an ancestor's. */
  pageTimeline?: number;
  segmentSize?: number;
  systemIdentifier?: string;
  major?: MajorVersion;
  /** Other seeds give other content. */
  seed?: number;
}

export interface MadeSegment {
  name: string;
  bytes: Buffer;
}

/** A whole segment of valid WAL with a few commits, as a server would have switched away from. */
export function makeSegment(options: SegmentOptions = {}): MadeSegment {
  const { segment = 1, timeline = 1, segmentSize = SEGMENT_SIZE, seed = 1 } = options;
  const writer = new WalWriter({
    start: lsnOf(BigInt(segment) * BigInt(segmentSize)),
    segmentSize,
    timeline: options.pageTimeline ?? timeline,
    systemIdentifier: BigInt(options.systemIdentifier ?? SYSTEM_IDENTIFIER),
    ...(options.major && { major: options.major }),
  });
  const random = seededRandom(seed * 1000 + segment);
  for (let xid = 100; xid < 120; xid += 1) {
    const noise = Buffer.from(Array.from({ length: 3000 }, () => Math.floor(random() * 256)));
    writer.record(10, 0x00, xid, noise);
    writer.commit(xid, 1_800_000_000_000_000n + BigInt(segment * 1000 + xid));
  }
  writer.switch();
  return {
    name: walSegmentName(timelineOf(timeline), BigInt(segment), segmentSize),
    bytes: writer.segments()[0] ?? Buffer.alloc(0),
  };
}

export interface WalLab extends AsyncDisposable {
  /** Like a data directory. */
  readonly directory: string;
  /** Puts a file into `pg_wal` and returns its path. */
  write(name: string, bytes: Buffer | string): Promise<string>;
  /** A segment in `pg_wal`. */
  segment(options?: SegmentOptions): Promise<{ path: string; name: string; bytes: Buffer }>;
}

export async function createWalLab(): Promise<WalLab> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-wal-'));
  const write = async (name: string, bytes: Buffer | string): Promise<string> => {
    const path = join(directory, 'pg_wal', name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, bytes);
    return path;
  };
  return {
    directory,
    write,
    async segment(options) {
      const made = makeSegment(options);
      return { ...made, path: await write(made.name, made.bytes) };
    },
    async [Symbol.asyncDispose]() {
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/** An initialised repository on a store; a new one in memory if none is given. */
export async function openTestRepository(
  storage: Storage = createMemoryStorage(),
  name = 'local',
): Promise<Repository> {
  const keys = { sealer: noneSealer, opener: async () => noneOpener };
  return (await initializeRepository(name, storage, keys, new Date('2026-01-01T00:00:00Z'))).repository;
}

/** The same repository, reached through another store (a faulty one). */
export function withStorage(repository: Repository, storage: Storage): Repository {
  return { ...repository, storage };
}

/** Text of a history file: `[parent timeline, switch point]` in order. */
export function historyText(...ancestors: (readonly [number, string])[]): string {
  return ancestors.map(([parent, lsn]) => `${parent}\t${lsn}\tno recovery target specified\n`).join('\n');
}
