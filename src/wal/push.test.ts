import assert from 'node:assert/strict';
import { mkdir, open, symlink, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { walHeaderKey } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { readWalHighWater } from '../repository/wal-high-water.ts';
import { listWal } from '../repository/wal-listing.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { runWithCrashAtEveryOperation } from '../../test/every-operation.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { VolatileStorage } from '../../test/volatile-storage.ts';
import {
  createWalLab,
  historyText,
  makeSegment,
  openTestRepository,
  SEGMENT_SIZE,
  SYSTEM_IDENTIFIER,
  withStorage,
} from '../../test/wal-lab.ts';
import { type PushOptions, pushWal } from './push.ts';

const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };
const MAX = 64 * 2 ** 20;

function optionsFor(path: string, ...repositories: Repository[]): PushOptions {
  const now = () => new Date('2026-11-22T10:00:00Z');
  return { path, repositories, cluster: { configured: ['app'] }, host: 'db1', now };
}

async function stored(repository: Repository, name: string): Promise<Buffer | undefined> {
  const header = await readWalHeader(repository, identity, name);
  return header && (await readWholeWalFile(repository, header, MAX));
}

/** Where two segments differ, a diff of them would take minutes. */
function assertSame(actual: Buffer | undefined, expected: Buffer | undefined, message = 'other bytes'): void {
  assert.ok(actual !== undefined && expected !== undefined && actual.equals(expected), message);
}

test('pushWal() stores a segment with a header that describes it', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const { path, name, bytes } = await lab.segment();
  const result = await pushWal(optionsFor(path, repository));
  assert.deepEqual(
    result.stored.map((one) => one.outcome),
    ['stored'],
  );
  assert.deepEqual(result.identity, identity);
  assertSame(await stored(repository, name), bytes);
  const header = await readWalHeader(repository, identity, name);
  assert.ok(header);
  const { kind, timeline, sizeBytes, storedAt, host, seal, wal } = header;
  assert.deepEqual(
    { kind, timeline, sizeBytes, storedAt, host, seal },
    {
      kind: 'segment',
      timeline: 1,
      sizeBytes: SEGMENT_SIZE,
      storedAt: '2026-11-22T10:00:00.000Z',
      host: 'db1',
      seal: 'none',
    },
  );
  assert.equal(wal?.['commits'], 20);
  assert.equal(wal?.['damagedAt'], undefined);
});

test('pushWal() of the same content again is a success and stores nothing more', async () => {
  await using lab = await createWalLab();
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  const { path } = await lab.segment();
  await pushWal(optionsFor(path, repository));
  const before = [...objects.keys()];
  const result = await pushWal(optionsFor(path, repository));
  assert.equal(result.stored[0]?.outcome, 'present');
  assert.deepEqual([...objects.keys()], before);
});

test('pushWal() refuses other content under a stored name for ever, naming both', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const first = await lab.segment();
  const { hash } = await pushWal(optionsFor(first.path, repository));
  const other = await lab.segment({ seed: 2 });
  for (let attempt = 0; attempt < 2; attempt += 1) {
    await assert.rejects(pushWal(optionsFor(other.path, repository)), (error) => {
      assert.ok(error instanceof HoldfastError);
      assert.equal(error.code, 'wal-conflict');
      assert.equal(error.exitCode, 40);
      assert.ok(error.message.includes(hash) && error.message.includes('2026-11-22T10:00:00.000Z'));
      assert.match(error.message, /nothing was overwritten/);
      assert.notEqual(error.context['fileHash'], hash);
      return true;
    });
  }
  assertSame(await stored(repository, first.name), first.bytes);
});

test('pushWal() refuses every name that PostgreSQL does not archive', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const { bytes, name } = makeSegment();
  const hostile = [
    'postgresql.conf',
    name.slice(1),
    `${name}0`,
    name.toLowerCase().replace('1', 'a'),
    `${name}.gz`,
    `${name}.partial.partial`,
    `${name}.00000028.backup.json`,
    `${name}.28.backup`,
    `${name}\n`,
    `\n${name}`,
    `${name} `,
    ` ${name}`,
    `${name}%00`,
    `..${name}`,
    '..',
    '1.history',
    '00000001.history ',
    '00000002.History',
    'GGGGGGGG0000000000000001',
    '000000000000000000000001',
    '0000000１0000000000000001',
  ];
  for (const bad of hostile) {
    if (bad !== '..') await lab.write(bad, bytes);
    const path = `${lab.directory}/pg_wal/${bad}`;
    await assert.rejects(
      pushWal(optionsFor(path, repository)),
      failsWith('wal-invalid'),
      JSON.stringify(bad),
    );
  }
  await assert.rejects(pushWal(optionsFor(`${lab.directory}/pg_wal/`, repository)), failsWith('wal-invalid'));
  assert.deepEqual(await Array.fromAsync(repository.storage.list('clusters/')), []);
});

