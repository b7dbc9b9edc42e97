/**
 * Sealing as age v1 files (https://c2sp.org/age): what is written here opens with `age --decrypt`, and the other way
 * round. Binary form only, no armor.
 */
import { randomBytes } from 'node:crypto';
import { HoldfastError } from '../errors.ts';
import {
  FILE_KEY_BYTES,
  MAX_HEADER_BYTES,
  checkHeaderMac,
  damaged,
  deriveKey,
  formatHeader,
  headerLength,
  looksLikeAge,
  parseHeader,
} from './age-format.ts';
import type { AgeHeader, Stanza } from './age-format.ts';
import {
  DEFAULT_WORK_FACTOR,
  checkScryptAlone,
  passphraseIdentity,
  unwrapWithPassphrase,
  wrapWithPassphrase,
} from './age-scrypt.ts';
import { chunkSpan, openChunks, openStream, plainSize, sealStream } from './age-stream.ts';
import { parseX25519Recipient, unwrapWithX25519, wrapForX25519 } from './age-x25519.ts';
import type { Identity } from './identity.ts';
import type { Opener, RangeSource, Sealer } from './sealer.ts';

const PAYLOAD_NONCE_BYTES = 16;
/** A header for some forty recipients; the first read of a ranged opening. */
const USUAL_HEADER_BYTES = 4096;
const MAX_RECIPIENTS = 256;

/** Seals for X25519 recipients, `age1…`, one at least. Throws `config-invalid`. */
export function createAgeSealer(recipients: readonly string[]): Sealer {
  if (recipients.length === 0 || recipients.length > MAX_RECIPIENTS) {
    throw new HoldfastError(
      'config-invalid',
      `age seals for 1 to ${MAX_RECIPIENTS} recipients, not ${recipients.length}`,
    );
  }
  const keys = recipients.map(parseX25519Recipient);
  return {
    kind: 'age',
    suffix: '.age',
    recipients: [...recipients],
    seal: (plain) => seal(plain, async (fileKey) => keys.map((key) => wrapForX25519(key, fileKey))),
  };
}

/**
 * Seals with a passphrase. Every object costs a derivation (at the default work factor about a second and 256 MiB), so
 * this is for single objects such as a recovery kit.
 */
export function createAgePassphraseSealer(passphrase: string, workFactor = DEFAULT_WORK_FACTOR): Sealer {
  const identity = passphraseIdentity(passphrase);
  return {
    kind: 'age',
    suffix: '.age',
    recipients: ['passphrase'],
    seal: (plain) =>
      seal(plain, async (fileKey) => [await wrapWithPassphrase(identity, fileKey, workFactor)]),
  };
}

/**
 * Opens age files with any of `identities`. Without one, opening throws `key-missing`, so that a host without a secret
 * key can hold an opener it never uses.
 *
 * A flipped bit in the part of the header that wraps the file key cannot be told from an object sealed for someone
 * else: it is reported as `key-wrong`. Everywhere else it is `object-damaged`.
 *
 * `openRange` remembers the key of a `RangeSource` for as long as that object lives, so that further ranges of it cost
 * one read each.
 */
export function createAgeOpener(
  identities: readonly Identity[],
): Opener & Required<Pick<Opener, 'openRange'>> {
  const known = new WeakMap<RangeSource, Promise<OpenedHeader>>();

  async function headerOf(source: RangeSource): Promise<OpenedHeader> {
    const promise = known.get(source) ?? openSourceHeader(source, identities);
    known.set(source, promise);
    try {
      return await promise;
    } catch (error) {
      // A storage failure must not stick.
      known.delete(source);
      throw error;
    }
  }

  return {
    kind: 'age',
    async *open(sealed) {
      const { payloadKey, rest } = await openHeader(sealed[Symbol.asyncIterator](), identities);
      yield* openStream(payloadKey, rest);
    },
    async *openRange(source, offset, length) {
      const { payloadKey, payloadOffset } = await headerOf(source);
      const sealedBytes = source.sizeBytes - payloadOffset;
      if (offset + length > plainSize(sealedBytes)) {
        throw damaged(`bytes up to ${offset + length} wanted, it holds ${plainSize(sealedBytes)}`);
      }
      if (length === 0) return;
      const span = chunkSpan(sealedBytes, offset, length);
      const sealed = source.read(payloadOffset + span.offset, span.length);
      yield* openChunks(payloadKey, sealed, span, offset, length);
    },
  };
}

