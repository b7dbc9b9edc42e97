import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import * as typage from 'age-encryption';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { createAgeOpener, createAgePassphraseSealer, createAgeSealer } from './age.ts';
import { passphraseIdentity } from './age-scrypt.ts';
import { type Identity, generateIdentity, parseIdentities } from './identity.ts';
import type { Opener, RangeSource, Sealer } from './sealer.ts';

const CHUNK = 65536;
const SEALED_CHUNK = CHUNK + 16;
const key = generateIdentity();
const identities = parseIdentities(key.identity, 'test');
const sealer = createAgeSealer([key.recipient]);
const opener = createAgeOpener(identities);
/** Bytes that differ everywhere, so that a chunk in the wrong place shows. */
const plain = randomBytes(20 * CHUNK + 77);

async function* pieces(bytes: Buffer, ...sizes: number[]): AsyncGenerator<Buffer> {
  for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
    const size = sizes[turn % sizes.length] ?? bytes.length;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

async function whole(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(stream));
}

async function sealed(bytes: Buffer, by: Sealer = sealer): Promise<Buffer> {
  return whole(by.seal(pieces(bytes)));
}

function opened(bytes: Buffer, by: Opener = opener): Promise<Buffer> {
  return whole(by.open(pieces(bytes)));
}

function sourceOf(bytes: Buffer): RangeSource & { reads: number } {
  return {
    reads: 0,
    sizeBytes: bytes.length,
    read(offset, length) {
      this.reads += 1;
      assert.ok(offset + length <= bytes.length, 'a range beyond the object was read');
      return pieces(bytes.subarray(offset, offset + length), 50_000, 1, 70_000);
    },
  };
}

/** Where the chunks start: after the MAC line and the nonce. */
function payloadStart(bytes: Buffer): number {
  return bytes.indexOf('\n', bytes.indexOf('\n---') + 1) + 1 + 16;
}

function failsWith(...codes: string[]): (error: unknown) => boolean {
  return (error) => error instanceof HoldfastError && codes.includes(error.code);
}

test('age round trip at sizes around the chunk and batch boundaries', async () => {
  const edges = [1, 2, 3, 14, 15, 16, 17].flatMap((count) => [-1, 0, 1].map((by) => count * CHUNK + by));
  for (const size of [0, 1, 16, ...edges]) {
    const bytes = plain.subarray(0, size);
    const object = await sealed(bytes);
    assert.equal(object.length - payloadStart(object), size + 16 * Math.max(1, Math.ceil(size / CHUNK)));
    assert.ok((await opened(object)).equals(bytes), `size ${size}`);
  }
});

test('age round trip however the streams are cut', async () => {
  const size = fc.oneof(
    fc.integer({ min: 1, max: 300 }),
    fc.integer({ min: 1, max: 3 * CHUNK }),
    fc.constantFrom(CHUNK - 1, CHUNK, CHUNK + 1, SEALED_CHUNK, 2 * CHUNK),
  );
  const sizes = fc.array(size, { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 0, max: 4 * CHUNK }), sizes, sizes, async (length, first, second) => {
      const bytes = plain.subarray(0, length);
      const object = await whole(sealer.seal(pieces(bytes, ...first)));
      assert.ok((await whole(opener.open(pieces(object, ...second)))).equals(bytes));
    }),
    { numRuns: 60 },
  );
});

test('age round trip fed byte by byte, with empty pieces between', async () => {
  async function* byBytes(bytes: Buffer) {
    for (let at = 0; at < bytes.length; at += 1) {
      yield bytes.subarray(at, at + 1);
      if (at % 1000 === 0) yield Buffer.alloc(0);
    }
  }
  const bytes = plain.subarray(0, CHUNK + 3);
  const object = await whole(sealer.seal(byBytes(bytes)));
  assert.ok((await whole(opener.open(byBytes(object)))).equals(bytes));
});