test('pushWal() refuses a segment that is not what its name says', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const good = makeSegment({ segment: 5 });
  const altered = (change: (bytes: Buffer) => Buffer | void): Buffer => {
    const copy = Buffer.from(good.bytes);
    return change(copy) ?? copy;
  };
  const cases: [string, Buffer, string][] = [
    ['empty', Buffer.alloc(0), 'wal-invalid'],
    ['cut off', good.bytes.subarray(0, -1), 'wal-invalid'],
    ['too long', Buffer.concat([good.bytes, Buffer.alloc(1)]), 'wal-invalid'],
    ['twice as long', Buffer.concat([good.bytes, good.bytes]), 'wal-invalid'],
    ['zeros', Buffer.alloc(SEGMENT_SIZE), 'wal-invalid'],
    ['text', Buffer.alloc(SEGMENT_SIZE, 'text '), 'wal-invalid'],
    ['another version', altered((b) => void b.writeUInt16LE(0xd10d, 0)), 'version-unsupported'],
    ['no long header', altered((b) => void b.writeUInt16LE(0, 2)), 'wal-invalid'],
    ['another address', makeSegment({ segment: 6 }).bytes, 'wal-invalid'],
    ['a later timeline', makeSegment({ segment: 5, timeline: 2 }).bytes, 'wal-invalid'],
    ['no system identifier', altered((b) => b.fill(0, 24, 32)), 'wal-invalid'],
    ['another segment size', altered((b) => void b.writeUInt32LE(2 ** 24, 32)), 'wal-invalid'],
  ];
  for (const [what, bytes, code] of cases) {
    const path = await lab.write(good.name, bytes);
    await assert.rejects(pushWal(optionsFor(path, repository)), failsWith(code), what);
  }
  assert.deepEqual(await Array.fromAsync(repository.storage.list('clusters/')), []);
});

test('pushWal() refuses what is no regular file, and says where %p is relative to', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const { name, path } = await lab.segment();
  await mkdir(join(lab.directory, 'other'), { recursive: true });
  const link = join(lab.directory, 'other', name);
  await symlink(path, link);
  await assert.rejects(pushWal(optionsFor(link, repository)), failsWith('wal-invalid'));
  const directory = join(lab.directory, 'pg_wal', makeSegment({ segment: 2 }).name);
  await mkdir(directory);
  await assert.rejects(pushWal(optionsFor(directory, repository)), failsWith('wal-invalid'));
  const missing = join(lab.directory, 'pg_wal', makeSegment({ segment: 3 }).name);
  await assert.rejects(
    pushWal(optionsFor(missing, repository)),
    (error) =>
      failsWith('usage-invalid')(error) && /data directory/.test((error as HoldfastError).hint ?? ''),
  );
});

test('pushWal() stores history, partial and backup history files as their own kinds', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const { name, bytes } = await lab.segment({ segment: 4 });
  const files: [string, Buffer | string][] = [
    ['00000002.history', historyText([1, '0/480000'])],
    [`${name}.partial`, bytes],
    [`${name}.00000028.backup`, 'START WAL LOCATION: 0/400028\n'],
  ];
  for (const [file, content] of files) {
    await pushWal(optionsFor(await lab.write(file, content), repository));
    assertSame(await stored(repository, file), Buffer.from(content));
  }
  assert.equal(await readWalHeader(repository, identity, name), undefined);
  const kinds = (await Array.fromAsync(listWal(repository, identity))).map((entry) => entry.kind);
  assert.deepEqual(kinds, ['backup-label', 'partial', 'history']);
});

test('pushWal() refuses a history file PostgreSQL could not read, and one that nothing tells the cluster of', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const orphan = await lab.write('00000002.history', historyText([1, '0/480000']));
  await assert.rejects(pushWal(optionsFor(orphan, repository)), failsWith('wal-invalid'));
  await lab.segment();
  for (const text of ['', 'nonsense\n', historyText([2, '0/480000']), historyText([3, '0/480000'])]) {
    const path = await lab.write('00000002.history', text);
    await assert.rejects(pushWal(optionsFor(path, repository)), failsWith('wal-invalid'), text);
  }
});

