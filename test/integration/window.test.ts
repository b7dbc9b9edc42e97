/** `window` over a tree of five real timelines with holes: it says what `restore base` then finds, and nothing else. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { accountRepository } from '../../src/cli/window/account-cluster.ts';
import { type WindowJson, windowJson } from '../../src/cli/window/window-json.ts';
import { windowText } from '../../src/cli/window/window-text.ts';
import { type Lsn, formatLsn, lsnOf, parseLsn } from '../../src/postgres/lsn.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { listBackups } from '../../src/repository/catalog.ts';
import { recordKey } from '../../src/repository/layout.ts';
import type { Repository } from '../../src/repository/repository.ts';
import { listTails } from '../../src/repository/wal-tail.ts';
import { instantOfRecord } from '../../src/restore/instant.ts';
import { planRestore } from '../../src/restore/plan.ts';
import { readWalArchive } from '../../src/restore/wal-archive.ts';
import { giveToServer } from '../harness/cluster.ts';
import { type Copy, type Family, SIZE, createFamily } from '../harness/family.ts';
import { reachableLauncher } from '../harness/launcher.ts';
import { createRestoreBench } from '../harness/restore.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const RANDOM_CASES = Math.ceil(6 * SCALE);
/** About how many points of each are held against a plan. */
const POINTS = 12 * SCALE;
const SEED = Number(process.env['HOLDFAST_TEST_SEED'] ?? 20_260_301);

let family: Family;

before(async () => {
  family = await createFamily();
});

after(async () => {
  await family[Symbol.asyncDispose]();
});

async function windowOf(repository: Repository, stateDirectory: string): Promise<WindowJson> {
  const { backups: records, damaged } = await listBackups(repository, family.lab.identity);
  const account = await accountRepository(repository, family.lab.identity, SIZE, records, {
    stateDirectory,
    now: () => new Date(),
  });
  const found = { repository: repository.name, account, damaged, failure: undefined };
  return windowJson(family.lab.identity.cluster, [found], new Date());
}

/** Holds the window against plans for points in and around its ranges. */
async function compareWithPlans(window: WindowJson, { repository, random }: Copy): Promise<number> {
  const { backups: records } = await listBackups(repository, family.lab.identity);
  const known = records.map(({ timeline }) => timelineOf(timeline));
  const archive = await readWalArchive(repository, family.lab.identity, SIZE, known);
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
      (error: Error & { code?: string }) => error.code ?? error.message,
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
      for await (const { key } of listTails(repository, family.lab.identity))
        await repository.storage.delete(key);
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'the second half of the tail is deleted',
    punch: async ({ repository }) => {
      for await (const { key, from } of listTails(repository, family.lab.identity)) {
        if (from > 0) await repository.storage.delete(key);
      }
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'a segment that a backup needs is deleted',
    punch: async (copy) => {
      const { backups: records } = await listBackups(copy.repository, family.lab.identity);
      await copy.deleteHeader(records.find(({ timeline }) => timeline === 2)?.wal.first ?? '');
    },
    state: 'reachable',
  },
  {
    name: 'all whole segments of timeline 3 are deleted',
    punch: async (copy) => {
      for (const name of family.stored.get(3) ?? []) await copy.deleteHeader(name);
    },
    causes: [],
    state: 'reachable',
  },
  {
    name: 'the last backup is deleted, and a segment behind the one before it',
    punch: async (copy) => {
      const id = family.backups.get(5)?.[0] ?? '';
      await copy.repository.storage.delete(recordKey(family.lab.identity, id));
      await copy.deleteHeader(copy.segment(5, 2));
    },
    causes: ['deleted'],
    state: 'gap',
  },
  {
    name: 'all backups but the first are deleted',
    punch: async ({ repository }) => {
      for (const id of [...family.backups.values()].flat().slice(1)) {
        await repository.storage.delete(recordKey(family.lab.identity, id));
      }
    },
    causes: [],
    state: 'reachable',
  },
  ...Array.from({ length: RANDOM_CASES }, (_, index): Case => ({
    name: `holes at random places, number ${index}`,
    punch: async (copy) => {
      const all = [...family.stored.values()].flat();
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
      const copy = await family.copy(`case-${index}`, SEED + index);
      await punch(copy);
      const window = await windowOf(copy.repository, join(family.scratch, `state-${index}`));
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
  const state = join(family.scratch, 'state-of-its-own');
  const window = await windowOf(family.wal.repository, state);
  assert.equal(window.present?.recoveryPoint?.timeline, 5);
  const newest = window.repositories[0]?.branches.find(({ timeline }) => timeline === 5);
  assert.equal(newest?.ranges.at(-1)?.to.inTail, true);
  // Every commit of timeline 1 lies at or before the time of its end, and the last one is that time.
  const one = window.repositories[0]?.branches.find(({ timeline }) => timeline === 1);
  assert.equal(instantOfRecord(one?.ranges.at(-1)?.to.time ?? ''), family.commits.at(-1)?.time);
  const again = await windowOf(family.wal.repository, state);
  const { present: _, ...rest } = again;
  assert.deepEqual(
    rest.repositories.map(({ branches }) => branches),
    window.repositories.map(({ branches }) => branches),
  );
  // What was once seen is known to have been deleted, header and data.
  const copy = await family.copy('seen', 1);
  await windowOf(copy.repository, state);
  await copy.deleteData(copy.segment(2, 3));
  await copy.deleteHeader(copy.segment(2, 3));
  const [gap] = (await windowOf(copy.repository, state)).repositories[0]?.gaps ?? [];
  assert.deepEqual([gap?.cause, gap?.firstMissing, gap?.blocking], ['deleted', copy.segment(2, 3), false]);
});

test('window() ranges can really be restored up to their end, before a gap and in the tail', async () => {
  const copy = await family.copy('restored', 2);
  await copy.deleteData(copy.segment(1, 5));
  const window = await windowOf(copy.repository, join(family.scratch, 'state'));
  const range = window.repositories[0]?.branches.find(({ timeline }) => timeline === 1)?.ranges[0];
  assert(range !== undefined);
  const punched = { ...family.lab, repository: copy.repository };
  await using bench = await createRestoreBench(punched, family.wal);
  await bench.refresh().catch(() => undefined);
  const { proof, rows } = await bench.restore({ targetLsn: range.to.lsn, targetTimeline: '1' });
  assert(
    parseLsn(proof.reached.lsn ?? '0/0') >= parseLsn(range.to.lsn),
    `${proof.reached.lsn} ${range.to.lsn}`,
  );
  const expected = family.commits.filter(({ lsn }) => lsn <= parseLsn(range.to.lsn)).map(({ id }) => id);
  assert.deepEqual(
    rows,
    expected.toSorted((a, b) => a - b),
  );
});

test('window ends with 0 for gaps of the past and with 40 where the present is out of reach', async () => {
  const launcher = await reachableLauncher();
  const typed = async (punch: (copy: Copy) => Promise<void>, name: string) => {
    const copy = await family.copy(name, 3);
    await punch(copy);
    const config = join(family.scratch, `${name}.yaml`);
    await writeFile(
      config,
      `clusters:\n  lab:\n    servers: ["postgres://holdfast@localhost/postgres"]\nrepositories:\n  local: { url: "file://${copy.root}" }\nstate: ${family.scratch}/cli-state\n`,
    );
    await giveToServer(family.scratch);
    const env = { ...process.env, HOLDFAST_SOURCE: '1', XDG_CACHE_HOME: join(family.scratch, 'cache') };
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
