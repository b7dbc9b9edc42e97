import assert from 'node:assert/strict';
import { createCipheriv, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import {
  CHUNK,
  SEALED_CHUNK,
  failsWith,
  payloadStart,
  pieces,
  sourceOf,
  whole,
} from '../../test/sealed-object.ts';
import * as typage from 'age-encryption';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { createAgeOpener, createAgePassphraseSealer, createAgeSealer } from './age.ts';
import { type Stanza, deriveKey, encodeBase64, formatHeader, parseHeader } from './age-format.ts';
import { passphraseIdentity } from './age-scrypt.ts';
import { parseX25519Recipient, unwrapWithX25519, wrapForX25519 } from './age-x25519.ts';
import { type Identity, generateIdentity, parseIdentities } from './identity.ts';
import type { Opener, Sealer } from './sealer.ts';

const key = generateIdentity();
const identities = parseIdentities(key.identity, 'test');
const sealer = createAgeSealer([key.recipient]);
const opener = createAgeOpener(identities);
/** Bytes that differ everywhere, so that a chunk in the wrong place shows. */
const plain = randomBytes(20 * CHUNK + 77);

async function sealed(bytes: Buffer, by: Sealer = sealer): Promise<Buffer> {
  return whole(by.seal(pieces(bytes)));
}

function opened(bytes: Buffer, by: Opener = opener): Promise<Buffer> {
  return whole(by.open(pieces(bytes)));
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
  const [identity] = identities;
  assert.ok(identity);
  for (let turn = 0; turn < 50; turn += 1) {
    const object = await sealed(Buffer.from('same'));
    const start = payloadStart(object);
    const { stanzas } = parseHeader(object.subarray(0, start - 16));
    seen.add(stanzas[0]?.args[1] ?? '');
    seen.add(identity.kind === 'x25519' ? (unwrapWithX25519(identity, stanzas)?.toString('hex') ?? '') : '');
    seen.add(object.subarray(start - 16, start).toString('hex'));
    seen.add(object.subarray(start).toString('hex'));
  }
  assert.equal(seen.size, 200);
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

/** A payload of chunks that are each sealed as told, behind a header of `stanzas` (or of a right one). */
function crafted(chunks: [bytes: Buffer, final: 0 | 1][], stanzas?: Stanza[]): Buffer {
  const fileKey = randomBytes(16);
  const nonce = randomBytes(16);
  const payloadKey = deriveKey(fileKey, nonce, 'payload');
  const payload = chunks.map(([bytes, final], index) => {
    const iv = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, index, final]);
    const cipher = createCipheriv('chacha20-poly1305', payloadKey, iv, { authTagLength: 16 });
    return Buffer.concat([cipher.update(bytes), cipher.final(), cipher.getAuthTag()]);
  });
  const right = [wrapForX25519(parseX25519Recipient(key.recipient), fileKey)];
  return Buffer.concat([formatHeader(stanzas ?? right, fileKey), nonce, ...payload]);
}

test('open() refuses an empty final chunk after a full one', async () => {
  const full = plain.subarray(0, CHUNK);
  assert.ok((await opened(crafted([[full, 1]]))).equals(full));
  const padded = crafted([
    [full, 0],
    [Buffer.alloc(0), 1],
  ]);
  await assert.rejects(opened(padded), failsWith('object-damaged'));
});

test('open() refuses a short chunk before the final one', async () => {
  const short = crafted([
    [Buffer.alloc(10), 0],
    [Buffer.alloc(10), 1],
  ]);
  await assert.rejects(opened(short), failsWith('object-damaged'));
});

test('open() refuses malformed X25519 stanzas and weak keys', async () => {
  const share = encodeBase64(randomBytes(32));
  const body = Buffer.alloc(32);
  const cases: Record<string, Stanza> = {
    'no argument': { args: ['X25519'], body },
    'an argument too many': { args: ['X25519', share, 'more'], body },
    'a short key': { args: ['X25519', encodeBase64(Buffer.alloc(31, 9))], body },
    'a long key': { args: ['X25519', encodeBase64(Buffer.alloc(33, 9))], body },
    'a key of low order': { args: ['X25519', encodeBase64(Buffer.alloc(32))], body },
    'a short body': { args: ['X25519', share], body: Buffer.alloc(31) },
    'a long body': { args: ['X25519', share], body: Buffer.alloc(48) },
  };
  for (const [name, stanza] of Object.entries(cases)) {
    await assert.rejects(
      opened(crafted([[Buffer.alloc(1), 1]], [stanza])),
      failsWith('object-damaged'),
      name,
    );
  }
  const foreign = { args: ['X25519', share], body };
  await assert.rejects(opened(crafted([[Buffer.alloc(1), 1]], [foreign])), failsWith('key-wrong'));
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
  const lines = object.toString('latin1').split('\n');
  const scrypt = lines.slice(1, 3).join('\n');
  for (const passphrase of [right, createAgeOpener([passphraseIdentity('p')])]) {
    for (const mixed of [altered(scrypt, `${stanza}\n${scrypt}`), altered(scrypt, `${scrypt}\n${stanza}`)]) {
      await assert.rejects(opened(mixed, passphrase), failsWith('object-damaged'));
    }
  }
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