test('pushWal() stores the history of a timeline before its first segment, or nothing of it', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const child = { segment: 4, timeline: 2, pageTimeline: 1 };
  const { path, name } = await lab.segment(child);
  await assert.rejects(
    pushWal(optionsFor(path, repository)),
    (error) => failsWith('wal-gap')(error) && /00000002\.history/.test((error as HoldfastError).message),
  );
  assert.equal(await readWalHeader(repository, identity, name), undefined);
  const history = historyText([1, '0/480000']);
  await lab.write('00000002.history', history);
  await pushWal(optionsFor(path, repository));
  assertSame(await stored(repository, '00000002.history'), Buffer.from(history));
  const late = await pushWal(optionsFor(join(lab.directory, 'pg_wal/00000002.history'), repository));
  assert.equal(late.stored[0]?.outcome, 'present');
});

test('pushWal() succeeds only when every repository has it, and goes on where the last attempt ended', async () => {
  await using lab = await createWalLab();
  const good = await openTestRepository();
  const objects = new Map<string, Buffer>();
  const inner = createMemoryStorage(objects);
  const bad = await openTestRepository(inner, 'offsite');
  const failing = withStorage(bad, {
    ...inner,
    put: async () => {
      throw new HoldfastError('storage-full', 'no space left');
    },
  });
  const { path, name, bytes } = await lab.segment();
  await assert.rejects(pushWal(optionsFor(path, good, failing)), failsWith('storage-full'));
  const again = await pushWal(optionsFor(path, good, bad));
  assert.deepEqual(
    again.stored.map((one) => [one.repository, one.outcome]),
    [
      ['local', 'present'],
      ['offsite', 'stored'],
    ],
  );
  assertSame(await stored(bad, name), bytes);
  await assert.rejects(pushWal(optionsFor(path)), failsWith('config-invalid'));
});

test('pushWal() stores again what a header promises and the repository has lost', async () => {
  await using lab = await createWalLab();
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  const { path, name, bytes } = await lab.segment();
  for (const lose of [
    (key: string) => void objects.delete(key),
    (key: string) => void objects.set(key, objects.get(key)?.subarray(1) ?? Buffer.alloc(0)),
  ]) {
    await pushWal(optionsFor(path, repository));
    lose((await readWalHeader(repository, identity, name))?.stored.key ?? '');
    assert.equal((await pushWal(optionsFor(path, repository))).stored[0]?.outcome, 'repaired');
    assertSame(await stored(repository, name), bytes);
  }
});

test('pushWal() refuses to conclude anything from a damaged header', async () => {
  await using lab = await createWalLab();
  const objects = new Map<string, Buffer>();
  const repository = await openTestRepository(createMemoryStorage(objects));
  const { path, name } = await lab.segment();
  await pushWal(optionsFor(path, repository));
  const key = walHeaderKey(identity, name);
  const damaged = Buffer.from(
    objects
      .get(key)
      ?.toString()
      .replace(/"hash":"./, '"hash":"!') ?? '',
  );
  objects.set(key, damaged);
  await assert.rejects(pushWal(optionsFor(path, repository)), failsWith('object-damaged'));
  assert.deepEqual(objects.get(key), damaged);
});

test('pushWal() streams a large segment, and refuses one that changes between its two readings', async () => {
  await using lab = await createWalLab();
  const objects = new Map<string, Buffer>();
  const inner = createMemoryStorage(objects);
  const repository = await openTestRepository(inner);
  const segmentSize = 64 * 2 ** 20;
  const { path, name, bytes } = await lab.segment({ segmentSize });
  const spoiling = withStorage(repository, {
    ...inner,
    async put(key, source, options) {
      const file = await open(path, 'r+');
      await file.write(Buffer.from('x'), 0, 1, segmentSize - 1);
      await file.close();
      return inner.put(key, source, options);
    },
  });
  await assert.rejects(pushWal(optionsFor(path, spoiling)), failsWith('wal-invalid'));
  assert.equal(await readWalHeader(repository, identity, name), undefined);
  await writeFile(path, bytes);
  const result = await pushWal(optionsFor(path, repository));
  assert.equal(result.wal?.commits, 20);
  assert.ok((await stored(repository, name))?.equals(bytes));
  const header = await readWalHeader(repository, identity, name);
  assert.equal(header?.frames.length, 16);
  await truncate(path, segmentSize / 2);
  await assert.rejects(pushWal(optionsFor(path, repository)), failsWith('wal-invalid'));
});

test('pushWal() lets exactly one of two racing contents win', async () => {
  await using lab = await createWalLab();
  await using other = await createWalLab();
  for (let round = 1; round <= 20; round += 1) {
    const repository = await openTestRepository();
    const contenders = [
      await lab.segment({ segment: round, seed: 1 }),
      await other.segment({ segment: round, seed: 2 }),
    ];
    const results = await Promise.allSettled(
      contenders.map(async ({ path }) => pushWal(optionsFor(path, repository))),
    );
    const winners = contenders.filter((_, index) => results[index]?.status === 'fulfilled');
    assert.equal(winners.length, 1);
    const lost = results.find((result) => result.status === 'rejected');
    assert.ok(failsWith('wal-conflict')(lost?.reason));
    assertSame(await stored(repository, winners[0]?.name ?? ''), winners[0]?.bytes);
    const data = await Array.fromAsync(
      repository.storage.list(`clusters/app/${SYSTEM_IDENTIFIER}/wal-data/`),
    );
    assert.equal(data.length, 1, 'the loser left its data behind');
  }
});

test('pushWal() notes the newest segment this host saw confirmed, and never goes back', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  const stateDirectory = join(lab.directory, 'state');
  const push = async (segment: number): Promise<string | undefined> => {
    const { path } = await lab.segment({ segment });
    await pushWal({ ...optionsFor(path, repository), stateDirectory });
    return (await readWalHighWater(stateDirectory, SYSTEM_IDENTIFIER))?.name;
  };
  const name = (segment: number): string => makeSegment({ segment }).name;
  assert.equal(await push(3), name(3));
  assert.equal(await push(2), name(3));
  assert.equal(await push(4), name(4));
  const mark = await readWalHighWater(stateDirectory, SYSTEM_IDENTIFIER);
  assert.equal(mark?.endLsn, BigInt(5 * SEGMENT_SIZE));
  assert.equal(mark?.lastCommitTime?.slice(0, 4), '2027');
  await writeFile(join(stateDirectory, 'wal', `${SYSTEM_IDENTIFIER}.json`), '{"timeline":');
  assert.equal(await push(5), name(5));
  const { path } = await lab.segment({ segment: 6 });
  const unwritable = join(path, 'state');
  await pushWal({ ...optionsFor(path, repository), stateDirectory: unwritable });
});

