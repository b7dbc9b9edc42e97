/**
 * The header of an age v1 file and its MAC, after the specification at https://c2sp.org/age (sections "Header" and
 * "File key").
 */
import { createCipheriv, createDecipheriv, createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import { HoldfastError } from '../errors.ts';

export const FILE_KEY_BYTES = 16;
export const TAG_BYTES = 16;

/** Longer headers are neither written nor read: it bounds what a damaged or hostile object makes a reader hold. */
export const MAX_HEADER_BYTES = 64 * 1024;

/** One wrapping of the file key: `args[0]` is the kind of recipient. */
export interface Stanza {
  args: readonly string[];
  body: Buffer;
}

export interface AgeHeader {
  stanzas: readonly Stanza[];
  /** What the MAC covers: everything up to and including the `---` mark. */
  covered: Buffer;
  mac: Buffer;
}

const VERSION_LINE = 'age-encryption.org/v1';
const BODY_COLUMNS = 64;
const WRAP_NONCE = Buffer.alloc(12);

/** The error for every object that is not a sound age file. */
export function damaged(reason: string, cause?: unknown): HoldfastError {
  return new HoldfastError('object-damaged', `sealed object is damaged: ${reason}`, {
    hint: 'run `holdfast verify --deep` to find what else is damaged, and restore from another repository',
    ...(cause === undefined ? {} : { cause }),
  });
}

/** Base64 without padding. */
export function encodeBase64(bytes: Buffer): string {
  return bytes.toString('base64').replace(/=+$/, '');
}

/** The bytes of canonical, unpadded base64; undefined for anything else. */
export function decodeBase64(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64');
  return encodeBase64(bytes) === text ? bytes : undefined;
}

/** HKDF-SHA-256 with 32 bytes of output, the only key derivation of age. */
export function deriveKey(secret: Buffer, salt: Buffer, info: string): Buffer {
  return Buffer.from(hkdfSync('sha256', secret, salt, info, 32));
}

/** Encrypts the file key for a stanza's body. `wrapKey` must be used once: the nonce is fixed. */
export function wrapFileKey(wrapKey: Buffer, fileKey: Buffer): Buffer {
  const cipher = createCipheriv('chacha20-poly1305', wrapKey, WRAP_NONCE, { authTagLength: TAG_BYTES });
  const body = cipher.update(fileKey);
  cipher.final();
  return Buffer.concat([body, cipher.getAuthTag()]);
}

/** The file key of a stanza's body; undefined where `wrapKey` does not fit. Throws `object-damaged` on a wrong length. */
export function unwrapFileKey(wrapKey: Buffer, body: Buffer): Buffer | undefined {
  // The specification demands this check before decrypting (partitioning oracles).
  if (body.length !== FILE_KEY_BYTES + TAG_BYTES) throw damaged('a wrapped file key has the wrong length');
  const decipher = createDecipheriv('chacha20-poly1305', wrapKey, WRAP_NONCE, { authTagLength: TAG_BYTES });
  decipher.setAuthTag(body.subarray(FILE_KEY_BYTES));
  const fileKey = decipher.update(body.subarray(0, FILE_KEY_BYTES));
  try {
    decipher.final();
  } catch {
    return undefined;
  }
  return fileKey;
}

/** The header for `stanzas`, with its MAC. */
export function formatHeader(stanzas: readonly Stanza[], fileKey: Buffer): Buffer {
  const covered = `${VERSION_LINE}\n${stanzas.map(formatStanza).join('')}---`;
  return Buffer.from(`${covered} ${encodeBase64(headerMac(fileKey, Buffer.from(covered)))}\n`);
}

function formatStanza(stanza: Stanza): string {
  const body = encodeBase64(stanza.body);
  const lines = [`-> ${stanza.args.join(' ')}`];
  // The body ends with a line shorter than 64 columns, if need be an empty one.
  for (let at = 0; at <= body.length; at += BODY_COLUMNS) lines.push(body.slice(at, at + BODY_COLUMNS));
  return `${lines.join('\n')}\n`;
}

/** Length of the header that `bytes` starts with; undefined while its end has not come. */
export function headerLength(bytes: Buffer): number | undefined {
  // No other line starts with '-' but those starting with '->'.
  const mark = bytes.indexOf('\n---');
  if (mark < 0) return undefined;
  const end = bytes.indexOf('\n', mark + 1);
  return end < 0 ? undefined : end + 1;
}

/** Whether `bytes` can be the start of an age v1 file. */
export function looksLikeAge(bytes: Buffer): boolean {
  const expected = Buffer.from(`${VERSION_LINE}\n`);
  const length = Math.min(bytes.length, expected.length);
  return bytes.subarray(0, length).equals(expected.subarray(0, length));
}

/** Reads exactly one header. Throws `object-damaged` for whatever the specification does not allow. */
export function parseHeader(bytes: Buffer): AgeHeader {
  const text = bytes.toString('latin1');
  const lines = text.split('\n');
  // The text ends with a line feed, so the last piece is empty and the one before is the MAC line.
  if (lines.pop() !== '' || lines.shift() !== VERSION_LINE) throw damaged('not an age v1 file');
  const end = /^--- ([A-Za-z0-9+/]{43})$/.exec(lines.pop() ?? '');
  const mac = end?.[1] === undefined ? undefined : decodeBase64(end[1]);
  if (mac === undefined) throw damaged('its header has no MAC');

  const stanzas: Stanza[] = [];
  while (lines.length > 0) stanzas.push(takeStanza(lines));
  if (stanzas.length === 0) throw damaged('its header names no recipient');
  return { stanzas, covered: bytes.subarray(0, text.lastIndexOf('---') + 3), mac };
}

/** Removes one stanza from the front of `lines`. */
function takeStanza(lines: string[]): Stanza {
  const first = lines.shift();
  if (first === undefined || !/^->( [\x21-\x7e]+)+$/.test(first)) throw damaged('its header is malformed');
  let body = '';
  for (;;) {
    const line = lines.shift();
    if (line === undefined || line.length > BODY_COLUMNS) throw damaged('its header is malformed');
    body += line;
    if (line.length < BODY_COLUMNS) break;
  }
  const bytes = decodeBase64(body);
  if (bytes === undefined) throw damaged('its header is malformed');
  return { args: first.slice(3).split(' '), body: bytes };
}

/** Throws `object-damaged` unless the header is the one that was written with `fileKey`. */
export function checkHeaderMac(header: AgeHeader, fileKey: Buffer): void {
  if (!timingSafeEqual(headerMac(fileKey, header.covered), header.mac))
    throw damaged('its header was altered');
}

function headerMac(fileKey: Buffer, covered: Buffer): Buffer {
  const key = deriveKey(fileKey, Buffer.alloc(0), 'header');
  return createHmac('sha256', key).update(covered).digest();
}