test('seal() does not depend on its input after the piece is taken', async () => {
  async function* reusing() {
    const piece = Buffer.alloc(1000);
    for (let turn = 0; turn < 200; turn += 1) yield piece.fill(turn);
  }
  const expected = Buffer.concat(Array.from({ length: 200 }, (_, turn) => Buffer.alloc(1000, turn)));
  assert.ok((await opened(await whole(sealer.seal(reusing())))).equals(expected));
});

test('seal() and open() yield pieces of at most 1 MiB and not many small ones', async () => {
  const object = await Array.fromAsync(sealer.seal(pieces(plain)));
  const back = await Array.fromAsync(opener.open(pieces(Buffer.concat(object))));
  for (const list of [object, back]) {
    assert.ok(list.every((piece) => piece.length <= 1 << 20));
    assert.ok(list.length <= 3, `${list.length} pieces`);
  }
});

test('seal() never uses a key, a nonce or an ephemeral key twice', async () => {
  const seen = new Set<string>();
  for (let turn = 0; turn < 50; turn += 1) {
    const object = await sealed(Buffer.from('same'));
    const start = payloadStart(object);
    seen.add(object.toString('latin1').split('\n')[1] ?? '');
    seen.add(object.subarray(start - 16, start).toString('hex'));
    seen.add(object.subarray(start).toString('hex'));
  }
  assert.equal(seen.size, 150);
});

test('open() detects every flipped byte', async () => {
  const bytes = Buffer.from('forty bytes that must not be changed....');
  const object = await sealed(bytes);
  const stanzaEnd = object.indexOf('\n---') + 1;
  for (let at = 0; at < object.length; at += 1) {
    for (const bit of [0x01, 0x20, 0x80]) {
      const flipped = Buffer.from(object);
      flipped[at] = (flipped[at] ?? 0) ^ bit;
      // What wraps the file key cannot be told from a wrapping for someone else.
      const codes = at < stanzaEnd ? ['object-damaged', 'key-wrong'] : ['object-damaged'];
      await assert.rejects(opened(flipped), failsWith(...codes), `byte ${at} bit ${bit}`);
    }
  }
});

test('open() detects every truncation of a small object and trailing bytes', async () => {
  const object = await sealed(Buffer.from('some bytes'));
  for (let length = 0; length < object.length; length += 1) {
    await assert.rejects(opened(object.subarray(0, length)), failsWith('object-damaged'), `length ${length}`);
  }
  for (const extra of [1, 16, SEALED_CHUNK]) {
    const longer = Buffer.concat([object, Buffer.alloc(extra)]);
    await assert.rejects(opened(longer), failsWith('object-damaged'), `${extra} bytes more`);
  }
});

test('open() detects chunks that are dropped, doubled, reordered or taken from another object', async () => {
  const size = 3 * CHUNK;
  const object = await sealed(plain.subarray(0, size));
  const other = await sealed(plain.subarray(0, size));
  const cut = (from: Buffer) => {
    const start = payloadStart(from);
    const chunk = (index: number) => from.subarray(start + index * SEALED_CHUNK).subarray(0, SEALED_CHUNK);
    return { head: from.subarray(0, start), chunks: [chunk(0), chunk(1), chunk(2)] as const };
  };
  const { head, chunks } = cut(object);
  const [a, b, c] = chunks;
  const foreign = cut(other);
  assert.ok((await opened(Buffer.concat([head, a, b, c]))).equals(plain.subarray(0, size)));
  const cases: Record<string, Buffer[]> = {
    'final chunk dropped': [a, b],
    'all chunks dropped': [],
    'first chunk dropped': [b, c],
    'middle chunk dropped': [a, c],
    reordered: [b, a, c],
    doubled: [a, a, b, c],
    'final first': [c, a, b],
    'final twice': [a, b, c, c],
    'chunk of another object': [a, foreign.chunks[1], c],
    'whole payload of another object': [...foreign.chunks],
  };
  for (const [name, list] of Object.entries(cases)) {
    await assert.rejects(opened(Buffer.concat([head, ...list])), failsWith('object-damaged'), name);
  }
});

