import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import { parseSystemIdentifier } from '../postgres/system-identifier.ts';
import type { WalSegmentName } from '../postgres/wal-segment.ts';
import type { Repository } from '../repository/repository.ts';
import { chainTails, listTails, type WalTail } from '../repository/wal-tail.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import type { Storage } from '../storage/storage.ts';
import { FaultyStorage } from '../../test/faulty-storage.ts';
import { storeHistory, storeWal } from '../../test/restore-lab.ts';
import { storeCuts, storePiece } from '../../test/tail-lab.ts';
import {
  createWalLab,
  makeSegment,
  openTestRepository,
  SEGMENT_SIZE,
  SYSTEM_IDENTIFIER,
  withStorage,
} from '../../test/wal-lab.ts';
import { type FetchOptions, type FetchResult, fetchWal } from './fetch.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

const one = makeSegment({ segment: 1 });
const two = makeSegment({ segment: 2 });
const three = makeSegment({ segment: 3 });

/** The LSN of an offset in segment 2. */
const inTwo = (offset: number): Lsn => lsnOf(2n * BigInt(SEGMENT_SIZE) + BigInt(offset));

interface Recovery extends AsyncDisposable {
  fetch(
    name: string,
    repositories: readonly Repository[],
    options?: Partial<FetchOptions>,
  ): Promise<FetchResult & { bytes: Buffer | undefined }>;
}

async function createRecovery(): Promise<Recovery> {
  const lab = await createWalLab();
  return {
    async fetch(name, repositories, options = {}) {
      const destination = await lab.write('RECOVERYXLOG', 'before');
      const result = await fetchWal({
        name,
        destination,
        repositories,
        clusters: ['app'],
        systemIdentifier: parseSystemIdentifier(SYSTEM_IDENTIFIER),
        segmentSize: SEGMENT_SIZE,
        deadlineMs: 0,
        ...options,
      });
      assert.deepEqual(await readdir(dirname(destination)), ['RECOVERYXLOG'], 'nothing else is left');
      const bytes = await readFile(destination);
      assert.equal(bytes.toString('latin1', 0, 7) === 'before', result.kind !== 'delivered');
      return { ...result, bytes: result.kind === 'delivered' ? bytes : undefined };
    },
    [Symbol.asyncDispose]: async () => lab[Symbol.asyncDispose](),
  };
}

function padded(bytes: Buffer, end: number): Buffer {
  return Buffer.concat([bytes.subarray(0, end), Buffer.alloc(bytes.length - end)]);
}

function failure(result: FetchResult): HoldfastError {
  assert.equal(result.kind, 'failed', JSON.stringify(result.kind));
  assert.ok(result.kind === 'failed' && result.error instanceof HoldfastError);
  return result.error;
}

async function named(name = 'local', objects = new Map<string, Buffer>()): Promise<Repository> {
  return await openTestRepository(createMemoryStorage(objects), name);
}

test('fetchWal() hands over the tails of the last segment, padded with zeros to its size', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeWal(repository, one.name, one.bytes);
  await storeCuts(repository, identity, two.name, two.bytes, [20, 5000, 30_000]);
  const result = await recovery.fetch(two.name, [repository]);
  assert.equal(result.kind, 'delivered');
  assert.deepEqual(result.bytes, padded(two.bytes, 30_000));
  assert.equal(result.kind === 'delivered' && result.storedUpTo, inTwo(30_000));
  assert.equal(result.kind === 'delivered' && result.hash, undefined, 'it is no complete segment');
  // The end of recovery: what comes next is proven to be absent, and the same segment again is the same.
  assert.equal((await recovery.fetch(three.name, [repository])).kind, 'absent');
  assert.equal((await recovery.fetch('00000002.history', [repository])).kind, 'absent');
  assert.deepEqual((await recovery.fetch(two.name, [repository])).bytes, result.bytes);
  await storePiece(repository, identity, two.name, two.bytes, 30_000, 40_000);
  assert.deepEqual((await recovery.fetch(two.name, [repository])).bytes, padded(two.bytes, 40_000));
});

