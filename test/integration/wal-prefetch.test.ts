/** Recovery by real servers with segments fetched ahead, and everything that can happen to whoever fetches them. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { formatLsn } from '../../src/postgres/lsn.ts';
import { segmentStart } from '../../src/postgres/wal-segment.ts';
import { readWalHeader } from '../../src/repository/wal-file.ts';
import { until } from '../harness/backup.ts';
import { giveToServer, scratchDirectory } from '../harness/cluster.ts';
import { createRecoveryStage, type RecoveringCopy, type RecoveryStage } from '../harness/recovery.ts';
import { createWalRepository, type WalRepository } from '../harness/wal-repository.ts';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const MIB = 2 ** 20;
const LAST = 60;

let archive: WalRepository;
let stage: RecoveryStage;

before(async () => {
  archive = await createWalRepository();
  stage = await createRecoveryStage({ segmentSizeMb: 1 });
  await stage.fill(1, LAST);
  await stage.archive(archive);
});

after(async () => {
  await stage[Symbol.asyncDispose]();
});

const upTo = (last: number): number[] => Array.from({ length: last + 1 }, (_, id) => id);

/** How many segments Node was asked for. */
async function slowFetches(copy: RecoveringCopy): Promise<number> {
  return (await copy.started()).filter((words) => /^wal fetch [0-9A-F]{24}$/.test(words)).length;
}

async function untilCleared(copy: RecoveringCopy): Promise<void> {
  await until('the end of prefetching', async () => (await copy.prefetchers()).length === 0);
  assert.equal(existsSync(copy.spool), false, 'the spool is removed');
}

/** Settings that keep a server in recovery, at the start of a segment. */
function pauseAt(segment: bigint): Record<string, string> {
  return {
    recovery_target_lsn: formatLsn(segmentStart(segment, MIB)),
    recovery_target_action: 'pause',
    // Of segments as empty as these it would read dozens ahead.
    recovery_prefetch: 'off',
  };
}

/** The segments of the first timeline, in order, and one of them by its share of the way. */
async function segmentAt(share: number): Promise<string> {
  const names = (await readdir(join(stage.cluster.dataDir, 'pg_wal'))).filter((name) =>
    /^00000001[0-9A-F]{16}$/.test(name),
  );
  return names.toSorted()[Math.floor(share * LAST)] ?? '';
}

test('wal fetch recovers 60 segments of 1 MiB, nearly all of them fetched ahead', async (t) => {
  await using copy = await stage.copy({ restore_command: archive.fetch() });
  assert.deepEqual(await copy.recover(), upTo(LAST));
  const slow = await slowFetches(copy);
  t.diagnostic(`${slow} segments were fetched by a Node of their own`);
  assert.ok(slow <= 10, (await copy.started()).join('\n'));
  await untilCleared(copy);
});

test('wal fetch recovers segments of 16 MiB, nearly all of them fetched ahead', async (t) => {
  const large = await createWalRepository();
  await using other = await createRecoveryStage({ segmentSizeMb: 16, major: 15 });
  const last = Math.ceil(20 * SCALE);
  await other.fill(1, last);
  await other.archive(large);
  await using copy = await other.copy({ restore_command: large.fetch() });
  assert.deepEqual(await copy.recover(), upTo(last));
  const slow = await slowFetches(copy);
  t.diagnostic(`${slow} segments were fetched by a Node of their own`);
  assert.ok(slow <= 8, (await copy.started()).join('\n'));
  await untilCleared(copy);
});

test('wal fetch recovers everything while its prefetch processes are killed again and again', async (t) => {
  let kills = 0;
  for (let round = 0; round < SCALE; round += 1) {
    await using copy = await stage.copy({ restore_command: archive.fetch() });
    const over = new AbortController();
    const killing = (async () => {
      while (!over.signal.aborted && kills < 12 * (round + 1)) {
        await sleep(50 + Math.random() * 400);
        const pids = await copy.prefetchers();
        // The launcher, the program, or both.
        for (const pid of pids.filter(() => Math.random() < 0.7)) {
          try {
            process.kill(pid, 'SIGKILL');
            kills += 1;
          } catch {
            // It ended before us.
          }
        }
      }
    })();
    const rows = await copy.recover();
    over.abort();
    await killing;
    assert.deepEqual(rows, upTo(LAST));
    await until('the end of prefetching', async () => (await copy.prefetchers()).length === 0);
  }
  t.diagnostic(`${kills} processes were killed`);
  assert.ok(kills > 0, 'nothing was killed');
});

test('wal fetch takes nothing from the spool of another cluster with segments of the same names', async () => {
  const otherArchive = await createWalRepository();
  await using other = await createRecoveryStage({ segmentSizeMb: 1 });
  await other.fill(1001, 1030);
  await other.archive(otherArchive);
  // A window of the other cluster, caught while its server recovers; its owner goes on living.
  await using first = await other.copy({ restore_command: otherArchive.fetch(), ...pauseAt(12n) });
  await first.start();
  await until('a window', async () => existsSync(first.spool) && (await readdir(first.spool)).length > 1);
  await sleep(500);
  await using copy = await stage.copy({ restore_command: archive.fetch() });
  await cp(first.spool, copy.spool, { recursive: true });
  await giveToServer(copy.spool);
  assert.deepEqual(await copy.recover(), upTo(LAST));
  await untilCleared(copy);
});

