import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { type TarEntry, TarReader } from './tar-reader.ts';

interface Member {
  name: string;
  type?: string;
  content?: Buffer;
  link?: string;
  /** Overrides the size field's bytes. */
  size?: Buffer;
}

function header({ name, type = '0', content = Buffer.alloc(0), link = '', size }: Member): Buffer {
  const block = Buffer.alloc(512);
  block.write(name, 0, 'latin1');
  block.write('0000600 ', 100);
  block.write('0000000 0000000 ', 108);
  block.write(`${content.length.toString(8).padStart(11, '0')} `, 124);
  size?.copy(block, 124);
  block.write('14716412345 ', 136);
  block.write(type, 156);
  block.write(link, 157, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  block.fill(' ', 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
}

function archive(members: Member[]): Buffer {
  const parts = members.flatMap((member) => {
    const content = member.content ?? Buffer.alloc(0);
    return [header(member), content, Buffer.alloc((512 - (content.length % 512)) % 512)];
  });
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

/** Feeds the archive in pieces; a sink that waits now and then is resumed as the wire does it. */
async function read(
  bytes: Buffer,
  pieces: number[],
  slow = false,
): Promise<{ entry: TarEntry; content: Buffer }[]> {
  const found: { entry: TarEntry; parts: Buffer[]; ended: boolean }[] = [];
  let calls = 0;
  const maybeWait = (): Promise<void> | undefined => {
    calls += 1;
    return slow && calls % 2 === 0 ? new Promise((resolve) => setImmediate(resolve)) : undefined;
  };
  const reader = new TarReader({
    entry(entry) {
      found.push({ entry, parts: [], ended: false });
      return maybeWait();
    },
    data(chunk) {
      assert.ok(chunk.length > 0);
      found.at(-1)?.parts.push(Buffer.from(chunk));
      return maybeWait();
    },
    entryEnd() {
      const last = found.at(-1);
      assert.ok(last !== undefined && !last.ended);
      last.ended = true;
      return maybeWait();
    },
  });
  const cuts = [...pieces.map((piece) => piece % (bytes.length + 1)), bytes.length].sort((a, b) => a - b);
  let at = 0;
  for (const cut of cuts) {
    do {
      at = reader.read(bytes, at, cut);
      if (reader.pending !== undefined) {
        const waited = reader.pending;
        await waited;
        reader.pending = undefined;
        // Also with no bytes left: an end may have to be told.
        at = reader.read(bytes, at, cut);
      }
    } while (at < cut || reader.pending !== undefined);
  }
  reader.finish();
  for (const { entry, ended } of found) assert.equal(ended, entry.kind === 'file', entry.path);
  return found.map(({ entry, parts }) => ({ entry, content: Buffer.concat(parts) }));
}

function damaged(pattern: RegExp) {
  return (error: unknown): boolean => {
    assert.ok(error instanceof HoldfastError);
    assert.equal(error.code, 'object-damaged');
    assert.match(error.message, pattern);
    return true;
  };
}

void test('TarReader reads files, directories and symlinks as PostgreSQL names them', async () => {
  const found = await read(
    archive([
      { name: 'backup_label', content: Buffer.from('START') },
      { name: './pg_wal/archive_status/', type: '5' },
      { name: 'pg_tblspc/16384/', type: '2', link: '/srv/a b' },
      { name: 'odd\xff\x01name', content: Buffer.alloc(512, 7) },
      { name: 'empty' },
    ]),
    [],
  );
  assert.deepEqual(
    found.map(({ entry: { path, kind, sizeBytes, linkTarget, mode } }) => [
      path,
      kind,
      sizeBytes,
      linkTarget,
      mode,
    ]),
    [
      ['backup_label', 'file', 5, undefined, 0o600],
      ['pg_wal/archive_status', 'directory', 0, undefined, 0o600],
      ['pg_tblspc/16384', 'symlink', 0, '/srv/a b', 0o600],
      ['odd\xff\x01name', 'file', 512, undefined, 0o600],
      ['empty', 'file', 0, undefined, 0o600],
    ],
  );
  assert.equal(found[0]?.content.toString(), 'START');
});

void test('TarReader gives the same whatever the pieces and however slow the sink', async () => {
  const member = fc.record({
    name: fc.stringMatching(/^[a-z]{1,20}(\/[a-z]{1,20}){0,2}$/),
    content: fc.uint8Array({ maxLength: 2000 }).map((bytes) => Buffer.from(bytes)),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(member, { maxLength: 6 }),
      fc.array(fc.nat(), { maxLength: 12 }),
      fc.boolean(),
      async (members, pieces, slow) => {
        const found = await read(archive(members), pieces, slow);
        assert.deepEqual(
          found.map(({ entry, content }) => [entry.path, content]),
          members.map(({ name, content }) => [name, content]),
        );
      },
    ),
    { numRuns: 150 },
  );
});

void test('TarReader understands a size of base 256', () => {
  const size = Buffer.alloc(12);
  size[0] = 0x80;
  size.writeBigUInt64BE(9_000_000_000n, 4);
  const sizes: number[] = [];
  const reader = new TarReader({
    entry: (entry) => {
      sizes.push(entry.sizeBytes);
    },
    data: () => undefined,
    entryEnd: () => undefined,
  });
  reader.read(header({ name: 'big', size }), 0, 512);
  assert.deepEqual(sizes, [9_000_000_000]);
});

for (const name of ['/etc/passwd', '../up', 'a/../../up', 'a//b', 'a/./b', '', './../x', '..']) {
  void test(`TarReader refuses the name ${JSON.stringify(name)}`, async () => {
    await assert.rejects(
      read(archive([{ name, content: Buffer.from('x') }]), []),
      damaged(/leave its directory/),
    );
  });
}

for (const type of ['1', '3', '6', 'x', 'L']) {
  void test(`TarReader refuses entries of type ${type}`, async () => {
    await assert.rejects(read(archive([{ name: 'a', type }]), []), damaged(/unknown type/));
  });
}

void test('TarReader notices every flipped byte of a header that carries meaning', async () => {
  const whole = archive([{ name: 'file', content: Buffer.from('content') }]);
  for (let at = 0; at < 512; at++) {
    const bytes = Buffer.from(whole);
    bytes[at] = (bytes[at] ?? 0) ^ 0x11;
    // Spaces around the checksum's digits may differ.
    if (at >= 154 && at < 156) continue;
    await assert.rejects(read(bytes, []), HoldfastError, `byte ${at}`);
  }
});

void test('TarReader notices an archive that was cut short', async () => {
  const whole = archive([{ name: 'file', content: Buffer.alloc(600, 1) }]);
  for (const size of [1, 511, 513, 1111, 1500]) {
    await assert.rejects(read(whole.subarray(0, size), []), damaged(/ends within/), `${size} bytes`);
  }
});