test('open() refuses an empty final chunk after a full one', async () => {
  const { deriveKey, formatHeader } = await import('./age-format.ts');
  const { parseX25519Recipient, wrapForX25519 } = await import('./age-x25519.ts');
  const { createCipheriv } = await import('node:crypto');
  const fileKey = randomBytes(16);
  const nonce = randomBytes(16);
  const payloadKey = deriveKey(fileKey, nonce, 'payload');
  const chunk = (index: number, final: number, bytes: Buffer) => {
    const iv = Buffer.alloc(12);
    iv[10] = index;
    iv[11] = final;
    const cipher = createCipheriv('chacha20-poly1305', payloadKey, iv, { authTagLength: 16 });
    return Buffer.concat([cipher.update(bytes), cipher.final(), cipher.getAuthTag()]);
  };
  const header = formatHeader([wrapForX25519(parseX25519Recipient(key.recipient), fileKey)], fileKey);
  const full = plain.subarray(0, CHUNK);
  const sound = Buffer.concat([header, nonce, chunk(0, 1, full)]);
  assert.ok((await opened(sound)).equals(full));
  const padded = Buffer.concat([header, nonce, chunk(0, 0, full), chunk(1, 1, Buffer.alloc(0))]);
  await assert.rejects(opened(padded), failsWith('object-damaged'));
});

test('open() yields nothing of a damaged chunk', async () => {
  const object = await sealed(plain);
  object[payloadStart(object) + 17 * SEALED_CHUNK + 5]! ^= 1;
  let length = 0;
  await assert.rejects(async () => {
    for await (const piece of opener.open(pieces(object))) {
      assert.ok(piece.equals(plain.subarray(length, length + piece.length)));
      length += piece.length;
    }
  }, failsWith('object-damaged'));
  assert.ok(length > 0 && length <= 17 * CHUNK);
});

test('openRange() equals the slice', async () => {
  const object = await sealed(plain);
  const edge = fc.oneof(
    fc.integer({ min: 0, max: plain.length }),
    fc.integer({ min: 0, max: 20 }).map((count) => count * CHUNK),
    fc.constantFrom(CHUNK - 1, CHUNK + 1, plain.length, plain.length - 1),
  );
  await fc.assert(
    fc.asyncProperty(edge, edge, async (one, other) => {
      const [start, end] = one < other ? [one, other] : [other, one];
      const range = await whole(opener.openRange(sourceOf(object), start, end - start));
      assert.ok(range.equals(plain.subarray(start, end)), `${start}..${end}`);
    }),
    { numRuns: 150 },
  );
});

test('openRange() of an object whose size is a multiple of the chunk, and of an empty one', async () => {
  const bytes = plain.subarray(0, 2 * CHUNK);
  const source = sourceOf(await sealed(bytes));
  for (const [offset, length] of [
    [0, 2 * CHUNK],
    [CHUNK, CHUNK],
    [2 * CHUNK - 1, 1],
    [0, CHUNK],
    [CHUNK, 0],
  ] as const) {
    const range = await whole(opener.openRange(source, offset, length));
    assert.ok(range.equals(bytes.subarray(offset, offset + length)), `${offset}+${length}`);
  }
  const empty = sourceOf(await sealed(Buffer.alloc(0)));
  assert.equal((await whole(opener.openRange(empty, 0, 0))).length, 0);
  await assert.rejects(whole(opener.openRange(empty, 0, 1)), failsWith('object-damaged'));
});

test('openRange() reads the header of a source once', async () => {
  const source = sourceOf(await sealed(plain));
  for (const offset of [0, 5 * CHUNK, 9]) await whole(opener.openRange(source, offset, 10));
  assert.equal(source.reads, 4);
});

