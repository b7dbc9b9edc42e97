import assert from 'node:assert/strict';
import { readFile, readdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { createBlake3 } from '../stream/hash.ts';
import { parseLsn } from '../postgres/lsn.ts';
import { parseSystemIdentifier } from '../postgres/system-identifier.ts';
import { walHeaderKey } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader } from '../repository/wal-file.ts';
import { generateIdentity, parseIdentities } from '../seal/identity.ts';
import { openerFor, sealerFor } from '../seal/sealers.ts';
import type { SealKind } from '../seal/sealer.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { FaultyStorage } from '../../test/faulty-storage.ts';
import { seededRandom } from '../../test/seeded-random.ts';
import {
  createWalLab,
  historyText,
  makeSegment,
  openTestRepository,
  type SegmentOptions,
  SYSTEM_IDENTIFIER,
  type WalLab,
  withStorage,
} from '../../test/wal-lab.ts';
import { type FetchOptions, type FetchResult, fetchWal } from './fetch.ts';
import { pushWal } from './push.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };

interface Archive extends AsyncDisposable {
  lab: WalLab;
  objects: Map<string, Buffer>;
  repository: Repository;
  destination: string;
  push(options: SegmentOptions): Promise<{ name: string; bytes: Buffer }>;
  pushFile(name: string, content: Buffer | string): Promise<void>;
  fetch(name: string, options?: Partial<FetchOptions>): Promise<FetchResult>;
  /** What is at the destination; undefined where nothing is. Fails the test if anything else was left. */
  delivered(): Promise<Buffer | undefined>;
}

async function createArchive(objects = new Map<string, Buffer>(), name = 'local'): Promise<Archive> {
  const lab = await createWalLab();
  const repository = await openTestRepository(createMemoryStorage(objects), name);
  const target = await createWalLab();
  const destination = await target.write('RECOVERYXLOG', 'before');
  const directory = join(target.directory, 'pg_wal');
  const push = async (path: string): Promise<void> => {
    await pushWal({
      path,
      repositories: [repository],
      cluster: { configured: ['app'] },
      host: 'db1',
      now: () => new Date(),
    });
  };
  return {
    lab,
    objects,
    repository,
    destination,
    async push(options) {
      const made = await lab.segment(options);
      await push(made.path);
      return made;
    },
    async pushFile(file, content) {
      await push(await lab.write(file, content));
    },
    fetch: async (file, options = {}) =>
      fetchWal({
        name: file,
        destination,
        repositories: [repository],
        clusters: ['app'],
        systemIdentifier: parseSystemIdentifier(SYSTEM_IDENTIFIER),
        deadlineMs: 0,
        firstPauseMs: 1,
        ...options,
      }),
    async delivered() {
      assert.deepEqual(await readdir(directory), ['RECOVERYXLOG']);
      const bytes = await readFile(destination);
      return bytes.toString() === 'before' ? undefined : bytes;
    },
    async [Symbol.asyncDispose]() {
      await lab[Symbol.asyncDispose]();
      await target[Symbol.asyncDispose]();
    },
  };
}

const nameOf = (segment: number, timeline = 1): string => makeSegment({ segment, timeline }).name;
const until = (lsn: string): Pick<FetchOptions, 'until'> => ({ until: parseLsn(lsn) });

function failureCode(result: FetchResult): string {
  assert.equal(result.kind, 'failed', JSON.stringify(result));
  return result.kind === 'failed' && result.error instanceof HoldfastError ? result.error.code : 'no code';
}

test('fetchWal() delivers what was pushed, byte for byte, readable by its owner only', async () => {
  await using archive = await createArchive();
  const { name, bytes } = await archive.push({ segment: 1 });
  const result = await archive.fetch(name);
  const hash = createBlake3();
  hash.update(bytes);
  assert.deepEqual(result, {
    kind: 'delivered',
    repository: 'local',
    sizeBytes: bytes.length,
    hash: hash.hex(),
    warnings: [],
  });
  assert.deepEqual(await archive.delivered(), bytes);
  assert.equal((await stat(archive.destination)).mode & 0o777, 0o600);
});

