/** Damage to the archive, and fetches that fail, at every stage of a restore: it fails, or it is complete. Never less. */
import assert from 'node:assert/strict';
import { chmod, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { HoldfastError } from '../../src/errors.ts';
import { formatLsn } from '../../src/postgres/lsn.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { parseWalSegmentName, segmentStart, walSegmentName } from '../../src/postgres/wal-segment.ts';
import { walHeaderKey } from '../../src/repository/layout.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { formatInstant } from '../../src/restore/instant.ts';
import type { RestorePlan } from '../../src/restore/plan.ts';
import type { RecoveryRequest, TargetOptions } from '../../src/restore/recovery-target.ts';
import { createBackupLab, type BackupLab } from '../harness/backup.ts';
import { giveToServer, scratchDirectory } from '../harness/cluster.ts';
import {
  commitRows,
  createOracleTable,
  createRestoreBench,
  ORACLE_SETTINGS,
  passSecond,
  type RestoreBench,
} from '../harness/restore.ts';
import { createWalRepository, type WalRepository } from '../harness/wal-repository.ts';

interface Stage {
  lab: BackupLab;
  wal: WalRepository;
  bench: RestoreBench;
  scratch: string;
}

interface Fault {
  name: string;
  /** Damages what the archive has of a segment; returns the launcher to restore with and how to undo it. */
  inflict(stage: Stage, segment: string): Promise<{ launcher: string; undo: () => Promise<void> }>;
}

/** Changes a stored object in place, and puts it back. */
function onObject(
  name: string,
  which: 'data' | 'header',
  change: (path: string, bytes: Buffer) => Promise<void>,
): Fault {
  return {
    name,
    async inflict({ lab, wal, scratch }, segment) {
      const header = await readWalHeader(lab.repository, lab.identity, segment);
      assert(header !== undefined);
      const key = which === 'data' ? header.stored.key : walHeaderKey(lab.identity, segment);
      const path = join(wal.root, key);
      const bytes = await readFile(path);
      await change(path, Buffer.from(bytes));
      const launcher = await switchingLauncher(scratch, segment, 'program');
      return {
        launcher,
        undo: async () => {
          await writeFile(path, bytes);
          await giveToServer(wal.directory);
        },
      };
    },
  };
}

/** A fetch that ends as `how` says for the first `times` requests of a segment; what else it hands out is whole. */
function onFetch(name: string, how: string): Fault {
  return {
    name,
    async inflict({ scratch }, segment) {
      return { launcher: await switchingLauncher(scratch, segment, how), undo: () => Promise.resolve() };
    },
  };
}

/** Copies every file but one, which the program itself fetches, or for which a shell command stands. */
async function switchingLauncher(scratch: string, segment: string, how: string): Promise<string> {
  const path = join(scratch, 'launcher');
  const own = how === 'program' ? `exec '${scratch}/program' "$@" --timeout 1s` : how;
  await writeFile(
    path,
    `#!/bin/sh\nif [ "$3" = ${segment} ]; then ${own}; fi\nexec '${scratch}/copy' "$@"\n`,
  );
  await chmod(path, 0o755);
  await giveToServer(scratch);
  return path;
}

const FAULTS: Fault[] = [
  onObject('a flipped byte', 'data', async (path, bytes) => {
    const at = Math.floor(bytes.length / 2);
    bytes[at] = (bytes[at] ?? 0) ^ 0x10;
    await writeFile(path, bytes);
  }),
  onObject('zeros', 'data', async (path, bytes) => {
    await writeFile(path, bytes.fill(0));
  }),
  onObject('cut in half', 'data', async (path, bytes) => {
    await truncate(path, Math.floor(bytes.length / 2));
  }),
  onObject('empty', 'data', async (path) => {
    await truncate(path, 0);
  }),
  onObject('data deleted', 'data', async (path) => {
    await rm(path);
  }),
  onObject('deleted', 'header', async (path) => {
    await rm(path);
  }),
  onFetch('a fetch that says there is none', 'exit 1'),
  onFetch('a fetch that is killed', 'kill -9 $$'),
];

const POSITIONS = [0, 1 / 3, 2 / 3, 1];

/** The whole matrix by default; a smaller scale takes every second, third … of it, another share for each target. */
const STRIDE = Math.max(1, Math.round(1 / Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1)));