test('wal fetch discards what it fetched ahead when the timeline changes', async (t) => {
  const archiveOfTwo = await createWalRepository();
  await using forked = await createRecoveryStage({ segmentSizeMb: 1 });
  await forked.fill(1, 20);
  await forked.cluster.stop('fast');
  await writeFile(join(forked.cluster.dataDir, 'standby.signal'), '');
  await giveToServer(forked.cluster.dataDir);
  await forked.cluster.start();
  await forked.cluster.sql('select pg_promote()');
  await forked.fill(21, 45);
  await forked.archive(archiveOfTwo);
  await using copy = await forked.copy({ restore_command: archiveOfTwo.fetch() });
  assert.deepEqual(await copy.recover(), upTo(45));
  const started = await copy.started();
  const windows = started.filter((words) => words.startsWith('wal prefetch'));
  t.diagnostic(windows.join(', '));
  assert.ok(
    windows.some((words) => words.includes(' 00000001')) &&
      windows.some((words) => words.includes(' 00000002')),
  );
  assert.ok((await slowFetches(copy)) <= 20, started.join('\n'));
  await untilCleared(copy);
});

/** A configuration with a damaged, a missing and a whole repository, in this order. */
async function damagedTwin(segment: string): Promise<{ command: string; directory: string }> {
  const directory = await scratchDirectory();
  const twin = join(directory, 'twin');
  await cp(archive.root, twin, { recursive: true });
  const header = await readWalHeader(archive.repository, stage.identity, segment);
  const path = join(twin, header?.stored.key ?? '');
  const bytes = await readFile(path);
  bytes.writeUInt8(bytes.readUInt8(bytes.length >> 1) ^ 1, bytes.length >> 1);
  await writeFile(path, bytes);
  await mkdir(join(directory, 'unmounted'));
  const config = join(directory, 'holdfast.yaml');
  const text = await readFile(archive.configFile, 'utf8');
  await writeFile(
    config,
    text.replace(
      'repositories:',
      `repositories:\n  damaged: { url: "file://${twin}" }\n  unmounted: { url: "file://${directory}/unmounted" }`,
    ),
  );
  await giveToServer(directory);
  return { command: archive.fetch().replaceAll(archive.configFile, config), directory };
}

test('wal fetch takes from the next repository what is damaged in one, with another one away, and says so', async () => {
  const segment = await segmentAt(0.7);
  const { command } = await damagedTwin(segment);
  await using copy = await stage.copy({ restore_command: `${command} --until 0/1` });
  assert.deepEqual(await copy.recover(), upTo(LAST), await copy.log());
  const log = await copy.log();
  assert.match(
    log,
    new RegExp(`warning: ${segment} in repository damaged: `),
    'the damaged copy is reported',
  );
  assert.match(
    log,
    /warning: there is no Holdfast repository at .*unmounted/,
    'what cannot be opened is reported',
  );
  assert.ok((await slowFetches(copy)) <= 10, 'a warning costs no Node');
  // Without --until the end of the archive is not proven while a repository cannot be asked.
  await using strict = await stage.copy({ restore_command: command });
  assert.equal(await strict.recover(), 'stopped');
});

test('wal fetch and its prefetch end with the server that is stopped in the middle', async () => {
  for (const how of ['fast', 'immediate', 'kill'] as const) {
    await using copy = await stage.copy({
      restore_command: archive.fetch(),
      ...pauseAt(20n),
    });
    const server = await copy.start();
    await until('a full window', async () => {
      const [owner] = (await readdir(copy.spool).catch(() => [])).filter((name) => name.includes('-'));
      const names = owner === undefined ? [] : await readdir(join(copy.spool, owner)).catch(() => []);
      return names.filter((name) => /^\d+-/.test(name)).length === 16;
    });
    assert.equal((await copy.prefetchers()).length, 2);
    if (how === 'kill') await server.kill();
    else await server.stop(how);
    assert.deepEqual(await copy.prefetchers(), [], how);
    assert.equal(existsSync(copy.spool), false, how);
  }
});

test('wal fetch serves a recovery again that was stopped in the middle of it', async () => {
  await using copy = await stage.copy({ restore_command: archive.fetch() });
  const starting = copy.start().catch(() => undefined);
  await until('a window', async () => existsSync(copy.spool));
  await sleep(Math.random() * 300);
  await (await starting)?.stop('immediate');
  await writeFile(join(copy.dataDirectory, 'recovery.signal'), '', { flag: 'a' });
  const rows = await copy.recover();
  assert.deepEqual(rows, upTo(LAST));
});
