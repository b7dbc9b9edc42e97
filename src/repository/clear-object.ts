import { HoldfastError } from '../errors.ts';
import type { Storage } from '../storage/storage.ts';
import { blake3Hex } from '../stream/hash.ts';
import { FORMAT_VERSION } from './layout.ts';

/**
 * Small objects in clear JSON: the marker, backup records, WAL headers. Each ends with a member `checksum`: BLAKE3-256
 * (hexadecimal) of the same text without that member, so that a flipped bit is noticed by every reader without a key.
 */
export function encodeClearObject(value: Readonly<Record<string, unknown>>): Buffer {
  const body = JSON.stringify({ ...value, checksum: undefined });
  return Buffer.from(`${body.slice(0, -1)},"checksum":"${blake3Hex(Buffer.from(body))}"}\n`);
}

const ENDING = /,"checksum":"([0-9a-f]{64})"\}\n$/;
const ENDING_BYTES = ',"checksum":""}\n'.length + 64;

/** Undoes `encodeClearObject`; anything altered throws `object-damaged`, a newer `format` throws `format-too-new`. */
export function decodeClearObject(bytes: Buffer, key: string): Record<string, unknown> {
  const damaged = (what: string, cause?: unknown): HoldfastError =>
    new HoldfastError('object-damaged', `${key} is damaged: ${what}`, {
      hint: 'this copy cannot be used: take another repository or another backup',
      context: { key },
      cause,
    });
  const text = bytes.toString('utf8');
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw damaged('it is not valid JSON', error);
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed))
    throw damaged('it is not a JSON object');
  const object = parsed as Record<string, unknown>;
  const ending = ENDING.exec(text);
  const body = `${text.slice(0, -ENDING_BYTES)}}`;
  if (ending === null || blake3Hex(Buffer.from(body)) !== ending[1])
    throw damaged('its checksum does not fit');
  const { format } = object;
  if (typeof format !== 'number') throw damaged('it states no format');
  if (format > FORMAT_VERSION) {
    throw new HoldfastError(
      'format-too-new',
      `${key} has format ${format}; this Holdfast understands formats up to ${FORMAT_VERSION}`,
      { hint: 'use the Holdfast that wrote it, or a newer one', context: { key } },
    );
  }
  delete object['checksum'];
  return object;
}

/**
 * Reads one clear object. Undefined only where the store is certain that there is none. Objects larger than `maxBytes`
 * throw `object-damaged`.
 */
export async function readClearObject(
  storage: Storage,
  key: string,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<Record<string, unknown> | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of storage.get(key, { ...(signal && { signal }) })) {
      size += chunk.length;
      if (size > maxBytes) throw new HoldfastError('object-damaged', `${key} is larger than it can be`);
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'object-missing') return undefined;
    throw error;
  }
  return decodeClearObject(Buffer.concat(chunks), key);
}