test('fetchWal() delivers history and partial files by their own names, never a partial as its segment', async () => {
  await using archive = await createArchive();
  const { name, bytes } = makeSegment({ segment: 4 });
  const history = historyText([1, '0/480000']);
  await archive.lab.write(nameOf(3), makeSegment({ segment: 3 }).bytes);
  await archive.pushFile('00000002.history', history);
  await archive.pushFile(`${name}.partial`, bytes);
  assert.equal((await archive.fetch(name)).kind, 'absent');
  assert.equal(await archive.delivered(), undefined);
  assert.equal((await archive.fetch('00000002.history')).kind, 'delivered');
  assert.deepEqual(await archive.delivered(), Buffer.from(history));
  assert.equal((await archive.fetch(`${name}.partial`)).kind, 'delivered');
  assert.deepEqual(await archive.delivered(), bytes);
});

test('fetchWal() calls a segment absent only where the repository proves it', async () => {
  await using archive = await createArchive();
  await archive.push({ segment: 1 });
  await archive.push({ segment: 2 });
  await archive.push({ segment: 4 });
  const cases: [string, Partial<FetchOptions>, string][] = [
    ['the end of the archive', {}, 'absent'],
    ['the end, which is the target', until('0/500000'), 'absent'],
    ['the end, behind the target', until('0/4F0000'), 'absent'],
    ['the end, before the target', until('0/500001'), 'wal-gap'],
    ['the end, far before the target', until('1/0'), 'wal-gap'],
  ];
  for (const [what, options, expected] of cases) {
    const result = await archive.fetch(nameOf(5), options);
    assert.equal(result.kind === 'absent' ? 'absent' : failureCode(result), expected, what);
  }
  assert.equal(failureCode(await archive.fetch(nameOf(3))), 'wal-gap');
  assert.equal(failureCode(await archive.fetch(nameOf(3), until('0/100000'))), 'wal-gap');
  assert.equal(failureCode(await archive.fetch('000000010000000000000000')), 'wal-gap');
  assert.equal(await archive.delivered(), undefined);
});

test('fetchWal() takes any later file of the timeline as proof of a hole', async () => {
  for (const later of [
    `${nameOf(7)}.partial`,
    `${nameOf(7)}.00000028.backup`,
    `${nameOf(6)}.00000028.backup`,
  ]) {
    await using archive = await createArchive();
    await archive.push({ segment: 5 });
    await archive.pushFile(
      later,
      later.endsWith('.partial') ? makeSegment({ segment: 7 }).bytes : 'START WAL\n',
    );
    assert.equal(failureCode(await archive.fetch(nameOf(6))), 'wal-gap', later);
  }
  await using archive = await createArchive();
  await archive.push({ segment: 5 });
  await archive.pushFile(`${nameOf(6)}.partial`, makeSegment({ segment: 6 }).bytes);
  await archive.pushFile(`${nameOf(5)}.00000028.backup`, 'START WAL\n');
  assert.equal((await archive.fetch(nameOf(6))).kind, 'absent');
});

test('fetchWal() does not call absent what has data without a header, unless the target is behind', async () => {
  await using archive = await createArchive();
  await archive.push({ segment: 1 });
  const { name } = await archive.push({ segment: 2 });
  archive.objects.delete(walHeaderKey(identity, name));
  assert.equal(failureCode(await archive.fetch(name)), 'wal-gap');
  assert.equal(failureCode(await archive.fetch(name, until('0/200001'))), 'wal-gap');
  assert.equal((await archive.fetch(name, until('0/200000'))).kind, 'absent');
});

test('fetchWal() concludes nothing from a repository that has nothing of the cluster', async () => {
  await using archive = await createArchive();
  assert.equal(failureCode(await archive.fetch(nameOf(1))), 'cluster-unknown');
  assert.equal(failureCode(await archive.fetch('00000002.history')), 'cluster-unknown');
  await archive.push({ segment: 1 });
  const foreign = { systemIdentifier: parseSystemIdentifier('7000000000000000002') };
  assert.equal(failureCode(await archive.fetch(nameOf(1), foreign)), 'cluster-unknown');
  assert.equal(failureCode(await archive.fetch(nameOf(1), { clusters: ['shop'] })), 'cluster-unknown');
});

test('fetchWal() finds the history by the name where the system identifier is not known, if there is one only', async () => {
  await using archive = await createArchive();
  const { name } = await archive.push({ segment: 1 });
  const options: FetchOptions = {
    name,
    destination: archive.destination,
    repositories: [archive.repository],
    clusters: ['app'],
    deadlineMs: 0,
  };
  assert.equal((await fetchWal(options)).kind, 'delivered');
  archive.objects.set('clusters/app/7000000000000000002/base/x.json', Buffer.from('x'));
  assert.equal(failureCode(await fetchWal(options)), 'cluster-mismatch');
});

