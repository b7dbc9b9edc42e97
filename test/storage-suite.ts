import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError, type ErrorCode } from '../src/errors.ts';
import type { ObjectInfo, Storage } from '../src/storage/storage.ts';

export interface StorageUnderTest {
  /** Empty, and usable at once. */
  storage: Storage;
  /** A further instance over the same objects, as another process would have. */
  another: () => Storage;
}

const MIB = 1024 * 1024;

/** Bytes that differ everywhere, so that a shifted or repeated piece is noticed. */
export function patternedBytes(sizeBytes: number, seed = 1): Buffer {
  const bytes = Buffer.allocUnsafe(sizeBytes);
  let state = seed;
  for (let index = 0; index < sizeBytes; index += 1) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    bytes[index] = state >>> 16;
  }
  return bytes;
}

export async function collect(chunks: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(chunks));
}

async function* inPieces(bytes: Buffer, pieceBytes: number): AsyncGenerator<Buffer> {
  for (let position = 0; position < bytes.length; position += pieceBytes) {
    yield bytes.subarray(position, position + pieceBytes);
  }
}

export function withCode(code: ErrorCode): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof HoldfastError, String(error));
    assert.equal(error.code, code, error.message);
    return true;
  };
}

async function keysOf(entries: AsyncIterable<ObjectInfo>): Promise<string[]> {
  return (await Array.fromAsync(entries)).map(({ key }) => key);
}