test('fetchWal() learns the size of segments from a tail where there is nothing else', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeCuts(repository, identity, two.name, two.bytes, [30_000]);
  const options = { segmentSize: undefined } as unknown as FetchOptions;
  const result = await recovery.fetch(two.name, [repository], options);
  assert.deepEqual(result.bytes, padded(two.bytes, 30_000));
});

test('fetchWal() prefers the whole segment, whatever tails are left of it', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeCuts(repository, identity, two.name, two.bytes, [30_000]);
  await storeWal(repository, two.name, two.bytes);
  assert.deepEqual((await recovery.fetch(two.name, [repository])).bytes, two.bytes);
});

test('fetchWal() takes tails that give the whole segment for the segment', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeCuts(repository, identity, two.name, two.bytes, [30_000, SEGMENT_SIZE]);
  await storeWal(repository, three.name, three.bytes);
  assert.deepEqual((await recovery.fetch(two.name, [repository])).bytes, two.bytes);
});

test('fetchWal() calls a hole what ends in tails and goes on behind them', async () => {
  await using recovery = await createRecovery();
  for (const later of ['segment', 'tail'] as const) {
    const repository = await named();
    await storeCuts(repository, identity, two.name, two.bytes, [30_000]);
    if (later === 'segment') await storeWal(repository, three.name, three.bytes);
    else await storeCuts(repository, identity, three.name, three.bytes, [100]);
    const error = failure(await recovery.fetch(two.name, [repository]));
    assert.equal(error.code, 'wal-gap');
    assert.match(error.message, /stored up to 0\/207530 only, and .* comes after it/);
    assert.equal(failure(await recovery.fetch(one.name, [repository])).code, 'wal-gap');
    // A recovery that has to reach no further is told where to stop by its target.
    const enough = await recovery.fetch(two.name, [repository], { until: inTwo(30_000) });
    assert.deepEqual(enough.bytes, padded(two.bytes, 30_000));
  }
});

test('fetchWal() hands tails over up to until, and calls it a hole where they end before', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeCuts(repository, identity, two.name, two.bytes, [10_000, 30_000]);
  for (const until of [inTwo(-5), inTwo(0), inTwo(1), inTwo(30_000)]) {
    const result = await recovery.fetch(two.name, [repository], { until });
    assert.deepEqual(result.bytes, padded(two.bytes, 30_000), `until ${until}`);
  }
  const error = failure(await recovery.fetch(two.name, [repository], { until: inTwo(30_001) }));
  assert.equal(error.code, 'wal-gap');
  assert.match(error.message, /stored up to 0\/207530 only, and it is needed to reach 0\/207531/);
  const beyond = await recovery.fetch(three.name, [repository], { until: inTwo(30_000) });
  assert.equal(beyond.kind, 'absent');
});

test('fetchWal() says that a history file is missing where its timeline has only tails', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  const child = makeSegment({ segment: 2, timeline: 2, pageTimeline: 1 });
  await storeCuts(repository, identity, child.name, child.bytes, [30_000]);
  assert.equal(failure(await recovery.fetch('00000002.history', [repository])).code, 'wal-gap');
});

