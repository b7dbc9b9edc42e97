import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import { HoldfastError } from '../errors.ts';
import type { Repository } from '../repository/repository.ts';
import { listWal } from '../repository/wal-listing.ts';
import type { Storage } from '../storage/storage.ts';
import { failsWith } from '../../test/sealed-object.ts';
import {
  createWalLab,
  openTestRepository,
  SYSTEM_IDENTIFIER,
  type WalLab,
  withStorage,
} from '../../test/wal-lab.ts';
import { type Behind, clearBehind, noteBehind, readBehind } from './behind.ts';
import { catchUp } from './catch-up.ts';
import { takeCatchUpLock } from './catch-up-lock.ts';
import { pushWithAhead } from './push-ahead.ts';
import { pushWal } from './push.ts';
import { PushToOptional } from './push-optional.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

interface Site {
  lab: WalLab;
  state: string;
  required: Repository;
  offsite: Repository;
  /** Repositories that catching up was started for. */
  started: string[];
  /** What the clock says, in seconds. */
  clock: { seconds: number };
  opened: { times: number };
  /** Milliseconds it took. */
  push: (segment: number, open?: () => Promise<Repository>, graceMs?: number) => Promise<number>;
  notes: () => Promise<Behind[]>;
  offsiteHas: () => Promise<number[]>;
  catchUp: (open?: () => Promise<Repository>) => Promise<boolean>;
}

async function site(t: TestContext): Promise<Site> {
  const lab = await createWalLab();
  const state = await mkdtemp(join(tmpdir(), 'hf-optional-'));
  t.after(async () => {
    await lab[Symbol.asyncDispose]();
    await rm(state, { recursive: true });
  });
  const [required, offsite] = [await openTestRepository(), await openTestRepository()];
  const started: string[] = [];
  const clock = { seconds: 0 };
  const opened = { times: 0 };
  const now = (): Date => new Date(Date.UTC(2026, 0, 1) + clock.seconds * 1000);
  return {
    lab,
    state,
    required,
    offsite,
    started,
    clock,
    opened,
    async push(segment, open = async () => offsite, graceMs = 300) {
      const { path } = await lab.segment({ segment });
      const optional = new PushToOptional({
        repositories: [
          {
            name: 'offsite',
            open: async () => {
              opened.times += 1;
              return open();
            },
          },
        ],
        stateDirectory: state,
        now,
        startCatchUp: (repository) => void started.push(repository),
        graceMs,
      });
      const began = performance.now();
      await pushWal({
        path,
        repositories: [required],
        optional,
        cluster: { configured: ['app'] },
        host: 'h',
        now,
      });
      return performance.now() - began;
    },
    notes: async () => readBehind(state, SYSTEM_IDENTIFIER),
    async offsiteHas() {
      const entries = await Array.fromAsync(listWal(offsite, identity));
      return entries.map(({ name }) => Number.parseInt(name.slice(16), 16));
    },
    async catchUp(open = async () => offsite) {
      const to = { name: 'offsite', open };
      const { complete } = await catchUp({ identity, sources: [required], to, stateDirectory: state, now });
      return complete;
    },
  };
}

/** A repository in which nothing that is put ever arrives. */
function hanging(repository: Repository): Repository {
  const { storage } = repository;
  const never: Storage = {
    ...storage,
    description: storage.description,
    features: storage.features,
    put: async (_key, _source, options) =>
      new Promise((_, reject) => {
        options?.signal?.addEventListener('abort', () => reject(new HoldfastError('cancelled', 'cancelled')));
      }),
  };
  return withStorage(repository, never);
}

const away = async (): Promise<Repository> => {
  throw new HoldfastError('storage-unavailable', 'no route to host');
};

test('pushWal() stores in optional repositories at the same time, and notes nothing', async (t) => {
  const { push, offsiteHas, notes, started } = await site(t);
  await push(1);
  await push(2);
  assert.deepEqual([await offsiteHas(), await notes(), started], [[1, 2], [], []]);
});

test('pushWal() succeeds without an optional repository, notes why, and lets it alone until it is due', async (t) => {
  const { push, notes, clock, opened, started, offsiteHas } = await site(t);
  await push(1, away);
  const [note] = await notes();
  assert.equal(note?.reason, 'no route to host');
  assert.equal(note?.first, '000000010000000000000001');
  assert.equal(note?.tryAgainAt, '2026-01-01T00:00:10.000Z');
  clock.seconds = 9;
  await push(2);
  assert.deepEqual([opened.times, started, await offsiteHas()], [1, [], []]);
  clock.seconds = 11;
  await push(3);
  assert.deepEqual([opened.times, started], [1, ['offsite']]);
  assert.equal((await notes())[0]?.tryAgainAt, '2026-01-01T00:00:22.000Z');
  await push(4);
  assert.deepEqual(started, ['offsite'], 'not twice before its time');
});

test('pushWal() waits for a slow optional repository no longer than the grace, once', async (t) => {
  const at = await site(t);
  const tookMs = await at.push(1, async () => hanging(at.offsite), 300);
  assert.ok(tookMs >= 280 && tookMs < 2000, `${tookMs} ms`);
  assert.match((await at.notes())[0]?.reason ?? '', /too slow/);
  const againMs = await at.push(2, async () => hanging(at.offsite), 60_000);
  assert.ok(againMs < 5000, `${againMs} ms`);
  assert.equal(at.opened.times, 1);
});