test('pushWal() with a crash or an error at every operation: what was acknowledged is there, the next push succeeds', async () => {
  await using lab = await createWalLab();
  const history = historyText([1, '0/480000']);
  const historyPath = await lab.write('00000002.history', history);
  const first = await lab.segment({ segment: 4, timeline: 2, pageTimeline: 1 });
  const second = await lab.segment({ segment: 5, timeline: 2 });
  const rival = makeSegment({ segment: 5, timeline: 2, seed: 9 });
  await using rivalLab = await createWalLab();
  const rivalPath = await rivalLab.write(rival.name, rival.bytes);
  await rivalLab.write('00000002.history', history);

  let acknowledged: string[] = [];
  const { runs } = await runWithCrashAtEveryOperation<VolatileStorage>({
    kinds: ['crash-before', 'crash-after', 'crash-unsynced', 'error-before', 'error-after'],
    prepare: async () => {
      acknowledged = [];
      const storage = new VolatileStorage();
      await openTestRepository(storage);
      return storage;
    },
    scenario: async (storage) => {
      const repository = await openTestRepository(storage);
      for (const path of [historyPath, first.path, second.path, second.path]) {
        acknowledged.push((await pushWal(optionsFor(path, repository))).name);
      }
    },
    invariant: async (inner) => {
      inner.crash();
      const repository = await openTestRepository(inner);
      const contents = new Map<string, Buffer>([
        ['00000002.history', Buffer.from(history)],
        [first.name, first.bytes],
        [second.name, second.bytes],
      ]);
      for (const name of acknowledged) assertSame(await stored(repository, name), contents.get(name));
      for await (const entry of listWal(repository, identity)) {
        assertSame(
          await stored(repository, entry.name),
          contents.get(entry.name),
          'a header names lost data',
        );
      }
      if (acknowledged.includes(second.name)) {
        await assert.rejects(pushWal(optionsFor(rivalPath, repository)), failsWith('wal-conflict'));
      }
      for (const path of [historyPath, first.path, second.path]) await pushWal(optionsFor(path, repository));
      for (const [name, bytes] of contents) assertSame(await stored(repository, name), bytes);
    },
  });
  assert.ok(runs > 60, `only ${runs} faults were tried`);
});

test('pushWal() makes sure that what it finds survives a power cut before it says so', async () => {
  await using lab = await createWalLab();
  const storage = new VolatileStorage();
  const repository = await openTestRepository(storage);
  const { path, name, bytes } = await lab.segment();
  await pushWal(optionsFor(path, repository));
  const header = await readWalHeader(repository, identity, name);
  storage.unsync(header?.stored.key ?? '');
  storage.unsync(walHeaderKey(identity, name));
  await pushWal(optionsFor(path, repository));
  storage.crash();
  assertSame(await stored(repository, name), bytes);
});
