/** The X25519 recipients and identities of age (https://c2sp.org/age, section "The X25519 recipient type"). */
import {
  type KeyObject,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
} from 'node:crypto';
import { HoldfastError } from '../errors.ts';
import { damaged, decodeBase64, deriveKey, encodeBase64, unwrapFileKey, wrapFileKey } from './age-format.ts';
import type { Stanza } from './age-format.ts';
import { decodeBech32, encodeBech32 } from './bech32.ts';

export interface X25519Recipient {
  /** `age1…` */
  text: string;
  publicKey: KeyObject;
}

/** A secret key. It is kept as a key object, which shows nothing when logged. */
export interface X25519Identity {
  kind: 'x25519';
  /** The public key that objects are sealed for, `age1…`. */
  recipient: string;
  secretKey: KeyObject;
}

const RECIPIENT_PREFIX = 'age';
const IDENTITY_PREFIX = 'age-secret-key-';
const STANZA_KIND = 'X25519';
const KEY_BYTES = 32;
// RFC 8410: what stands before the 32 bytes of an X25519 key in PKCS #8 and in SubjectPublicKeyInfo.
const PKCS8_HEAD = Buffer.from('302e020100300506032b656e04220420', 'hex');
const SPKI_HEAD = Buffer.from('302a300506032b656e032100', 'hex');

/** Reads `age1…`. Throws `config-invalid`. */
export function parseX25519Recipient(text: string): X25519Recipient {
  const decoded = text === text.toLowerCase() ? decodeBech32(text) : undefined;
  if (decoded === undefined) {
    throw new HoldfastError(
      'config-invalid',
      `age recipient '${text}' is misspelt: its checksum does not fit`,
      {
        hint: 'copy the line `# public key: age1…` of the identity file again',
      },
    );
  }
  if (decoded.prefix !== RECIPIENT_PREFIX || decoded.bytes.length !== KEY_BYTES) {
    throw new HoldfastError(
      'config-invalid',
      `age recipient '${text.slice(0, 16)}…' is of a kind that is not supported: only X25519 keys are`,
      { hint: 'make one with `holdfast key generate` or `age-keygen`' },
    );
  }
  return { text, publicKey: publicKeyOf(decoded.bytes) };
}

/** Reads `AGE-SECRET-KEY-1…`; undefined where it is not one. The text is never repeated in a message. */
export function parseX25519Identity(text: string): X25519Identity | undefined {
  const decoded = text === text.toUpperCase() ? decodeBech32(text) : undefined;
  if (decoded?.prefix !== IDENTITY_PREFIX || decoded.bytes.length !== KEY_BYTES) return undefined;
  const key = Buffer.concat([PKCS8_HEAD, decoded.bytes]);
  const secretKey = createPrivateKey({ key, format: 'der', type: 'pkcs8' });
  return { kind: 'x25519', recipient: recipientOf(secretKey), secretKey };
}

/** A new key pair, as age writes it. */
export function generateX25519(): { identity: string; recipient: string } {
  const { privateKey } = generateKeyPairSync('x25519');
  const secret = privateKey.export({ format: 'der', type: 'pkcs8' }).subarray(PKCS8_HEAD.length);
  return {
    identity: encodeBech32(IDENTITY_PREFIX, secret).toUpperCase(),
    recipient: recipientOf(privateKey),
  };
}

/** Wraps a file key for a recipient, under a new ephemeral key. */
export function wrapForX25519(recipient: X25519Recipient, fileKey: Buffer): Stanza {
  const ephemeral = generateKeyPairSync('x25519');
  const share = rawPublicKey(ephemeral.publicKey);
  const secret = agree(ephemeral.privateKey, recipient.publicKey);
  if (secret === undefined) {
    throw new HoldfastError('config-invalid', `age recipient '${recipient.text}' is not a usable key`);
  }
  const wrapKey = wrapKeyOf(secret, share, rawPublicKey(recipient.publicKey));
  return { args: [STANZA_KIND, encodeBase64(share)], body: wrapFileKey(wrapKey, fileKey) };
}

/**
 * The file key that one of `stanzas` wraps for `identity`; undefined where none does. Throws `object-damaged` for an
 * X25519 stanza that is malformed.
 */
export function unwrapWithX25519(identity: X25519Identity, stanzas: readonly Stanza[]): Buffer | undefined {
  for (const { args, body } of stanzas) {
    if (args[0] !== STANZA_KIND) continue;
    const share = args.length === 2 ? decodeBase64(args[1] ?? '') : undefined;
    if (share?.length !== KEY_BYTES) throw damaged('an X25519 stanza is malformed');
    const secret = agree(identity.secretKey, publicKeyOf(share));
    if (secret === undefined) throw damaged('an X25519 stanza holds a weak key');
    const own = rawPublicKey(createPublicKey(identity.secretKey));
    const fileKey = unwrapFileKey(wrapKeyOf(secret, share, own), body);
    if (fileKey !== undefined) return fileKey;
  }
  return undefined;
}

function wrapKeyOf(secret: Buffer, share: Buffer, recipient: Buffer): Buffer {
  return deriveKey(secret, Buffer.concat([share, recipient]), 'age-encryption.org/v1/X25519');
}

/** The shared secret; undefined where the public key is of low order and the secret therefore known to everyone. */
function agree(privateKey: KeyObject, publicKey: KeyObject): Buffer | undefined {
  try {
    const secret = diffieHellman({ privateKey, publicKey });
    return secret.every((byte) => byte === 0) ? undefined : secret;
  } catch {
    // OpenSSL refuses an all-zero secret by itself.
    return undefined;
  }
}

function publicKeyOf(raw: Buffer): KeyObject {
  return createPublicKey({ key: Buffer.concat([SPKI_HEAD, raw]), format: 'der', type: 'spki' });
}

function rawPublicKey(key: KeyObject): Buffer {
  return key.export({ format: 'der', type: 'spki' }).subarray(SPKI_HEAD.length);
}

function recipientOf(secretKey: KeyObject): string {
  return encodeBech32(RECIPIENT_PREFIX, rawPublicKey(createPublicKey(secretKey)));
}
