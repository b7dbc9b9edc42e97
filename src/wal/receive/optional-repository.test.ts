import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { createReceiveLab, hastyClock, IDENTITY, walOf } from '../../../test/receive-lab.ts';
import { openTestRepository, withStorage } from '../../../test/wal-lab.ts';
import { HoldfastError } from '../../errors.ts';
import { walDataPrefix } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { storeWalFile } from '../../repository/wal-file.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { listTails, prepareTail, storeTail } from '../../repository/wal-tail.ts';
import { createMemoryStorage } from '../../storage/memory.ts';
import type { Storage } from '../../storage/storage.ts';
import { readBehind } from '../behind.ts';
import { followRequired, type OptionalRepository } from './optional-repository.ts';

interface Bench extends AsyncDisposable {
  readonly from: Repository;
  readonly to: Repository;
  readonly follower: OptionalRepository;
  readonly problems: (string | undefined)[];
  readonly objects: Map<string, Buffer>;
  readonly stateDirectory: string;
  readonly signal: AbortSignal;
  /** While true, the optional repository is away. */
  away: boolean;
  segment(number: number): Promise<void>;
  tail(number: number, to: number): Promise<void>;
  end(): Promise<void>;
}

async function createBench(): Promise<Bench> {
  const lab = await createReceiveLab();
  const stateDirectory = await mkdtemp(join(tmpdir(), 'hf-optional-'));
  const objects = new Map<string, Buffer>();
  const from = await openTestRepository(createMemoryStorage(objects), 'main');
  const to = await openTestRepository(undefined, 'copy');
  const problems: (string | undefined)[] = [];
  const ending = new AbortController();
  const bench = { away: false };
  const guarded = withStorage(
    to,
    guard(to.storage, () => bench.away),
  );
  const follower = followRequired({
    name: 'copy',
    open: async () => {
      if (bench.away) throw new HoldfastError('storage-unavailable', 'away');
      return guarded;
    },
    from,
    identity: IDENTITY,
    stateDirectory,
    clock: hastyClock,
    signal: ending.signal,
    problem: (error) => problems.push(error?.code),
  });
  return Object.assign(bench, {
    from,
    to,
    follower,
    problems,
    objects,
    stateDirectory,
    signal: ending.signal,
    async segment(number: number) {
      const received = await lab.receive(number);
      const content = received.content();
      assert.ok(content !== undefined);
      await storeWalFile(
        from,
        IDENTITY,
        { ...content, modifiedAt: new Date(0) },
        { host: 'test', now: () => new Date(0) },
      );
      await received.discard();
    },
    async tail(number: number, end: number) {
      const segment = `0000000100000000${number.toString(16).toUpperCase().padStart(8, '0')}`;
      const bytes = Buffer.from(walOf(number).subarray(0, end));
      await storeTail(
        from,
        IDENTITY,
        await prepareTail(segment as Parameters<typeof prepareTail>[0], 0, bytes, 1n),
      );
    },
    async end() {
      ending.abort();
      await follower.ended;
    },
    async [Symbol.asyncDispose]() {
      ending.abort();
      await follower.ended;
      await lab[Symbol.asyncDispose]();
      await rm(stateDirectory, { recursive: true, force: true });
    },
  });
}

function guard(inner: Storage, isAway: () => boolean): Storage {
  const check = (): void => {
    if (isAway()) throw new HoldfastError('storage-unavailable', 'away');
  };
  return {
    description: inner.description,
    features: inner.features,
    async put(key, source, options) {
      check();
      return inner.put(key, source, options);
    },
    async *get(key, options) {
      check();
      yield* inner.get(key, options);
    },
    async head(key, options) {
      check();
      return inner.head(key, options);
    },
    async *list(prefix, options) {
      check();
      yield* inner.list(prefix, options);
    },
    async delete(key, options) {
      check();
      await inner.delete(key, options);
    },
    async confirm(key) {
      check();
      await inner.confirm(key);
    },
  };
}

