/** Damage to the archive while recovery fetches ahead: it stops, or it is complete. Never less. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { walHeaderKey } from '../../src/repository/layout.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { until } from '../harness/backup.ts';
import { giveToServer } from '../harness/cluster.ts';
import { createRecoveryStage, type RecoveringCopy, type RecoveryStage } from '../harness/recovery.ts';
import { createWalRepository, type WalRepository } from '../harness/wal-repository.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const LAST = 24;
const ROWS = Array.from({ length: LAST + 1 }, (_, id) => id);

let archive: WalRepository;
let stage: RecoveryStage;
let segments: string[];
let end: string;

before(async () => {
  archive = await createWalRepository();
  stage = await createRecoveryStage({ segmentSizeMb: 1 });
  end = await stage.fill(1, LAST);
  await stage.archive(archive);
  const names = await readdir(join(stage.cluster.dataDir, 'pg_wal'));
  segments = names.filter((name) => /^[0-9A-F]{24}$/.test(name)).toSorted();
});

after(async () => {
  await stage[Symbol.asyncDispose]();
});

interface Fault {
  name: string;
  /** Damages what the archive has of a segment; returns how to undo it. */
  inflict(segment: string, copy: RecoveringCopy): Promise<() => Promise<void>>;
  /** Recovery cannot have got past it. */
  certain: boolean;
}

function onObject(
  name: string,
  which: 'data' | 'header',
  change: (bytes: Buffer) => Buffer | undefined,
): Fault {
  return {
    name,
    certain: true,
    async inflict(segment) {
      const header = await readWalHeader(archive.repository, stage.identity, segment);
      assert.ok(header);
      const path = join(
        archive.root,
        which === 'data' ? header.stored.key : walHeaderKey(stage.identity, segment),
      );
      const bytes = await readFile(path);
      const changed = change(Buffer.from(bytes));
      if (changed === undefined) await rm(path);
      else await writeFile(path, changed);
      return async () => {
        await writeFile(path, bytes);
        await giveToServer(archive.directory);
      };
    },
  };
}

const FAULTS: Fault[] = [
  onObject('a flipped byte', 'data', (bytes) => {
    bytes.writeUInt8(bytes.readUInt8(bytes.length >> 1) ^ 0x10, bytes.length >> 1);
    return bytes;
  }),
  onObject('zeros', 'data', (bytes) => bytes.fill(0)),
  onObject('cut in half', 'data', (bytes) => bytes.subarray(0, bytes.length >> 1)),
  onObject('empty', 'data', () => Buffer.alloc(0)),
  onObject('data deleted', 'data', () => undefined),
  onObject('deleted', 'header', () => undefined),
  {
    name: 'a repository that goes away in the middle',
    certain: false,
    async inflict(_, copy) {
      const gone = `${archive.root}.gone`;
      const watching = (async () => {
        await until('a window', async () => existsSync(copy.spool));
        await rename(archive.root, gone);
      })();
      return async () => {
        await watching;
        await rename(gone, archive.root);
      };
    },
  },
  {
    name: 'a configuration that breaks in the middle',
    certain: false,
    async inflict(_, copy) {
      const text = await readFile(archive.configFile);
      const watching = (async () => {
        await until('a window', async () => existsSync(copy.spool));
        await writeFile(archive.configFile, 'nonsense: [');
      })();
      return async () => {
        await watching;
        await writeFile(archive.configFile, text);
        await giveToServer(archive.directory);
      };
    },
  },
];

test('wal fetch under 8 faults, with a target and without, stops recovery or reaches the end', async (t) => {
  for (const target of [undefined, end]) {
    const options = `--timeout 1s ${target === undefined ? '' : `--until ${target}`}`;
    const settings = {
      restore_command: archive.fetch(options),
      ...(target !== undefined && { recovery_target_lsn: target, recovery_target_action: 'promote' }),
    };
    {
      await using healthy = await stage.copy(settings);
      assert.deepEqual(await healthy.recover(), ROWS, 'without a fault');
    }
    for (const [index, fault] of FAULTS.entries()) {
      if (SCALE < 1 && index % Math.round(1 / SCALE) !== 0) continue;
      const said = `${fault.name}, ${target ?? 'no target'}`;
      await using copy = await stage.copy(settings);
      const undo = await fault.inflict(segments[12] ?? '', copy);
      try {
        const outcome = await copy.recover();
        if (outcome === 'stopped') t.diagnostic(`${said}: stopped`);
        else assert.deepEqual(outcome, ROWS, `${said}: silently short`);
        if (fault.certain) assert.equal(outcome, 'stopped', said);
      } finally {
        await undo();
      }
    }
  }
});