test('fetchWal() knows which absences are normal where a timeline begins', async () => {
  await using archive = await createArchive();
  for (const segment of [1, 2, 3, 4]) await archive.push({ segment });
  // Timeline 2 forks off in the midst of segment 4 and has so far archived nothing.
  await archive.lab.write('00000002.history', historyText([1, '0/480000']));
  await archive.pushFile('00000002.history', historyText([1, '0/480000']));
  assert.equal((await archive.fetch(nameOf(4, 2))).kind, 'absent');
  assert.equal((await archive.fetch(nameOf(4, 2), until('0/480000'))).kind, 'absent');
  assert.equal(failureCode(await archive.fetch(nameOf(4, 2), until('0/480001'))), 'wal-gap');
  assert.equal((await archive.fetch(nameOf(3, 2), until('0/400000'))).kind, 'absent');
  // It goes on: before its begin nothing of it exists, from there on everything must.
  await archive.push({ segment: 5, timeline: 2 });
  assert.equal((await archive.fetch(nameOf(3, 2))).kind, 'absent');
  assert.equal(failureCode(await archive.fetch(nameOf(4, 2))), 'wal-gap');
  assert.equal((await archive.fetch(nameOf(6, 2))).kind, 'absent');
});

test('fetchWal() calls a history file absent only if its timeline has nothing', async () => {
  await using archive = await createArchive();
  await archive.push({ segment: 1 });
  assert.equal((await archive.fetch('00000002.history')).kind, 'absent');
  assert.equal((await archive.fetch('00000001.history')).kind, 'absent');
  await archive.pushFile('0000000A.history', historyText([1, '0/480000']));
  await archive.push({ segment: 4, timeline: 10, pageTimeline: 1 });
  archive.objects.delete(walHeaderKey(identity, '0000000A.history'));
  assert.equal(failureCode(await archive.fetch('0000000A.history')), 'wal-gap');
  assert.equal(failureCode(await archive.fetch('0000000A.history', until('0/1'))), 'wal-gap');
  archive.objects.delete(walHeaderKey(identity, nameOf(4, 10)));
  assert.equal(failureCode(await archive.fetch('0000000A.history')), 'wal-gap', 'its data is still there');
  assert.equal((await archive.fetch('0000000A.history', until('0/1'))).kind, 'absent');
});

test('fetchWal() delivers a segment that arrives while its absence is being proven', async () => {
  await using archive = await createArchive();
  await archive.push({ segment: 1 });
  const inner = archive.repository.storage;
  let isPushed = false;
  const racing = withStorage(archive.repository, {
    ...inner,
    async *list(prefix, options) {
      if (!isPushed && prefix.endsWith('/wal/00000001/')) {
        isPushed = true;
        await archive.push({ segment: 2 });
        await archive.push({ segment: 3 });
      }
      yield* inner.list(prefix, options);
    },
  });
  assert.equal((await archive.fetch(nameOf(2), { repositories: [racing] })).kind, 'delivered');
  assert.ok(isPushed);
});

test('fetchWal() notices every flipped byte and every truncation of what it reads', async () => {
  await using archive = await createArchive();
  const { name } = await archive.push({ segment: 1 });
  const header = await readWalHeader(archive.repository, identity, name);
  const random = seededRandom(7);
  const positions = (length: number): number[] =>
    length < 3000
      ? Array.from({ length }, (_, at) => at)
      : Array.from({ length: 300 }, () => Math.floor(random() * length));
  for (const key of [walHeaderKey(identity, name), header?.stored.key ?? '']) {
    const original = archive.objects.get(key) ?? Buffer.alloc(0);
    assert.ok(original.length > 500);
    for (const at of positions(original.length)) {
      const flipped = Buffer.from(original);
      flipped.writeUInt8(flipped.readUInt8(at) ^ (1 << Math.floor(random() * 8)), at);
      for (const altered of [flipped, original.subarray(0, at)]) {
        archive.objects.set(key, altered);
        const result = await archive.fetch(name);
        assert.equal(result.kind, 'failed', `${key} altered at ${at}`);
      }
    }
    archive.objects.delete(key);
    assert.equal(
      failureCode(await archive.fetch(name)),
      key.endsWith('.json') ? 'wal-gap' : 'object-missing',
    );
    archive.objects.set(key, original);
  }
  assert.equal(await archive.delivered(), undefined);
  assert.equal((await archive.fetch(name)).kind, 'delivered');
});