test('openRange() detects a damaged chunk, a truncated object and a range beyond the end', async () => {
  const object = await sealed(plain);
  const flipped = Buffer.from(object);
  flipped[payloadStart(object) + 3 * SEALED_CHUNK + 9]! ^= 4;
  await assert.rejects(whole(opener.openRange(sourceOf(flipped), 3 * CHUNK, 1)), failsWith('object-damaged'));
  assert.equal((await whole(opener.openRange(sourceOf(flipped), 2 * CHUNK, CHUNK))).length, CHUNK);
  await assert.rejects(
    whole(opener.openRange(sourceOf(object), plain.length, 1)),
    failsWith('object-damaged'),
  );
  // Cut between chunks: what is now the last one was not sealed as such.
  const cut = object.subarray(0, payloadStart(object) + 4 * SEALED_CHUNK);
  await assert.rejects(whole(opener.openRange(sourceOf(cut), 3 * CHUNK, 1)), failsWith('object-damaged'));
  const inHeader = sourceOf(object.subarray(0, 100));
  await assert.rejects(whole(opener.openRange(inHeader, 0, 1)), failsWith('object-damaged'));
});

test('openRange() asks the source again after a storage failure', async () => {
  const sound = sourceOf(await sealed(plain));
  let away = true;
  const source: RangeSource = {
    sizeBytes: sound.sizeBytes,
    async *read(offset, length) {
      if (away) throw new HoldfastError('storage-unavailable', 'storage is away');
      yield* sound.read(offset, length);
    },
  };
  await assert.rejects(whole(opener.openRange(source, 0, 3)), failsWith('storage-unavailable'));
  away = false;
  assert.ok((await whole(opener.openRange(source, 0, 3))).equals(plain.subarray(0, 3)));
});

test('openRange() finds the payload after a header longer than its first read', async () => {
  const many = Array.from({ length: 99 }, () => generateIdentity().recipient);
  const object = await sealed(plain, createAgeSealer([...many, key.recipient]));
  assert.ok(payloadStart(object) > 8192);
  const range = await whole(opener.openRange(sourceOf(object), CHUNK - 2, 4));
  assert.ok(range.equals(plain.subarray(CHUNK - 2, CHUNK + 2)));
});

test('open() with several recipients and identities takes the one that fits', async () => {
  const other = generateIdentity();
  const both = createAgeSealer([other.recipient, key.recipient]);
  const object = await sealed(Buffer.from('for two'), both);
  const second = parseIdentities(other.identity, 'test');
  for (const list of [identities, second, [...second, ...identities]]) {
    assert.equal((await opened(object, createAgeOpener(list))).toString(), 'for two');
  }
});

test('open() without a fitting identity throws key-wrong, without any key-missing, without bytes', async () => {
  const object = await sealed(Buffer.from('secret'));
  const stranger = parseIdentities(generateIdentity().identity, 'test');
  const cases: [readonly Identity[], string][] = [
    [stranger, 'key-wrong'],
    [[passphraseIdentity('guess')], 'key-wrong'],
    [[], 'key-missing'],
  ];
  for (const [list, code] of cases) {
    const wrong = createAgeOpener(list);
    await assert.rejects(opened(object, wrong), failsWith(code));
    await assert.rejects(whole(wrong.openRange(sourceOf(object), 0, 1)), failsWith(code));
  }
});

test('open() refuses what is no age file and a header without end, after reading little of it', async () => {
  let taken = 0;
  async function* endless(first: string) {
    yield Buffer.from(first);
    for (;;) {
      taken += 1;
      yield Buffer.from(`-> filler ${'x'.repeat(2000)}\n\n`);
    }
  }
  for (const bytes of ['', 'age-encryption.org/v2\n', 'PGDMP', '-----BEGIN AGE ENCRYPTED FILE-----']) {
    await assert.rejects(opened(Buffer.from(bytes)), failsWith('object-damaged'));
  }
  await assert.rejects(whole(opener.open(endless('age-encryption.org/v1\n'))), failsWith('object-damaged'));
  assert.ok(taken < 100);
});

test('seal() and open() close their source when the reader stops or the source fails', async () => {
  const object = await sealed(plain);
  for (const start of [
    (source: AsyncIterable<Buffer>) => sealer.seal(source),
    (source: AsyncIterable<Buffer>) => opener.open(source),
  ]) {
    let closed = false;
    async function* watched() {
      try {
        for (;;) yield* pieces(object, 100_000);
      } finally {
        closed = true;
      }
    }
    for await (const piece of start(watched())) if (piece.length > 1000) break;
    assert.ok(closed);
    async function* broken() {
      yield object.subarray(0, 1000);
      throw new HoldfastError('storage-unavailable', 'storage is away');
    }
    await assert.rejects(whole(start(broken())), failsWith('storage-unavailable'));
  }
});