test("fetchWal() falls back to the parent's segment where a child's tails end before the switch point", async () => {
  await using recovery = await createRecovery();
  const child = makeSegment({ segment: 2, timeline: 2, pageTimeline: 1 });
  const at = 50_000;
  const make = async (childEnd: number): Promise<Repository> => {
    const repository = await named();
    await storeHistory(repository, 2, [1, inTwo(at)]);
    await storeCuts(repository, identity, child.name, child.bytes, [childEnd]);
    return repository;
  };
  const parentTail = await make(20_000);
  await storeCuts(parentTail, identity, two.name, two.bytes, [60_000]);
  const parentWhole = await make(20_000);
  await storeWal(parentWhole, two.name, two.bytes);
  const shorterParent = await make(20_000);
  await storeCuts(shorterParent, identity, two.name, two.bytes, [19_000]);
  const beyond = await make(50_001);
  await storeWal(beyond, two.name, two.bytes);
  const ask = async (repository: Repository, until?: Lsn): Promise<FetchResult['kind'] | number> => {
    const result = await recovery.fetch(child.name, [repository], until === undefined ? {} : { until });
    return result.kind === 'delivered' ? Number((result.storedUpTo ?? 0n) - inTwo(0)) : result.kind;
  };
  assert.equal(await ask(parentTail), 'absent');
  assert.equal(await ask(parentTail, inTwo(20_001)), 'absent');
  assert.equal(await ask(parentTail, inTwo(20_000)), 20_000);
  assert.equal(await ask(parentTail, inTwo(50_001)), 'failed');
  assert.equal(await ask(parentWhole), 'absent');
  assert.equal(await ask(shorterParent), 20_000);
  assert.equal(await ask(shorterParent, inTwo(20_001)), 'failed');
  assert.equal(await ask(beyond), 50_001);
  // An old primary's last tail stays, whatever its child does.
  const parent = await recovery.fetch(two.name, [parentTail]);
  assert.deepEqual(parent.bytes, padded(two.bytes, 60_000));
});

test('fetchWal() takes the longest tails of several repositories, and the whole segment before any', async () => {
  await using recovery = await createRecovery();
  const [short, long, whole, later] = [
    await named('a'),
    await named('b'),
    await named('c'),
    await named('d'),
  ];
  for (const [repository, end] of [
    [short, 10_000],
    [long, 30_000],
  ] as const) {
    await storeWal(repository, one.name, one.bytes);
    await storeCuts(repository, identity, two.name, two.bytes, [end]);
  }
  await storeWal(whole, two.name, two.bytes);
  await storeWal(later, three.name, three.bytes);
  const best = await recovery.fetch(two.name, [short, long]);
  assert.deepEqual(best.bytes, padded(two.bytes, 30_000));
  assert.equal(best.kind === 'delivered' && best.repository, 'b');
  assert.deepEqual((await recovery.fetch(two.name, [short, long, whole])).bytes, two.bytes);
  // One that knows of more makes every tail a beginning only, except where that is enough.
  assert.equal(failure(await recovery.fetch(two.name, [short, long, later])).code, 'wal-gap');
  const enough = await recovery.fetch(two.name, [short, later, long], { until: inTwo(20_000) });
  assert.deepEqual(enough.bytes, padded(two.bytes, 30_000));
  // One that cannot be asked may have more.
  const away = withStorage(long, {
    ...long.storage,
    list: () => {
      throw new HoldfastError('storage-unavailable', 'out of reach');
    },
  });
  assert.equal(failure(await recovery.fetch(two.name, [short, away])).code, 'storage-unavailable');
  const decided = await recovery.fetch(two.name, [short, away], { until: inTwo(10_000) });
  assert.equal(decided.kind, 'delivered');
});

