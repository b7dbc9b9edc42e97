/** `window` over a tree of five real timelines with holes: it says what `restore base` then finds, and nothing else. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { accountRepository } from '../../src/cli/window/account-cluster.ts';
import { type WindowJson, windowJson } from '../../src/cli/window/window-json.ts';
import { windowText } from '../../src/cli/window/window-text.ts';
import { type Lsn, formatLsn, lsnOf, parseLsn } from '../../src/postgres/lsn.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { parseWalSegmentName, segmentStart } from '../../src/postgres/wal-segment.ts';
import { summarizeWalSegment } from '../../src/postgres/wal-summary.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { recordKey, walHeaderKey } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { readWalHeader, readWholeWalFile, storeWalFile } from '../../src/repository/wal-file.ts';
import { compressFrames, piecesOf } from '../../src/repository/wal-frames.ts';
import { listWal } from '../../src/repository/wal-listing.ts';
import { listTails } from '../../src/repository/wal-tail.ts';
import { instantOfRecord } from '../../src/restore/instant.ts';
import { planRestore } from '../../src/restore/plan.ts';
import { readWalArchive } from '../../src/restore/wal-archive.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { blake3Hex } from '../../src/stream/hash.ts';
import { type BackupLab, createBackupLab } from '../harness/backup.ts';
import { giveToServer, scratchDirectory } from '../harness/cluster.ts';
import { fork } from '../harness/fork.ts';
import { reachableLauncher } from '../harness/launcher.ts';
import {
  type Commit,
  commitRows,
  createOracleTable,
  createRestoreBench,
  ORACLE_SETTINGS,
  passSecond,
} from '../harness/restore.ts';
import { type WalRepository, createWalRepository } from '../harness/wal-repository.ts';
import { seededRandom } from '../seeded-random.ts';
import { storePiece } from '../tail-lab.ts';
import { openTestRepository } from '../wal-lab.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const RANDOM_CASES = Math.ceil(6 * SCALE);
/** About how many points of each are held against a plan. */
const POINTS = 12 * SCALE;
const SEED = Number(process.env['HOLDFAST_TEST_SEED'] ?? 20_260_301);
const SIZE = 2 ** 20;

let wal: WalRepository;
let lab: BackupLab;
let scratch: string;
/** Names of the segments of each timeline that were stored, in order; the newest one ends in tails. */
const stored = new Map<number, string[]>();
const backups = new Map<number, string[]>();
const commits: Commit[] = [];

function ids(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => from + index);
}

before(async () => {
  scratch = await scratchDirectory();
  wal = await createWalRepository();
  lab = await createBackupLab({ segmentSizeMb: 1, repository: wal.repository, settings: ORACLE_SETTINGS });
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
  commits.push(...first, ...second);
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
  for await (const { kind, name, timeline } of listWal(wal.repository, lab.identity)) {
    if (kind === 'segment') stored.set(timeline, [...(stored.get(timeline) ?? []), name]);
  }
  for (const { id, timeline } of (await listBackups(wal.repository, lab.identity)).backups) {
    backups.set(timeline, [...(backups.get(timeline) ?? []), id]);
  }
  assert.deepEqual([...stored.keys()], [1, 2, 3, 4, 5]);
});

after(async () => {
  await lab[Symbol.asyncDispose]();
  await rm(wal.directory, { recursive: true, force: true });
});

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

/** A copy of the repository to punch holes into. */
interface Copy {
  root: string;
  repository: Repository;
  random: () => number;
  segment: (timeline: number, index: number) => string;
  deleteHeader: (name: string) => Promise<void>;
  deleteData: (name: string) => Promise<void>;
  truncateData: (name: string) => Promise<void>;
  corruptHeader: (name: string) => Promise<void>;
  /** Stores it anew as a server with bad memory would have written it. */
  damageAtSource: (name: string) => Promise<void>;
}