test('createAgeSealer() refuses misspelt, foreign and unusable recipients', () => {
  const misspelt = key.recipient.replace(/.$/, (last) => (last === 'q' ? 'p' : 'q'));
  const tag = 'age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e';
  for (const list of [[], [misspelt], [tag], [key.recipient, 'age1'], [key.recipient.toUpperCase()]]) {
    assert.throws(() => createAgeSealer(list), failsWith('config-invalid'));
  }
});

test('passphrase round trip; a wrong one throws key-wrong', async () => {
  const object = await sealed(Buffer.from('kit'), createAgePassphraseSealer('correct horse', 10));
  const right = createAgeOpener([...identities, passphraseIdentity('correct horse')]);
  assert.equal((await opened(object, right)).toString(), 'kit');
  const wrong = createAgeOpener([passphraseIdentity('correct hors')]);
  await assert.rejects(opened(object, wrong), failsWith('key-wrong'));
});

test('open() refuses excessive work factors and a passphrase beside other recipients', async () => {
  const right = createAgeOpener([...identities, passphraseIdentity('p')]);
  const object = await sealed(Buffer.from('kit'), createAgePassphraseSealer('p', 10));
  const altered = (from: string, to: string) =>
    Buffer.from(object.toString('latin1').replace(from, to), 'latin1');
  for (const work of ['21', '30', '010', '1e1', '-1', '']) {
    await assert.rejects(opened(altered(' 10\n', ` ${work}\n`), right), failsWith('object-damaged'), work);
  }
  const stanza = (await sealed(Buffer.alloc(0))).toString('latin1').split('\n').slice(1, 3).join('\n');
  const mixed = altered('\n-> scrypt', `\n${stanza}\n-> scrypt`);
  await assert.rejects(opened(mixed, right), failsWith('object-damaged'));
});

test('typage opens what we seal', async () => {
  for (const size of [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]) {
    const bytes = plain.subarray(0, size);
    const decrypter = new typage.Decrypter();
    decrypter.addIdentity(key.identity);
    assert.ok(bytes.equals(await decrypter.decrypt(await sealed(bytes))), `size ${size}`);
  }
  const decrypter = new typage.Decrypter();
  decrypter.addPassphrase('pass');
  const object = await sealed(Buffer.from('kit'), createAgePassphraseSealer('pass', 10));
  assert.equal(Buffer.from(await decrypter.decrypt(object)).toString(), 'kit');
});

test('open() opens what typage seals', async () => {
  for (const size of [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5]) {
    const bytes = plain.subarray(0, size);
    const encrypter = new typage.Encrypter();
    encrypter.addRecipient(await typage.identityToRecipient(await typage.generateX25519Identity()));
    encrypter.addRecipient(key.recipient);
    assert.ok((await opened(Buffer.from(await encrypter.encrypt(bytes)))).equals(bytes), `size ${size}`);
  }
  const encrypter = new typage.Encrypter();
  encrypter.setPassphrase('pass');
  encrypter.setScryptWorkFactor(10);
  const object = Buffer.from(await encrypter.encrypt('kit'));
  assert.equal((await opened(object, createAgeOpener([passphraseIdentity('pass')]))).toString(), 'kit');
});

test('open() passes over stanzas of kinds it does not know', async () => {
  const encrypter = new typage.Encrypter();
  encrypter.addRecipient({
    wrapFileKey: () => [new typage.Stanza(['example.org/odd', 'argument'], new Uint8Array(96))],
  });
  encrypter.addRecipient(key.recipient);
  const object = Buffer.from(await encrypter.encrypt('odd company'));
  assert.equal((await opened(object)).toString(), 'odd company');
});