test('fetchWal() takes a damaged tail from the next repository, with a warning', async () => {
  await using recovery = await createRecovery();
  const objects = new Map<string, Buffer>();
  const [bad, good] = [await named('bad', objects), await named('good')];
  for (const repository of [bad, good]) {
    await storeCuts(repository, identity, two.name, two.bytes, [10_000, 30_000]);
  }
  const [, last] = await Array.fromAsync(listTails(bad, identity));
  damage(objects, last);
  const until = inTwo(30_000);
  for (const options of [{}, { until }]) {
    const result = await recovery.fetch(two.name, [bad, good], options);
    assert.deepEqual(result.bytes, padded(two.bytes, 30_000));
    assert.equal(result.kind === 'delivered' && result.repository, 'good');
    assert.deepEqual(
      result.warnings.map(({ code }) => code),
      ['object-damaged'],
    );
    assert.equal(failure(await recovery.fetch(two.name, [bad], options)).code, 'object-damaged');
  }
  // What lies before the damage is enough for a target in it.
  const intact = await recovery.fetch(two.name, [bad], { until: inTwo(9_000) });
  assert.deepEqual(intact.bytes, padded(two.bytes, 10_000));
  assert.equal(intact.warnings.length, 1);
  // And another tail of the same bytes makes up for it.
  await storePiece(bad, identity, two.name, two.bytes, 8000, 30_000);
  const mended = await recovery.fetch(two.name, [bad]);
  assert.deepEqual(mended.bytes, padded(two.bytes, 30_000));
});

test('fetchWal() refuses tails that are not of this segment and of this cluster', async () => {
  await using recovery = await createRecovery();
  const foreign = makeSegment({ segment: 2, systemIdentifier: '7000000000000000009' });
  for (const [bytes, code] of [
    [foreign.bytes, 'cluster-mismatch'],
    [three.bytes, 'wal-invalid'],
  ] as const) {
    const repository = await named();
    await storeCuts(repository, identity, two.name, bytes, [30_000]);
    assert.equal(failure(await recovery.fetch(two.name, [repository])).code, code);
  }
});

test('fetchWal() looks again where tails are merged, or the segment completed, while it reads', async () => {
  await using recovery = await createRecovery();
  for (const moment of ['before the first tail', 'after the last tail'] as const) {
    for (const becomes of ['merged', 'whole'] as const) {
      const repository = await named();
      const old = await storeCuts(repository, identity, two.name, two.bytes, [10_000, 30_000]);
      let changed = false;
      const change = async (): Promise<void> => {
        if (changed) return;
        changed = true;
        if (becomes === 'whole') await storeWal(repository, two.name, two.bytes);
        else await storePiece(repository, identity, two.name, two.bytes, 0, 35_000);
        for (const { key } of old) await repository.storage.delete(key);
      };
      const { storage } = repository;
      const changing: Storage = {
        ...storage,
        async *get(key, options) {
          const isTail = key.includes('/wal-tail/');
          if (isTail && moment === 'before the first tail') await change();
          yield* storage.get(key, options);
          if (isTail && key === old[1]?.key) await change();
        },
      };
      const result = await recovery.fetch(two.name, [withStorage(repository, changing)]);
      assert.ok(changed);
      const expected = becomes === 'whole' ? two.bytes : padded(two.bytes, 35_000);
      assert.deepEqual(result.bytes, expected, `${becomes} ${moment}`);
    }
  }
});

test('fetchWal() asks for no listing of tails where the segment has a header', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeWal(repository, two.name, two.bytes);
  await storeCuts(repository, identity, three.name, three.bytes, [100]);
  const listed: string[] = [];
  const { storage } = repository;
  const watched: Storage = {
    ...storage,
    list(prefix, options) {
      listed.push(prefix);
      return storage.list(prefix, options);
    },
  };
  await recovery.fetch(two.name, [withStorage(repository, watched)]);
  assert.deepEqual(
    listed.filter((prefix) => prefix.includes('wal-tail')),
    [],
  );
});