async function contents(repository: Repository): Promise<string[]> {
  const wal = await Array.fromAsync(listWal(repository, IDENTITY), ({ name }) => name.slice(-2));
  const tails = await Array.fromAsync(
    listTails(repository, IDENTITY),
    ({ segment, to }) => `${segment.slice(-2)}-${to}`,
  );
  return [...wal, ...tails];
}

async function reaches(bench: Bench, expected: string[]): Promise<void> {
  const deadline = performance.now() + 5000;
  for (;;) {
    const now = await contents(bench.to);
    if (now.join() === expected.join()) return;
    assert.ok(performance.now() < deadline, `${now.join()} instead of ${expected.join()}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, condition.toString());
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

void describe('followRequired()', () => {
  void it('followRequired() copies segments and tails, and drops tails as the required repository does', async () => {
    await using bench = await createBench();
    await bench.segment(3);
    await bench.tail(4, 5000);
    bench.follower.wake('x');
    await reaches(bench, ['03', '04-5000']);
    await bench.segment(4);
    for (const { key } of await Array.fromAsync(listTails(bench.from, IDENTITY)))
      await bench.from.storage.delete(key);
    bench.follower.wake('x');
    await reaches(bench, ['03', '04']);
    assert.deepEqual(bench.problems, []);
  });

  void it('followRequired() notes what is away as behind, and catches up when it is back', async () => {
    await using bench = await createBench();
    await bench.segment(3);
    bench.follower.wake('000000010000000000000003');
    await reaches(bench, ['03']);
    bench.away = true;
    await bench.segment(4);
    bench.follower.wake('000000010000000000000004');
    await until(async () => (await readBehind(bench.stateDirectory, IDENTITY.systemIdentifier)).length === 1);
    const [note] = await readBehind(bench.stateDirectory, IDENTITY.systemIdentifier);
    assert.equal(note?.repository, 'copy');
    assert.equal(note.first, '000000010000000000000004');
    await bench.segment(5);
    bench.follower.wake('000000010000000000000005');
    assert.deepEqual(await contents(bench.to), ['03']);
    bench.away = false;
    await reaches(bench, ['03', '04', '05']);
    await until(async () => (await readBehind(bench.stateDirectory, IDENTITY.systemIdentifier)).length === 0);
    assert.equal(bench.problems.at(-1), undefined);
    assert.ok(bench.problems.includes('storage-unavailable'));
  });

  void it('followRequired() passes over what is damaged in the required repository, and says so', async () => {
    await using bench = await createBench();
    for (const number of [3, 4, 5]) await bench.segment(number);
    await bench.tail(6, 7000);
    const key = [...bench.objects.keys()].find(
      (one) => one.startsWith(walDataPrefix(IDENTITY)) && one.includes('000000010000000000000004'),
    );
    const object = bench.objects.get(key ?? '');
    assert.ok(object !== undefined);
    object.writeUInt8(object.readUInt8(200) ^ 1, 200);
    bench.follower.wake('x');
    await reaches(bench, ['03', '05', '06-7000']);
    await until(() => bench.problems.includes('object-damaged'));
    await until(async () => (await readBehind(bench.stateDirectory, IDENTITY.systemIdentifier)).length === 1);
  });

  void it('followRequired() may be woken any number of times, and holds nothing for it', async () => {
    await using bench = await createBench();
    const before = getEventListeners(bench.signal, 'abort').length;
    for (let to = 1000; to < 31_000; to += 1000) {
      await bench.tail(3, to);
      bench.follower.wake();
      await until(async () => (await contents(bench.to)).includes(`03-${to}`));
      // It goes to sleep again.
      await new Promise((resolve) => setTimeout(resolve, 3));
    }
    const after = getEventListeners(bench.signal, 'abort').length;
    assert.ok(after <= before + 2, `${after} listeners`);
  });
});