async function copyOf(name: string, seed: number): Promise<Copy> {
  const root = join(scratch, name);
  execFileSync('cp', ['-al', wal.root, root]);
  const repository = await openTestRepository(createLocalStorage(root));
  const { identity } = lab;
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

async function windowOf(repository: Repository, stateDirectory: string): Promise<WindowJson> {
  const { backups: records, damaged } = await listBackups(repository, lab.identity);
  const account = await accountRepository(repository, lab.identity, SIZE, records, {
    stateDirectory,
    now: () => new Date(),
  });
  const found = { repository: repository.name, account, damaged, failure: undefined };
  return windowJson(lab.identity.cluster, [found], new Date());
}

/** Holds the window against plans for points in and around its ranges. */
async function compareWithPlans(window: WindowJson, { repository, random }: Copy): Promise<number> {
  const { backups: records } = await listBackups(repository, lab.identity);
  const known = records.map(({ timeline }) => timelineOf(timeline));
  const archive = await readWalArchive(repository, lab.identity, SIZE, known);
  const points: { tip: number; lsn: Lsn; expected: string }[] = [];
  for (const { timeline, ranges } of window.repositories[0]?.branches ?? []) {
    for (const { from, to } of ranges) {
      const [begin, end] = [parseLsn(from.lsn), parseLsn(to.lsn)];
      const middle = lsnOf(begin + BigInt(Math.floor(random() * Number(end - begin))));
      for (const lsn of [begin, middle, end, lsnOf(begin - 1n), lsnOf(end + 1n)]) {
        // A tail may end inside of a record, and where that began is in no key.
        if (to.inTail && lsn >= end) continue;
        const isIn = ranges.some((one) => parseLsn(one.from.lsn) <= lsn && lsn <= parseLsn(one.to.lsn));
        points.push({ tip: timeline, lsn, expected: isIn ? 'reached' : 'target-unreachable' });
      }
    }
  }
  const chosen = points.filter(() => random() * points.length < POINTS);
  for (const { tip, lsn, expected } of chosen) {
    const target = { kind: 'lsn' as const, lsn, inclusive: true };
    const outcome = await planRestore({ archive, backups: records, target, timeline: timelineOf(tip) }).then(
      () => 'reached',
      (error: { code?: string }) => error.code ?? String(error),
    );
    assert.equal(outcome, expected, `timeline ${tip} at ${formatLsn(lsn)}\n${windowText(window)}`);
  }
  return chosen.length;
}

interface Case {
  name: string;
  punch: (copy: Copy) => Promise<void>;
  /** Causes of all gaps, sorted; undefined where anything may come of it. */
  causes?: string[];
  state?: string;
}

const CASES: Case[] = [
  { name: 'nothing is missing', punch: async () => undefined, causes: [], state: 'reachable' },
  {
    name: 'a header in the middle of timeline 1 is deleted',
    punch: (copy) => copy.deleteHeader(copy.segment(1, 5)),
    causes: ['deleted'],
    state: 'reachable',
  },
  {
    name: 'data in the middle of timeline 1 is deleted',
    punch: (copy) => copy.deleteData(copy.segment(1, 5)),
    causes: ['deleted'],
    state: 'reachable',
  },
  {
    name: 'header and data are deleted',
    punch: async (copy) => {
      await copy.deleteData(copy.segment(1, 5));
      await copy.deleteHeader(copy.segment(1, 5));
    },
    causes: ['never-archived'],
    state: 'reachable',
  },
  {
    name: 'data is cut short',
    punch: (copy) => copy.truncateData(copy.segment(1, 5)),
    causes: ['damaged'],
    state: 'reachable',
  },
  {
    name: 'a header is damaged',
    punch: (copy) => copy.corruptHeader(copy.segment(1, 5)),
    causes: ['damaged'],
    state: 'reachable',
  },
  {
    name: 'wal was damaged at its source',
    punch: (copy) => copy.damageAtSource(copy.segment(2, -2)),
    state: 'reachable',
  },
  {
    name: 'wal behind the last backup was damaged at its source',
    punch: (copy) => copy.damageAtSource(copy.segment(5, -1)),
    causes: ['damaged'],
    state: 'gap',
  },
  {
    name: 'several segments in a row are gone for different reasons',
    punch: async (copy) => {
      await copy.deleteHeader(copy.segment(1, 4));
      await copy.truncateData(copy.segment(1, 5));
      await copy.deleteData(copy.segment(1, 6));
    },
    causes: ['damaged', 'deleted', 'deleted'],
    state: 'reachable',
  },
  {
    name: "a child's copy of the segment it began in is deleted",
    punch: (copy) => copy.deleteHeader(copy.segment(2, 0)),
    state: 'reachable',
  },
  {
    name: "a child's and its parent's copies of that segment are deleted",
    punch: async (copy) => {
      const child = copy.segment(4, 0);
      await copy.deleteHeader(child);
      await copy.deleteHeader(`00000001${child.slice(8)}`);
    },
    state: 'reachable',
  },
  {
    name: 'the history of the newest timeline is deleted',
    punch: (copy) => copy.deleteHeader('00000005.history'),
    state: 'orphan',
  },
  {
    name: 'the history of a timeline that others came from is deleted',
    punch: (copy) => copy.deleteHeader('00000002.history'),
    causes: [],
    state: 'reachable',
  },
  {
    name: 'data of the last whole segment is deleted',
    punch: (copy) => copy.deleteData(copy.segment(5, -1)),
    causes: ['deleted'],
    state: 'gap',
  },
  {
    name: 'the tail is deleted',
    punch: async ({ repository }) => {
      for await (const { key } of listTails(repository, lab.identity)) await repository.storage.delete(key);
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'the second half of the tail is deleted',
    punch: async ({ repository }) => {
      for await (const { key, from } of listTails(repository, lab.identity)) {
        if (from > 0) await repository.storage.delete(key);
      }
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'a segment that a backup needs is deleted',
    punch: async (copy) => {
      const { backups: records } = await listBackups(copy.repository, lab.identity);
      await copy.deleteHeader(records.find(({ timeline }) => timeline === 2)?.wal.first ?? '');
    },
    state: 'reachable',
  },
  {
    name: 'all whole segments of timeline 3 are deleted',
    punch: async (copy) => {
      for (const name of stored.get(3) ?? []) await copy.deleteHeader(name);
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'the last backup is deleted, and a segment behind the one before it',
    punch: async (copy) => {
      const id = backups.get(5)?.[0] ?? '';
      await copy.repository.storage.delete(recordKey(lab.identity, id));
      await copy.deleteHeader(copy.segment(5, 2));
    },
    causes: ['deleted'],
    state: 'gap',
  },
  {
    name: 'all backups but the first are deleted',
    punch: async ({ repository }) => {
      for (const id of [...backups.values()].flat().slice(1)) {
        await repository.storage.delete(recordKey(lab.identity, id));
      }
    },
    causes: [],
    state: 'reachable',
  },
  ...Array.from({ length: RANDOM_CASES }, (_, index): Case => ({
    name: `holes at random places, number ${index}`,
    punch: async (copy) => {
      const all = [...stored.values()].flat();
      for (let n = 1 + Math.floor(copy.random() * 4); n > 0; n -= 1) {
        const [name = ''] = all.splice(Math.floor(copy.random() * all.length), 1);
        const punch = [copy.deleteHeader, copy.deleteData, copy.truncateData, copy.corruptHeader][
          Math.floor(copy.random() * 4)
        ];
        await punch?.(name);
      }
    },
  })),
];

test(`window() says of ${CASES.length} archives with five timelines what plans then find`, async (t) => {
  let compared = 0;
  for (const [index, { name, punch, causes, state }] of CASES.entries()) {
    await t.test(name, async () => {
      const copy = await copyOf(`case-${index}`, SEED + index);
      await punch(copy);
      const window = await windowOf(copy.repository, join(scratch, `state-${index}`));
      const found = window.repositories[0]?.gaps.map(({ cause }) => cause) ?? [];
      if (causes !== undefined) assert.deepEqual(found.toSorted(), causes, windowText(window));
      if (state !== undefined) assert.equal(window.present?.state, state, windowText(window));
      compared += await compareWithPlans(window, copy);
      await rm(copy.root, { recursive: true });
    });
  }
  assert(compared > CASES.length * 4, `${compared}`);
});

test('window() names what is there in whole, to the last commit, and does not read headers twice', async () => {
  const state = join(scratch, 'state-of-its-own');
  const window = await windowOf(wal.repository, state);
  assert.equal(window.present?.recoveryPoint?.timeline, 5);
  const newest = window.repositories[0]?.branches.find(({ timeline }) => timeline === 5);
  assert.equal(newest?.ranges.at(-1)?.to.inTail, true);
  // Every commit of timeline 1 lies at or before the time of its end, and the last one is that time.
  const one = window.repositories[0]?.branches.find(({ timeline }) => timeline === 1);
  assert.equal(instantOfRecord(one?.ranges.at(-1)?.to.time ?? ''), commits.at(-1)?.time);
  const again = await windowOf(wal.repository, state);
  const { present: _, ...rest } = again;
  assert.deepEqual(
    rest.repositories.map(({ branches }) => branches),
    window.repositories.map(({ branches }) => branches),
  );
  // What was once seen is known to have been deleted, header and data.
  const copy = await copyOf('seen', 1);
  await windowOf(copy.repository, state);
  await copy.deleteData(copy.segment(2, 3));
  await copy.deleteHeader(copy.segment(2, 3));
  const [gap] = (await windowOf(copy.repository, state)).repositories[0]?.gaps ?? [];
  assert.deepEqual([gap?.cause, gap?.firstMissing, gap?.blocking], ['deleted', copy.segment(2, 3), false]);
});

test('window() ranges can really be restored up to their end, before a gap and in the tail', async () => {
  const copy = await copyOf('restored', 2);
  await copy.deleteData(copy.segment(1, 5));
  const window = await windowOf(copy.repository, join(scratch, 'state'));
  const range = window.repositories[0]?.branches.find(({ timeline }) => timeline === 1)?.ranges[0];
  assert(range !== undefined);
  const punched = { ...lab, repository: copy.repository };
  await using bench = await createRestoreBench(punched, wal);
  await bench.refresh().catch(() => undefined);
  const { proof, rows } = await bench.restore({ targetLsn: range.to.lsn, targetTimeline: '1' });
  assert(
    parseLsn(proof.reached.lsn ?? '0/0') >= parseLsn(range.to.lsn),
    `${proof.reached.lsn} ${range.to.lsn}`,
  );
  const expected = commits.filter(({ lsn }) => lsn <= parseLsn(range.to.lsn)).map(({ id }) => id);
  assert.deepEqual(
    rows,
    expected.toSorted((a, b) => a - b),
  );
});

test('window ends with 0 for gaps of the past and with 40 where the present is out of reach', async () => {
  const launcher = await reachableLauncher();
  const typed = async (punch: (copy: Copy) => Promise<void>, name: string) => {
    const copy = await copyOf(name, 3);
    await punch(copy);
    const config = join(scratch, `${name}.yaml`);
    await writeFile(
      config,
      `clusters:\n  lab:\n    servers: ["postgres://holdfast@localhost/postgres"]\nrepositories:\n  local: { url: "file://${copy.root}" }\nstate: ${scratch}/cli-state\n`,
    );
    await giveToServer(scratch);
    const env = { ...process.env, HOLDFAST_SOURCE: '1', XDG_CACHE_HOME: join(scratch, 'cache') };
    const run = (...words: string[]) =>
      spawnSync(launcher, ['window', 'lab', '--config', config, ...words], { encoding: 'utf8', env });
    return { text: run(), json: run('--json') };
  };
  const past = await typed((copy) => copy.deleteData(copy.segment(1, 5)), 'past');
  assert.equal(past.text.status, 0, past.text.stderr);
  assert.match(past.text.stdout, /gap on timeline 1: .*1 segment/);
  assert.match(past.text.stdout, /nothing to do/);
  const present = await typed((copy) => copy.deleteData(copy.segment(5, -1)), 'present');
  assert.equal(present.text.status, 40, present.text.stderr);
  assert.match(present.text.stdout, /CANNOT be restored/);
  assert.match(present.text.stderr, /holdfast backup base lab/);
  const json = JSON.parse(present.json.stdout) as WindowJson;
  assert.equal(present.json.status, 40);
  assert.equal(
    json.repositories[0]?.gaps.some(({ blocking }) => blocking),
    true,
  );
  assert.equal(json.repositories[0]?.present?.reachable, false);
});