test('fetchWal() with a fault at every operation delivers all of the tails, or says absent rightly, or fails', async () => {
  await using recovery = await createRecovery();
  const repository = await named();
  await storeWal(repository, one.name, one.bytes);
  await storeCuts(repository, identity, two.name, two.bytes, [10_000, 20_000, 30_000]);
  const whole = padded(two.bytes, 30_000);
  let faults = 0;
  for (const kind of [
    'error-before',
    'error-after',
    'crash-before',
    'truncated-read',
    'flipped-read',
  ] as const) {
    for (const until of [undefined, inTwo(25_000)]) {
      for (const asked of [two.name, three.name]) {
        for (let at = 1; ; at += 1) {
          const faulty = new FaultyStorage(repository.storage, { kind, at, seed: at });
          const options = { deadlineMs: 1000, firstPauseMs: 1, ...(until !== undefined && { until }) };
          const result = await recovery.fetch(asked, [withStorage(repository, faulty)], options);
          if (faulty.fired === undefined) break;
          faults += 1;
          const where = `${kind} at ${at} of ${asked} until ${until}`;
          if (result.kind === 'delivered') assert.deepEqual(result.bytes, whole, where);
          if (result.kind === 'absent') assert.equal(asked, three.name, where);
          if (kind.startsWith('error')) {
            assert.equal(result.kind, asked === two.name ? 'delivered' : 'absent', where);
          }
        }
      }
    }
  }
  assert.ok(faults > 60, `only ${faults} faults were tried`);
});

test('fetchWal() never hands over a byte that was not stored, nor tails that something follows', async () => {
  await using recovery = await createRecovery();
  const segments = [one, two, three];
  const offset = fc.integer({ min: 0, max: 12 }).map((step) => step * 4000);
  const pieces = fc.array(fc.tuple(offset, offset), { maxLength: 4 });
  const state = fc.record({ whole: fc.integer({ min: 0, max: 3 }).map((n) => n === 0), pieces });
  await fc.assert(
    fc.asyncProperty(
      fc.tuple(state, state, state),
      fc.option(fc.integer({ min: 3, max: 16 }), { nil: undefined }),
      fc.integer({ min: 0, max: 2 }),
      async (states, untilStep, asked) => {
        const repository = await named();
        for (const [index, { whole, pieces: cuts }] of states.entries()) {
          const made = segments[index] ?? one;
          if (whole) await storeWal(repository, made.name, made.bytes);
          for (const [a, b] of cuts) {
            if (a < b) await storePiece(repository, identity, made.name, made.bytes, a, b);
          }
        }
        const until = untilStep === undefined ? undefined : inTwo((untilStep - 9) * 8000);
        const made = segments[asked] ?? one;
        const result = await recovery.fetch(made.name, [repository], until === undefined ? {} : { until });
        const listed = await Array.fromAsync(
          listTails(repository, identity, { segment: made.name as WalSegmentName }),
        );
        const start = lsnOf(BigInt(asked + 1) * BigInt(SEGMENT_SIZE));
        const end = lsnOf(start + BigInt(chainTails(listed)?.end ?? 0));
        const follows = states
          .slice(asked + 1)
          .some(({ whole, pieces: cuts }) => whole || cuts.some(([a, b]) => a < b));
        const isWhole = states[asked]?.whole === true;
        const mayBeGiven = end > start && (until === undefined ? !follows : until <= end);
        assert.equal(result.kind === 'delivered', isWhole || mayBeGiven);
        if (result.kind === 'delivered') {
          assert.deepEqual(result.bytes, isWhole ? made.bytes : padded(made.bytes, Number(end - start)));
        } else {
          const holds = follows || (until !== undefined && start < until);
          assert.equal(result.kind, holds || isUnknown(states) ? 'failed' : 'absent');
        }
      },
    ),
    { numRuns: 150 * Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1) },
  );
});

function isUnknown(
  states: readonly { whole: boolean; pieces: readonly (readonly [number, number])[] }[],
): boolean {
  return !states.some(({ whole, pieces }) => whole || pieces.some(([a, b]) => a < b));
}

function damage(objects: Map<string, Buffer>, tail: WalTail | undefined): void {
  assert.ok(tail);
  const bytes = Buffer.from(objects.get(tail.key) ?? Buffer.alloc(0));
  bytes.writeUInt8(bytes.readUInt8(bytes.length >> 1) ^ 0x10, bytes.length >> 1);
  objects.set(tail.key, bytes);
}