async function* seal(
  plain: AsyncIterable<Buffer>,
  wrap: (fileKey: Buffer) => Promise<Stanza[]>,
): AsyncGenerator<Buffer> {
  const fileKey = randomBytes(FILE_KEY_BYTES);
  const nonce = randomBytes(PAYLOAD_NONCE_BYTES);
  yield Buffer.concat([formatHeader(await wrap(fileKey), fileKey), nonce]);
  yield* sealStream(deriveKey(fileKey, nonce, 'payload'), plain);
}

interface OpenedHeader {
  payloadKey: Buffer;
  /** Where the first chunk starts in the object. */
  payloadOffset: number;
}

async function openSourceHeader(source: RangeSource, identities: readonly Identity[]): Promise<OpenedHeader> {
  for (const limit of [USUAL_HEADER_BYTES, MAX_HEADER_BYTES + PAYLOAD_NONCE_BYTES]) {
    const length = Math.min(limit, source.sizeBytes);
    const iterator = source.read(0, length)[Symbol.asyncIterator]();
    try {
      const head = await readHead(iterator);
      if (head !== undefined) return await unlock(head.bytes, identities);
    } finally {
      await iterator.return?.();
    }
    if (length === source.sizeBytes) break;
  }
  throw damaged('it ends within its header');
}

/** Reads header and nonce off the front of a stream; `rest` is what follows and must be read to its end or closed. */
async function openHeader(
  iterator: AsyncIterator<Buffer>,
  identities: readonly Identity[],
): Promise<OpenedHeader & { rest: AsyncGenerator<Buffer> }> {
  try {
    const head = await readHead(iterator);
    if (head === undefined) throw damaged('it ends within its header');
    return { ...(await unlock(head.bytes, identities)), rest: continued(head.left, iterator) };
  } catch (error) {
    await iterator.return?.();
    throw error;
  }
}

/** Header and nonce, and what was read beyond them; undefined where the stream ends first. */
async function readHead(
  iterator: AsyncIterator<Buffer>,
): Promise<{ bytes: Buffer; left: Buffer } | undefined> {
  let bytes: Buffer = Buffer.alloc(0);
  for (;;) {
    const next = await iterator.next();
    if (next.done === true) return undefined;
    bytes = Buffer.concat([bytes, next.value]);
    if (!looksLikeAge(bytes)) throw damaged('not an age v1 file');
    const length = headerLength(bytes);
    if ((length ?? bytes.length) > MAX_HEADER_BYTES) throw damaged('its header has no end');
    const end = length === undefined ? Infinity : length + PAYLOAD_NONCE_BYTES;
    if (bytes.length >= end) return { bytes: bytes.subarray(0, end), left: bytes.subarray(end) };
  }
}

async function* continued(first: Buffer, iterator: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  try {
    if (first.length > 0) yield first;
    for (;;) {
      const next = await iterator.next();
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    await iterator.return?.();
  }
}

/** `head` is a header and the payload's nonce. */
async function unlock(head: Buffer, identities: readonly Identity[]): Promise<OpenedHeader> {
  const split = head.length - PAYLOAD_NONCE_BYTES;
  const header = parseHeader(head.subarray(0, split));
  const fileKey = await fileKeyOf(header, identities);
  checkHeaderMac(header, fileKey);
  return { payloadKey: deriveKey(fileKey, head.subarray(split), 'payload'), payloadOffset: head.length };
}

async function fileKeyOf(header: AgeHeader, identities: readonly Identity[]): Promise<Buffer> {
  checkScryptAlone(header.stanzas);
  if (identities.length === 0) {
    throw new HoldfastError('key-missing', 'object is sealed with age and no identity is configured', {
      hint: 'set encryption.identity to the file that holds the secret key (AGE-SECRET-KEY-1…)',
    });
  }
  for (const identity of identities) {
    const fileKey =
      identity.kind === 'x25519'
        ? unwrapWithX25519(identity, header.stanzas)
        : await unwrapWithPassphrase(identity, header.stanzas);
    if (fileKey !== undefined) return fileKey;
  }
  const kinds = [...new Set(header.stanzas.map(({ args }) => args[0] ?? ''))].join(', ');
  throw new HoldfastError('key-wrong', 'object is sealed for other keys: no identity opens it', {
    hint: 'add the identity of one of the recipients named in the backup record to the identity file',
    context: { identities: identities.length, stanzas: header.stanzas.length, kinds },
  });
}
