import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { appendFileSync, lstatSync } from 'node:fs';
import { mkdir, rm, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import * as fc from 'fast-check';

import type { Repository } from '../repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { readWalHighWater } from '../repository/wal-high-water.ts';
import { listWal } from '../repository/wal-listing.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import type { Storage } from '../storage/storage.ts';
import { runWithCrashAtEveryOperation } from '../../test/every-operation.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { VolatileStorage } from '../../test/volatile-storage.ts';
import {
  createWalLab,
  openTestRepository,
  SYSTEM_IDENTIFIER,
  type WalLab,
  withStorage,
} from '../../test/wal-lab.ts';
import { type AheadOptions, fileFacts, pushWithAhead } from './push-ahead.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

function optionsFor(path: string, ...repositories: Repository[]): AheadOptions {
  return { path, repositories, cluster: { configured: ['app'] }, host: 'h', now: () => new Date(0) };
}

interface Ready {
  path: string;
  name: string;
  bytes: Buffer;
}

/** Segments of one timeline, all marked as ready. */
async function readySegments(lab: WalLab, numbers: readonly number[], timeline = 1): Promise<Ready[]> {
  const made: Ready[] = [];
  for (const segment of numbers) {
    const one = await lab.segment({ segment, timeline });
    await lab.write(`archive_status/${one.name}.ready`, '');
    made.push(one);
  }
  return made;
}

async function namesIn(repository: Repository): Promise<string[]> {
  return (await Array.fromAsync(listWal(repository, identity))).map(({ name }) => name);
}

async function stored(repository: Repository, name: string): Promise<Buffer | undefined> {
  const header = await readWalHeader(repository, identity, name);
  return header && (await readWholeWalFile(repository, header, 2 ** 24));
}

test('pushWithAhead() stores what waits behind the file asked for, and tells it with what stat says', async () => {
  await using lab = await createWalLab();
  const [first, ...others] = await readySegments(lab, [1, 2, 3, 4, 5, 6, 7]);
  const repository = await openTestRepository();
  const stateDirectory = join(lab.directory, 'state');
  const { result, ahead } = await pushWithAhead({
    ...optionsFor(first?.path ?? '', repository),
    stateDirectory,
  });
  assert.equal(result.name, first?.name);
  assert.deepEqual(
    ahead.map(({ path }) => path),
    others.map(({ path }) => path),
  );
  for (const { path, facts } of ahead) {
    const said = execFileSync('stat', ['-L', '-c', '%d.%i %f %s %.9Y %.9Z', path], { env: { LC_ALL: 'C' } });
    assert.equal(`${facts}\n`, said.toString());
  }
  for (const { name, bytes } of others) assert.deepEqual(await stored(repository, name), bytes);
  const mark = await readWalHighWater(stateDirectory, SYSTEM_IDENTIFIER);
  assert.equal(mark?.name, others.at(-1)?.name);
});

test('fileFacts() is what stat says, to the nanosecond', async () => {
  await using lab = await createWalLab();
  const path = await lab.write('x', 'abc');
  for (const time of [0, 1, 1.000_001, 1_700_000_000.999_999, Date.now() / 1000]) {
    await utimes(path, time, time);
    const said = execFileSync('stat', ['-c', '%d.%i %f %s %.9Y %.9Z', path], { env: { LC_ALL: 'C' } });
    assert.equal(`${fileFacts(lstatSync(path, { bigint: true }))}\n`, said.toString());
  }
});

test('pushWithAhead() stores only the file asked for unless it and the next one are marked as ready', async () => {
  await using lab = await createWalLab();
  const [first, second, third] = await readySegments(lab, [1, 2, 3]);
  assert.ok(first && second && third);
  const status = (name: string): string => join(dirname(first.path), 'archive_status', `${name}.ready`);
  const ahead = async (path: string, more: Partial<AheadOptions> = {}): Promise<number> => {
    const repository = await openTestRepository();
    const told = await pushWithAhead({ ...optionsFor(path, repository), ...more });
    assert.equal((await namesIn(repository)).length, told.ahead.length + 1);
    return told.ahead.length;
  };
  assert.equal(await ahead(first.path), 2);
  assert.equal(await ahead(first.path, { lookAhead: false }), 0);
  assert.equal(await ahead(third.path), 0, 'the last one');
  await rm(status(second.name));
  assert.equal(await ahead(first.path), 0, 'the next one is not ready');
  await writeFile(status(second.name), '');
  await rm(status(first.name));
  assert.equal(await ahead(first.path), 0, 'it is not ready itself');
  const history = await lab.write('00000002.history', '1\t0/480000\tno reason\n');
  await writeFile(status('00000002.history'), '');
  assert.equal(await ahead(history), 0, 'a history file');
  await readySegments(lab, [4], 2);
  await writeFile(status(first.name), '');
  assert.equal(await ahead(first.path), 2, 'other timelines are left alone');
  const elsewhere = join(lab.directory, 'elsewhere', first.name);
  await mkdir(dirname(elsewhere));
  await writeFile(elsewhere, first.bytes);
  assert.equal(await ahead(elsewhere), 0, 'no archive_status beside it');
});

test('pushWithAhead() begins no more files when its time is over, and finishes what it began', async () => {
  await using lab = await createWalLab();
  const [first] = await readySegments(
    lab,
    Array.from({ length: 30 }, (_, index) => index + 1),
  );
  const repository = await openTestRepository();
  let elapsed = 0;
  const { ahead } = await pushWithAhead({
    ...optionsFor(first?.path ?? '', repository),
    elapsedMs: () => (elapsed += 400),
  });
  assert.ok(ahead.length >= 8 && ahead.length <= 10, `${ahead.length}`);
  assert.equal((await namesIn(repository)).length, ahead.length + 1);
});

test('pushWithAhead() fails where its own file fails, and commits nothing that comes after it', async () => {
  await using lab = await createWalLab();
  const [first, second] = await readySegments(lab, [1, 2, 3, 4]);
  assert.ok(first && second);
  const repository = await openTestRepository();
  const rival = await lab.segment({ segment: 1, seed: 9 });
  await pushWithAhead({ ...optionsFor(rival.path, repository), lookAhead: false });
  await writeFile(first.path, first.bytes);
  await assert.rejects(pushWithAhead(optionsFor(first.path, repository)), failsWith('wal-conflict'));
  assert.deepEqual(await namesIn(repository), [first.name]);
  await assert.rejects(
    pushWithAhead(optionsFor(join(lab.directory, 'pg_wal', 'no such'), repository)),
    failsWith('wal-invalid'),
  );
});

test('pushWithAhead() ends looking ahead at the first file that fails, and succeeds', async () => {
  await using lab = await createWalLab();
  const made = await readySegments(lab, [1, 2, 3, 4, 5, 6]);
  const [first] = made;
  const { bytes } = await lab.segment({ segment: 4, systemIdentifier: '7000000000000000002' });
  assert.equal(bytes.length, 2 ** 20);
  const repository = await openTestRepository();
  const { ahead } = await pushWithAhead(optionsFor(first?.path ?? '', repository));
  assert.deepEqual(
    ahead.map(({ path }) => path),
    [made[1]?.path, made[2]?.path],
  );
  assert.deepEqual(
    await namesIn(repository),
    made.slice(0, 3).map(({ name }) => name),
  );
});

test('pushWithAhead() tells nothing of a file that changes while it is stored', async () => {
  await using lab = await createWalLab();
  const [first, second] = await readySegments(lab, [1, 2]);
  assert.ok(first && second);
  const inner = createMemoryStorage();
  const changing: Storage = {
    ...inner,
    description: inner.description,
    features: inner.features,
    put: async (key, source, options) => {
      if (key.endsWith(`${second.name}.json`)) appendFileSync(second.path, 'x');
      return inner.put(key, source, options);
    },
  };
  const repository = withStorage(await openTestRepository(inner), changing);
  const { ahead } = await pushWithAhead(optionsFor(first.path, repository));
  assert.deepEqual(ahead, []);
});

test('pushWithAhead() commits in order whichever file is done first, and tells what every repository has', async () => {
  await using lab = await createWalLab();
  const made = await readySegments(lab, [1, 2, 3, 4, 5, 6]);
  await fc.assert(
    fc.asyncProperty(fc.scheduler(), fc.integer({ min: 0, max: 12 }), async (scheduler, failing) => {
      const committed: string[][] = [];
      let puts = 0;
      const slow = (inner: Storage, own: string[]): Storage => ({
        ...inner,
        description: inner.description,
        features: inner.features,
        put: async (key, source, options) => {
          puts += 1;
          const fails = puts === failing;
          await scheduler.schedule(Promise.resolve(), key);
          if (fails) throw new Error('it failed');
          const result = await inner.put(key, source, options);
          if (key.endsWith('.json')) own.push(key.slice(-29, -5));
          return result;
        },
      });
      const stores = [createMemoryStorage(), createMemoryStorage()];
      const repositories = await Promise.all(
        stores.map(async (inner, at) =>
          withStorage(await openTestRepository(inner, `${at}`), slow(inner, (committed[at] = []))),
        ),
      );
      puts = 0;
      const pushing = pushWithAhead(optionsFor(made[0]?.path ?? '', ...repositories));
      const outcome = await scheduler.waitFor(
        pushing.then(
          ({ ahead }) => ahead.map(({ path }) => path.slice(-24)),
          () => undefined,
        ),
      );
      const names = made.map(({ name }) => name);
      for (const repository of repositories) {
        const has = await namesIn(repository);
        assert.deepEqual(has, names.slice(0, has.length), 'a hole');
        for (const name of outcome ?? []) assert.ok(has.includes(name), 'told and not there');
      }
      if (failing === 0) assert.deepEqual(outcome, names.slice(1));
      for (const order of committed) assert.deepEqual(order, order.toSorted(), 'out of order');
    }),
    { numRuns: 40 },
  );
});

test('pushWithAhead() with a crash or an error at every operation: no hole, what was told is there, again completes', async () => {
  await using lab = await createWalLab();
  const made = await readySegments(lab, [1, 2, 3, 4]);
  const names = made.map(({ name }) => name);
  let told: string[] = [];
  const { runs } = await runWithCrashAtEveryOperation<VolatileStorage>({
    kinds: ['crash-before', 'crash-after', 'error-before', 'error-after'],
    prepare: async () => {
      told = [];
      const storage = new VolatileStorage();
      await openTestRepository(storage);
      return storage;
    },
    scenario: async (storage) => {
      const repository = await openTestRepository(storage);
      const { result, ahead } = await pushWithAhead(optionsFor(made[0]?.path ?? '', repository));
      told = [result.name, ...ahead.map(({ path }) => path.slice(-24))];
    },
    invariant: async (inner) => {
      inner.crash();
      const repository = await openTestRepository(inner);
      const has = await namesIn(repository);
      assert.deepEqual(has, names.slice(0, has.length), 'a hole');
      for (const name of told) assert.ok(has.includes(name), `${name} was told and is not there`);
      for (const [at, name] of has.entries())
        assert.deepEqual(await stored(repository, name), made[at]?.bytes);
      const again = await pushWithAhead(optionsFor(made[0]?.path ?? '', repository));
      assert.equal(again.ahead.length, 3);
      assert.deepEqual(await namesIn(repository), names);
    },
  });
  assert.ok(runs > 60, `only ${runs} faults were tried`);
});