test('pushWal() does not wait for optional repositories where a required one fails', async (t) => {
  const at = await site(t);
  await pushWal({
    path: (await at.lab.segment({ segment: 1, seed: 5 })).path,
    repositories: [at.required],
    cluster: { configured: ['app'] },
    host: 'h',
    now: () => new Date(),
  });
  const rival = at.push(1, async () => hanging(at.offsite), 600_000);
  await assert.rejects(rival, failsWith('wal-conflict'));
  assert.deepEqual(await at.notes(), []);
});

test('pushWithAhead() holds files up for a slow optional repository no longer than one grace in all', async (t) => {
  const at = await site(t);
  let path = '';
  for (let segment = 12; segment >= 1; segment -= 1) {
    const made = await at.lab.segment({ segment });
    await at.lab.write(`archive_status/${made.name}.ready`, '');
    path = made.path;
  }
  const optional = new PushToOptional({
    repositories: [{ name: 'offsite', open: async () => hanging(at.offsite) }],
    stateDirectory: at.state,
    now: () => new Date(),
    startCatchUp: () => undefined,
    graceMs: 400,
  });
  const options = { path, repositories: [at.required], optional, cluster: { configured: ['app'] } };
  const began = performance.now();
  const { ahead } = await pushWithAhead({ ...options, host: 'h', now: () => new Date() });
  assert.equal(ahead.length, 11);
  assert.ok(performance.now() - began < 3000, `${performance.now() - began} ms`);
  assert.deepEqual((await at.notes()).length, 1);
});

test('catchUp() copies what is missing, clears the note, and pushes go there again', async (t) => {
  const { push, notes, catchUp: run, offsiteHas, opened } = await site(t);
  await push(1, away);
  await push(2);
  assert.equal(await run(), true);
  assert.deepEqual([await offsiteHas(), await notes()], [[1, 2], []]);
  await push(3);
  assert.deepEqual([await offsiteHas(), opened.times], [[1, 2, 3], 2]);
});

test('catchUp() that cannot reach the repository moves the note on, longer each time', async (t) => {
  const { push, notes, catchUp: run, clock } = await site(t);
  await push(1, away);
  const waits: number[] = [];
  for (const seconds of [10, 20, 40, 80, 160, 320, 620]) {
    clock.seconds = seconds;
    assert.equal(await run(away), false);
    const [note] = await notes();
    assert.equal(note?.first, '000000010000000000000001');
    waits.push((Date.parse(note?.tryAgainAt ?? '') - Date.UTC(2026, 0, 1)) / 1000 - seconds);
  }
  assert.deepEqual(waits, [10, 20, 40, 80, 160, 300, 300]);
});

test('catchUp() and a push that left the repository out meanwhile lose no file between them', async (t) => {
  const at = await site(t);
  await at.push(1, away);
  at.clock.seconds = 60;
  // The push has read the note when somebody else catches up, and stores its file only after that.
  let caughtUp = false;
  const { storage } = at.required;
  const late: Storage = {
    ...storage,
    description: storage.description,
    features: storage.features,
    put: async (key, source, options) => {
      if (!caughtUp) {
        caughtUp = true;
        assert.equal(await at.catchUp(), true);
        assert.deepEqual(await at.notes(), []);
      }
      return storage.put(key, source, options);
    },
  };
  const required = at.required;
  Object.assign(at.required, withStorage(required, late));
  await at.push(2);
  assert.ok(caughtUp);
  assert.deepEqual(await at.offsiteHas(), [1]);
  assert.equal((await at.notes()).length, 1, 'it is noted again');
  // The repository is well: the next push stores there itself, and has the other file made up for.
  await at.push(3);
  assert.deepEqual([await at.offsiteHas(), at.started], [[1, 3], ['offsite']]);
  assert.equal(await at.catchUp(), true);
  assert.deepEqual([await at.offsiteHas(), await at.notes()], [[1, 2, 3], []]);
});

test('catchUp() with a file that no source can give copies the rest and says so', async (t) => {
  const at = await site(t);
  for (const segment of [1, 2, 3]) await at.push(segment, away);
  for await (const { key } of at.required.storage.list('clusters/')) {
    if (key.includes('wal-data') && key.includes('000000010000000000000002-')) {
      await at.required.storage.put(key, Buffer.from('damaged'));
    }
  }
  assert.equal(await at.catchUp(), false);
  assert.deepEqual(await at.offsiteHas(), [1, 3]);
  assert.match((await at.notes())[0]?.reason ?? '', /000000010000000000000002: .*not what was stored/);
});

test('PushToOptional starts nothing while a process catches up already', async (t) => {
  const { push, clock, started, state } = await site(t);
  await push(1, away);
  clock.seconds = 60;
  {
    await using _lock = await takeCatchUpLock(state, SYSTEM_IDENTIFIER, 'offsite');
    await push(2);
    assert.deepEqual(started, []);
    await assert.rejects(
      takeCatchUpLock(state, SYSTEM_IDENTIFIER, 'offsite'),
      failsWith('repository-locked'),
    );
    await using _other = await takeCatchUpLock(state, SYSTEM_IDENTIFIER, 'another');
  }
  await push(3);
  assert.deepEqual(started, ['offsite']);
});

test('noteBehind() keeps since when and from which file on, clearBehind() forgets', async (t) => {
  const { state } = await site(t);
  const note = { repository: 'r', since: 'a', first: 'b', reason: 'c', tryAgainAt: 'd' };
  await noteBehind(state, '7', note);
  await noteBehind(state, '7', { repository: 'r', since: 'x', first: 'x', reason: 'x', tryAgainAt: 'x' });
  assert.deepEqual(await readBehind(state, '7'), [{ ...note, reason: 'x', tryAgainAt: 'x' }]);
  await clearBehind(state, '7', 'r');
  assert.deepEqual(await readBehind(state, '7'), []);
});