test('fetchWal() refuses other whole frames of the same sizes: content counts, not form', async () => {
  await using archive = await createArchive();
  await using other = await createArchive();
  const seen = new Map<string, { seed: number }>();
  for (let seed = 1; ; seed += 1) {
    assert.ok(seed < 500, 'no two segments of one size');
    await using trial = await createArchive();
    const { name } = await trial.push({ segment: 1, seed });
    const sizes = JSON.stringify((await readWalHeader(trial.repository, identity, name))?.frames);
    const twin = seen.get(sizes);
    seen.set(sizes, { seed });
    if (twin === undefined) continue;
    await archive.push({ segment: 1, seed });
    await other.push({ segment: 1, seed: twin.seed });
    const [ours, theirs] = [archive, other].map(async ({ repository }) =>
      readWalHeader(repository, identity, name),
    );
    const [key, theirKey] = [(await ours)?.stored.key ?? '', (await theirs)?.stored.key ?? ''];
    archive.objects.set(key, other.objects.get(theirKey) ?? Buffer.alloc(0));
    assert.equal(failureCode(await archive.fetch(name)), 'object-damaged');
    assert.equal(await archive.delivered(), undefined);
    return;
  }
});

test('fetchWal() refuses a segment stored under another name with headers to match', async () => {
  await using archive = await createArchive();
  const first = await archive.push({ segment: 1 });
  const second = await archive.push({ segment: 2 });
  const header = await readWalHeader(archive.repository, identity, first.name);
  assert.ok(header);
  const { encodeClearObject } = await import('../repository/clear-object.ts');
  const key = header.stored.key.replaceAll(first.name, second.name);
  archive.objects.set(key, archive.objects.get(header.stored.key) ?? Buffer.alloc(0));
  const forged = { ...header, name: second.name, stored: { ...header.stored, key } };
  archive.objects.set(walHeaderKey(identity, second.name), encodeClearObject(forged));
  assert.equal(failureCode(await archive.fetch(second.name)), 'wal-invalid');
  assert.equal(await archive.delivered(), undefined);
});

test('fetchWal() with a fault at every operation delivers the right bytes, or says absent rightly, or fails', async () => {
  await using archive = await createArchive();
  const { name, bytes } = await archive.push({ segment: 1 });
  await archive.push({ segment: 3 });
  let faults = 0;
  for (const kind of [
    'error-before',
    'error-after',
    'crash-before',
    'truncated-read',
    'flipped-read',
  ] as const) {
    for (const asked of [name, nameOf(2), nameOf(4)]) {
      for (let at = 1; ; at += 1) {
        await writeFile(archive.destination, 'before');
        const faulty = new FaultyStorage(archive.repository.storage, { kind, at, seed: at });
        const repositories = [withStorage(archive.repository, faulty)];
        const result = await archive.fetch(asked, { repositories, deadlineMs: 1000 });
        if (faulty.fired === undefined) break;
        faults += 1;
        const where = `${kind} at ${at} of ${asked}`;
        if (result.kind === 'delivered') assert.deepEqual(await archive.delivered(), bytes, where);
        else assert.equal(await archive.delivered(), undefined, where);
        if (result.kind === 'absent') assert.equal(asked, nameOf(4), where);
        // A transient error is got over within the deadline.
        if (kind.startsWith('error')) {
          assert.equal(
            result.kind,
            asked === name ? 'delivered' : asked === nameOf(4) ? 'absent' : 'failed',
            where,
          );
        }
      }
    }
  }
  assert.ok(faults > 30, `only ${faults} faults were tried`);
});

test('fetchWal() fails when a store stays out of reach until the deadline, and does not wait for what cannot pass', async () => {
  await using archive = await createArchive();
  const { name } = await archive.push({ segment: 1 });
  let calls = 0;
  const unreachable = (code: 'storage-unavailable' | 'storage-denied'): Repository =>
    withStorage(archive.repository, {
      ...archive.repository.storage,
      // oxlint-disable-next-line require-yield
      async *list() {
        calls += 1;
        throw new HoldfastError(code, 'no answer');
      },
    });
  const options = { repositories: [unreachable('storage-unavailable')], deadlineMs: 150, firstPauseMs: 10 };
  assert.equal(failureCode(await archive.fetch(name, options)), 'storage-unavailable');
  assert.ok(calls >= 3 && calls <= 6, `${calls} attempts`);
  calls = 0;
  const denied = { repositories: [unreachable('storage-denied')], deadlineMs: 60_000 };
  assert.equal(failureCode(await archive.fetch(name, denied)), 'storage-denied');
  assert.equal(calls, 1);
});