/** What a restore came to: the rows, or the code it failed with. */
async function attempt(
  bench: RestoreBench,
  { plan, request }: { plan: RestorePlan; request: RecoveryRequest },
  launcher: string,
): Promise<number[] | string> {
  try {
    await bench.files(plan, request, launcher);
    return await bench.rows(await bench.prove(plan, request));
  } catch (error) {
    if (error instanceof HoldfastError) return error.code;
    throw error;
  }
}

test('restore() under 8 faults at 4 positions, to 3 kinds of target, fails or is complete', async (t) => {
  const wal = await createWalRepository();
  await using lab = await createBackupLab({
    segmentSizeMb: 1,
    repository: wal.repository,
    settings: ORACLE_SETTINGS,
  });
  await createOracleTable(lab.cluster);
  const early = await commitRows(lab.cluster, [1]);
  await lab.backup();
  await passSecond();
  const commits = [
    ...early,
    ...(await commitRows(
      lab.cluster,
      Array.from({ length: 60 }, (_, n) => n + 2),
      60_000,
    )),
  ];
  await lab.archiveNow();
  await using bench = await createRestoreBench(lab, wal);
  await bench.refresh();
  const scratch = await scratchDirectory();
  for (const [name, launcher] of [
    ['program', bench.programLauncher],
    ['copy', bench.copyLauncher],
  ] as const) {
    await writeFile(join(scratch, name), `#!/bin/sh\nexec "${launcher}" "$@"\n`);
    await chmod(join(scratch, name), 0o755);
  }
  const last = commits.at(-2);
  assert(last !== undefined);
  // No repository can know that its end is gone; the host that archived remembers.
  const { segments, backup } = (await bench.plan({})).plan;
  const lastSegment = parseWalSegmentName(segments.last, backup.server.walSegmentSizeBytes).segmentNumber;
  const highWater = {
    timeline: 1,
    name: segments.last,
    endLsn: segmentStart(lastSegment + 1n, backup.server.walSegmentSizeBytes),
    lastCommitTime: null,
    repositories: ['local'],
  };
  const targets: { name: string; options: TargetOptions; rows: number }[] = [
    { name: 'latest', options: {}, rows: commits.length },
    { name: 'time', options: { targetTime: formatInstant(last.time) }, rows: commits.length - 1 },
    { name: 'lsn', options: { targetLsn: formatLsn(last.lsn) }, rows: commits.length - 1 },
  ];
  for (const [turn, { name, options, rows }] of targets.entries()) {
    let tried = 0;
    const healthy = await bench.plan(options);
    const complete = await attempt(bench, healthy, bench.programLauncher);
    assert.equal(Array.isArray(complete) ? complete.length : complete, rows, `${name} without a fault`);
    const size = healthy.plan.backup.server.walSegmentSizeBytes;
    const first = parseWalSegmentName(healthy.plan.segments.first, size).segmentNumber;
    for (const [row, fault] of FAULTS.entries()) {
      for (const [column, position] of POSITIONS.entries()) {
        if ((row + column + turn) % STRIDE !== 0) continue;
        tried += 1;
        const offset = Math.round(position * (healthy.plan.segments.count - 1));
        const segment = walSegmentName(timelineOf(1), first + BigInt(offset), size);
        const said = `${name}, ${fault.name}, ${segment} (${offset} of ${healthy.plan.segments.count})`;
        const { launcher, undo } = await fault.inflict({ lab, wal, bench, scratch }, segment);
        try {
          // The damage is there when the restore is planned …
          const planned = await bench.plan(options, { highWater }).catch((error: unknown) => {
            assert(error instanceof HoldfastError, said);
            assert(['target-unreachable', 'wal-gap'].includes(error.code), `${said}: ${error.message}`);
            return undefined;
          });
          // … or comes about after that: the plan that was made before is carried out all the same.
          const outcome = await attempt(bench, planned ?? healthy, launcher);
          if (typeof outcome === 'string') assert.equal(outcome, 'restore-incomplete', said);
          else assert.equal(outcome.length, rows, `${said}: silently short`);
        } finally {
          await undo();
        }
      }
    }
    t.diagnostic(`${name}: ${tried} restores, none silently short`);
  }
});
