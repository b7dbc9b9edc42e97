import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { checkHeaderMac, decodeBase64, formatHeader, headerLength, parseHeader } from './age-format.ts';

const fileKey = randomBytes(16);

test('parseHeader() gives back what formatHeader() was given, bodies of any length', () => {
  const argument = fc.stringMatching(/^[!-~]{1,20}$/);
  const stanza = fc.record(
    {
      args: fc.array(argument, { minLength: 1, maxLength: 4 }),
      body: fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(stanza, { minLength: 1, maxLength: 5 }), (stanzas) => {
      const bytes = formatHeader(stanzas, fileKey);
      assert.equal(headerLength(Buffer.concat([bytes, randomBytes(40)])), bytes.length);
      const header = parseHeader(bytes);
      assert.deepEqual(header.stanzas, stanzas);
      checkHeaderMac(header, fileKey);
    }),
  );
});

test('checkHeaderMac() refuses another file key', () => {
  const header = parseHeader(formatHeader([{ args: ['X'], body: Buffer.alloc(3) }], fileKey));
  assert.throws(() => checkHeaderMac(header, randomBytes(16)), { code: 'object-damaged' });
});

test('decodeBase64() refuses padding, non-canonical endings and foreign characters', () => {
  assert.deepEqual(decodeBase64('AA'), Buffer.from([0]));
  for (const wrong of ['AA==', 'AB', 'A', 'A-', 'AA\r', ' AA', 'AAA_']) {
    assert.equal(decodeBase64(wrong), undefined, wrong);
  }
});

test('parseHeader() refuses malformed headers', () => {
  const mac = `--- ${'A'.repeat(43)}\n`;
  const version = 'age-encryption.org/v1\n';
  const full = 'A'.repeat(64);
  assert.equal(parseHeader(Buffer.from(`${version}-> a\n${full}\n\n${mac}`)).stanzas[0]?.body.length, 48);
  const wrong = [
    '',
    version,
    `${version}${mac}`,
    `age-encryption.org/v2\n-> a\n\n${mac}`,
    `${version}-> a\n\n${mac}more`,
    `${version}-> a\n\n--- ${'A'.repeat(42)}\n`,
    `${version}-> a\n\n--- ${'A'.repeat(42)}B\n`,
    `${version}->\n\n${mac}`,
    `${version}-> \n\n${mac}`,
    `${version}-> a  b\n\n${mac}`,
    `${version}-> a \n\n${mac}`,
    `${version}-> ä\n\n${mac}`,
    `${version}->a\n\n${mac}`,
    `${version}-> a\n${mac}`,
    `${version}-> a\n${full}\n${mac}`,
    `${version}-> a\n${full}A\n\n${mac}`,
    `${version}-> a\nAA==\n${mac}`,
    `${version}-> a\nAA\r\n${mac}`,
    `${version}-> a\nAA\nAA\n${mac}`,
    `${version}stray\n-> a\n\n${mac}`,
  ];
  for (const text of wrong) {
    assert.throws(
      () => parseHeader(Buffer.from(text)),
      (error) => error instanceof HoldfastError && error.code === 'object-damaged',
      JSON.stringify(text),
    );
  }
});