test('fetchWal() ends when it is cancelled', async () => {
  await using archive = await createArchive();
  const { name } = await archive.push({ segment: 1 });
  const stuck = withStorage(archive.repository, {
    ...archive.repository.storage,
    // oxlint-disable-next-line require-yield
    async *list() {
      throw new HoldfastError('storage-unavailable', 'no answer');
    },
  });
  const signal = AbortSignal.timeout(50);
  const options = { repositories: [stuck], deadlineMs: 60_000, signal };
  await assert.rejects(
    archive.fetch(name, options),
    (error) => error === signal.reason || error instanceof Error,
  );
});

test('fetchWal() takes from the next repository what one lacks or has damaged, and reports it', async () => {
  await using local = await createArchive();
  await using offsite = await createArchive(new Map(), 'offsite');
  for (const segment of [1, 2, 3]) {
    await local.push({ segment });
    await offsite.push({ segment });
  }
  const repositories = [local.repository, offsite.repository];
  const header = await readWalHeader(local.repository, identity, nameOf(1));
  local.objects.set(header?.stored.key ?? '', Buffer.from('damaged'));
  local.objects.delete(walHeaderKey(identity, nameOf(2)));
  for (const [segment, code] of [
    [1, 'object-damaged'],
    [2, 'wal-gap'],
  ] as const) {
    const result = await local.fetch(nameOf(segment), { repositories });
    assert.equal(result.kind, 'delivered');
    assert.equal(result.kind === 'delivered' && result.repository, 'offsite');
    assert.deepEqual(
      result.warnings.map((warning) => warning.code),
      [code],
    );
    assert.deepEqual(await local.delivered(), makeSegment({ segment }).bytes);
  }
  // Newer WAL in another repository makes the end of this one a hole.
  await offsite.push({ segment: 5 });
  assert.equal(failureCode(await local.fetch(nameOf(4), { repositories })), 'wal-gap');
  assert.equal((await local.fetch(nameOf(5), { repositories })).kind, 'delivered');
  // A repository that was only just added proves nothing, and takes nothing away.
  const added = await openTestRepository(createMemoryStorage(), 'added');
  assert.equal((await local.fetch(nameOf(4), { repositories: [added, local.repository] })).kind, 'absent');
});

test('fetchWal() says absent without another repository only where the target is reached', async () => {
  await using archive = await createArchive();
  await archive.push({ segment: 1 });
  const lost = withStorage(await openTestRepository(createMemoryStorage(), 'offsite'), {
    ...archive.repository.storage,
    // oxlint-disable-next-line require-yield
    async *list() {
      throw new HoldfastError('storage-unavailable', 'no answer');
    },
  });
  const repositories = [archive.repository, lost];
  assert.equal(failureCode(await archive.fetch(nameOf(2), { repositories })), 'storage-unavailable');
  assert.equal((await archive.fetch(nameOf(2), { repositories, ...until('0/200000') })).kind, 'absent');
});

test('fetchWal() opens what was sealed with age, and fails where this host holds no identity', async () => {
  await using archive = await createArchive();
  const { identity: secret, recipient } = generateIdentity();
  const sealed: Repository = {
    ...archive.repository,
    sealer: await sealerFor([recipient]),
    opener: async (kind) => openerFor(kind, parseIdentities(secret, 'the test')),
  };
  const { path, name, bytes } = await archive.lab.segment({ segment: 1 });
  await pushWal({
    path,
    repositories: [sealed],
    cluster: { configured: ['app'] },
    host: 'db1',
    now: () => new Date(),
  });
  assert.match((await readWalHeader(sealed, identity, name))?.stored.key ?? '', /\.zst\.age$/);
  const keyless = { ...sealed, opener: async (kind: SealKind) => openerFor(kind, []) };
  assert.equal(failureCode(await archive.fetch(name, { repositories: [keyless] })), 'key-missing');
  assert.equal((await archive.fetch(name, { repositories: [sealed] })).kind, 'delivered');
  assert.deepEqual(await archive.delivered(), bytes);
});

test('fetchWal() refuses hostile names, and removes what a killed fetch left', async () => {
  await using archive = await createArchive();
  const { name, bytes } = await archive.push({ segment: 1 });
  for (const bad of ['../x', 'recovery.conf', `${name}/`, `${name}\n`, '']) {
    assert.equal(failureCode(await archive.fetch(bad)), 'wal-invalid');
  }
  await writeFile(`${archive.destination}.holdfast-99999999`, 'left over');
  assert.equal((await archive.fetch(name)).kind, 'delivered');
  assert.deepEqual(await archive.delivered(), bytes);
});