/** Holds an implementation to `Storage`. `open` is called once a test. */
export function testStorage(name: string, open: (t: TestContext) => Promise<StorageUnderTest>): void {
  const check = (title: string, body: (under: StorageUnderTest, t: TestContext) => Promise<void>): void => {
    test(`${name}: ${title}`, async (t) => body(await open(t), t));
  };

  check(
    'put() and get() give back the same bytes, from a buffer and from a stream',
    async ({ storage, another }) => {
      const sizes = [0, 1, 4095, MIB - 1, MIB, MIB + 1, 3 * MIB + 17];
      for (const [number, sizeBytes] of sizes.entries()) {
        const bytes = patternedBytes(sizeBytes, number + 1);
        const whole = await storage.put(`whole/${number}`, bytes);
        const streamed = await storage.put(`streamed/${number}`, inPieces(bytes, 65_521));
        for (const result of [whole, streamed]) assert.deepEqual(result, { created: true, sizeBytes });
        for (const key of [`whole/${number}`, `streamed/${number}`]) {
          const chunks = await Array.fromAsync(another().get(key));
          assert.ok(chunks.every((chunk) => chunk.length > 0 && chunk.length <= MIB));
          assert.ok(Buffer.concat(chunks).equals(bytes), `${key} differs`);
          assert.deepEqual(await storage.head(key), { key, sizeBytes });
        }
      }
    },
  );

  check(
    'put() takes each chunk before it asks for the next, so a source may reuse its buffer',
    async ({ storage }) => {
      const reused = Buffer.alloc(1000);
      await storage.put(
        'reused',
        (async function* () {
          for (let value = 1; value <= 5; value += 1) yield reused.fill(value);
          reused.fill(0);
        })(),
      );
      const expected = Buffer.concat([1, 2, 3, 4, 5].map((value) => Buffer.alloc(1000, value)));
      assert.ok((await collect(storage.get('reused'))).equals(expected));
    },
  );

  check('put() of a buffer does not keep it, and get() does not give away its own', async ({ storage }) => {
    const bytes = patternedBytes(5000);
    await storage.put('kept', bytes);
    const expected = Buffer.from(bytes);
    bytes.fill(0);
    for await (const chunk of storage.get('kept')) chunk.fill(0);
    assert.ok((await collect(storage.get('kept'))).equals(expected));
  });

  check('put() replaces an object, and with ifAbsent leaves it alone', async ({ storage }) => {
    await storage.put('k/object', Buffer.from('first'));
    assert.equal((await storage.put('k/object', Buffer.from('second'), { ifAbsent: true })).created, false);
    assert.equal(String(await collect(storage.get('k/object'))), 'first');
    assert.equal((await storage.put('k/object', Buffer.from('third'))).created, true);
    assert.equal(String(await collect(storage.get('k/object'))), 'third');
    assert.deepEqual(await keysOf(storage.list('')), ['k/object']);
  });

  check('put() with ifAbsent lets exactly one of 20 racing callers create', async ({ another }) => {
    const attempts = Array.from({ length: 20 }, async (_, number) => {
      const bytes = Buffer.from(`from ${number}`);
      const source = number % 2 === 0 ? bytes : inPieces(bytes, 2);
      return { number, ...(await another().put('race/one', source, { ifAbsent: true })) };
    });
    const winners = (await Promise.all(attempts)).filter(({ created }) => created);
    assert.equal(winners.length, 1);
    assert.equal(String(await collect(another().get('race/one'))), `from ${winners[0]?.number}`);
  });

  check(
    'put() whose source throws passes the error on, leaves nothing and keeps what was there',
    async ({ storage }) => {
      const broken = new Error('the source broke');
      await storage.put('there/old', Buffer.from('old'));
      for (const key of ['there/old', 'there/new']) {
        const source = (async function* () {
          yield patternedBytes(100_000);
          throw broken;
        })();
        await assert.rejects(storage.put(key, source), (error) => error === broken);
      }
      assert.deepEqual(await keysOf(storage.list('')), ['there/old']);
      assert.equal(String(await collect(storage.get('there/old'))), 'old');
    },
  );

  check(
    'put() shows nothing before it is whole, and a cancelled one closes its source',
    async ({ storage, another }) => {
      const controller = new AbortController();
      let closed = false;
      await storage.put('part/first', Buffer.from('1'));
      const source = (async function* () {
        try {
          yield patternedBytes(100_000);
          assert.equal(await another().head('part/second'), undefined);
          assert.deepEqual(await keysOf(another().list('')), ['part/first']);
          await assert.rejects(collect(another().get('part/second')), withCode('object-missing'));
          controller.abort();
          yield Buffer.from('too late');
          assert.fail('a cancelled put read on');
        } finally {
          closed = true;
        }
      })();
      const put = storage.put('part/second', source, { signal: controller.signal });
      await assert.rejects(put, withCode('cancelled'));
      assert.equal(closed, true);
      assert.deepEqual(await keysOf(storage.list('')), ['part/first']);
    },
  );

  check('get() of an absent object throws object-missing, at the first read', async ({ storage }) => {
    await storage.put('here/a', Buffer.from('a'));
    for (const key of ['here/b', 'elsewhere/a', 'here/a/below', 'here']) {
      const reading = storage.get(key)[Symbol.asyncIterator]();
      await assert.rejects(reading.next(), withCode('object-missing'));
      assert.equal(await storage.head(key), undefined);
      await assert.rejects(storage.confirm(key), withCode('object-missing'));
    }
  });

  check('get() with a range gives that slice and throws object-damaged past the end', async ({ storage }) => {
    const bytes = patternedBytes(2 * MIB + 100);
    await storage.put('ranged', bytes);
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length), fc.nat(bytes.length), async (one, other) => {
        const [offset, end] = [Math.min(one, other), Math.max(one, other)];
        const slice = await collect(storage.get('ranged', { range: { offset, length: end - offset } }));
        assert.ok(slice.equals(bytes.subarray(offset, end)));
      }),
      { numRuns: 30 },
    );
    const beyond = [
      { offset: bytes.length, length: 1 },
      { offset: 0, length: bytes.length + 1 },
      { offset: bytes.length + 1, length: 0 },
    ];
    for (const range of beyond) {
      await assert.rejects(collect(storage.get('ranged', { range })), withCode('object-damaged'));
    }
    for (const range of [
      { offset: -1, length: 1 },
      { offset: 0, length: 0.5 },
    ]) {
      await assert.rejects(async () => collect(storage.get('ranged', { range })), withCode('assertion'));
    }
  });

  check('get() may be left early', async ({ storage }) => {
    await storage.put('long', patternedBytes(3 * MIB));
    for await (const chunk of storage.get('long')) {
      assert.equal(chunk[0], patternedBytes(1)[0]);
      break;
    }
    await storage.delete('long');
    assert.equal(await storage.head('long'), undefined);
  });

  check('list() gives every key of a prefix after a key, in byte order', async ({ storage, another }) => {
    // Names around "/" in byte order ("-" and "." before it, digits after it), at three depths.
    const names = ['a', 'a-b', 'a.b', 'a0', 'ab', 'A', '_', '0', '-', 'b'];
    const files = names.map((name) => `${name}.f`);
    const keys = [
      ...files,
      ...names.flatMap((name) => files.map((file) => `${name}/${file}`)),
      ...['a', 'a-b', 'a0'].flatMap((name) => names.map((deep) => `${name}/${deep}/x`)),
    ];
    for (const key of keys) await storage.put(key, Buffer.alloc(key.length));
    const inOrder = keys.toSorted((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)));

    const all = await Array.fromAsync(another().list(''));
    assert.deepEqual(
      all,
      inOrder.map((key) => ({ key, sizeBytes: key.length })),
    );
    const places = [...keys, ...names, ...names.map((name) => `${name}/`), '', 'a/a', 'zz', 'a/zz', '!'];
    for (const prefix of [
      '',
      'a',
      'a/',
      'a-',
      'a.b/',
      'a/a',
      'a/a.f',
      'a/a/',
      'a0/b/x',
      'b/b/',
      'zz',
      'zz/z/',
    ]) {
      for (const after of places) {
        assert.deepEqual(
          await keysOf(storage.list(prefix, { after })),
          inOrder.filter((key) => key.startsWith(prefix) && key > after),
          `prefix "${prefix}" after "${after}"`,
        );
      }
    }
  });

  check('list() below an object, or of nothing, is empty', async ({ storage }) => {
    await storage.put('only', Buffer.from('x'));
    for (const prefix of ['only/', 'only/a', 'other/', 'o/n', 'onlyy']) {
      assert.deepEqual(await keysOf(storage.list(prefix)), []);
    }
  });

  check('delete() removes one object and is idempotent', async ({ storage, another }) => {
    for (const key of ['d/a', 'd/ab', 'd/b/a']) await storage.put(key, Buffer.from(key));
    for (const key of ['d/a', 'd/a', 'd/none', 'none/at/all', 'd/ab/below', 'd/b']) await storage.delete(key);
    assert.deepEqual(await keysOf(another().list('')), ['d/ab', 'd/b/a']);
    assert.equal((await storage.put('d/a', Buffer.from('again'), { ifAbsent: true })).created, true);
  });

  check(
    'confirm() of an existing object succeeds, also from another instance',
    async ({ storage, another }) => {
      await storage.put('c/object', Buffer.from('x'));
      await storage.confirm('c/object');
      await another().confirm('c/object');
    },
  );

  check('no operation takes a key that is not one', async ({ storage }) => {
    const hostile = [
      '',
      '/',
      '/a',
      'a/',
      'a//b',
      '.',
      '..',
      'a/../b',
      '../a',
      'a/.',
      'a b',
      'ä',
      'a\0b',
      'a\\b',
      'a\n',
    ];
    for (const key of [...hostile, '.tmp-1', 'a/.tmp-x/b', 'k'.repeat(256), 'k/'.repeat(500) + 'k']) {
      const refused = withCode('assertion');
      await assert.rejects(async () => storage.put(key, Buffer.from('x')), refused, key);
      await assert.rejects(async () => collect(storage.get(key)), refused, key);
      await assert.rejects(async () => storage.head(key), refused, key);
      await assert.rejects(async () => storage.delete(key), refused, key);
      await assert.rejects(async () => storage.confirm(key), refused, key);
    }
    for (const prefix of ['/', '../', 'a/../', 'a//', 'a/./', 'ä', 'a b', '.tmp-1/', 'a*']) {
      await assert.rejects(async () => keysOf(storage.list(prefix)), withCode('assertion'), prefix);
    }
    await storage.put('a..b/..c/.d/...', Buffer.from('odd and valid'));
    assert.deepEqual(await keysOf(storage.list('a..b/..')), ['a..b/..c/.d/...']);
  });

  check('every operation with an aborted signal throws cancelled and does nothing', async ({ storage }) => {
    await storage.put('s', Buffer.from('s'));
    const signal = AbortSignal.abort();
    const refused = withCode('cancelled');
    await assert.rejects(storage.put('t', Buffer.from('t'), { signal }), refused);
    await assert.rejects(collect(storage.get('s', { signal })), refused);
    await assert.rejects(storage.head('s', { signal }), refused);
    await assert.rejects(keysOf(storage.list('', { signal })), refused);
    await assert.rejects(storage.delete('s', { signal }), refused);
    assert.deepEqual(await keysOf(storage.list('')), ['s']);
    const reason = new HoldfastError('storage-unavailable', 'the deadline passed');
    await assert.rejects(
      storage.head('s', { signal: AbortSignal.abort(reason) }),
      (error) => error === reason,
    );
  });
}
