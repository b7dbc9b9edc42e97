import { HoldfastError } from '../errors.ts';
import { sealKindOf } from '../seal/sealers.ts';
import type { Storage } from '../storage/storage.ts';
import { createBlake3, HashingPass } from '../stream/hash.ts';
import type { Repository } from './repository.ts';

/** An object as it lies in the store. `hash` (BLAKE3-256, hexadecimal) is of the stored bytes: no key is needed to check it. */
export interface StoredObject {
  key: string;
  sizeBytes: number;
  hash: string;
}

/**
 * Seals a stream into a new object `key` + the sealer's suffix. Resolves when it is durable and its length was checked.
 * The key must be the caller's own (never written before): an existing object throws `assertion`.
 */
export async function putSealed(
  repository: Repository,
  key: string,
  plain: AsyncIterable<Buffer>,
  signal?: AbortSignal,
): Promise<StoredObject> {
  const pass = new HashingPass();
  const sealedKey = key + repository.sealer.suffix;
  const result = await repository.storage.put(sealedKey, pass.through(repository.sealer.seal(plain)), {
    ifAbsent: true,
    ...(signal && { signal }),
  });
  if (!result.created) throw new HoldfastError('assertion', `object ${sealedKey} exists already`);
  if (result.sizeBytes !== pass.sizeBytes) {
    throw new HoldfastError(
      'object-damaged',
      `${sealedKey} has ${result.sizeBytes} bytes, ${pass.sizeBytes} were sent`,
    );
  }
  return { key: sealedKey, sizeBytes: pass.sizeBytes, hash: pass.hex() };
}

/**
 * The plaintext of a whole object. Where the stored hash is known it is compared at the end: what was yielded before is
 * only good once the stream has ended without an error. Errors as `Opener.open` and the store's.
 */
export async function* openSealed(
  repository: Repository,
  object: { key: string; hash?: string },
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  const opener = await repository.opener(sealKindOf(object.key));
  const pass = new HashingPass();
  yield* opener.open(pass.through(repository.storage.get(object.key, { ...(signal && { signal }) })));
  if (object.hash !== undefined && pass.hex() !== object.hash) {
    throw new HoldfastError('object-damaged', `${object.key} is not what was stored`, {
      hint: 'this copy is damaged: use another repository or another backup',
      context: { key: object.key },
    });
  }
}

/** A part of an object's plaintext; costs about that part where the sealing allows it, else everything before it too. */
export async function* openSealedRange(
  repository: Repository,
  stored: { key: string; sizeBytes: number },
  offset: number,
  length: number,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  const { key, sizeBytes } = stored;
  const opener = await repository.opener(sealKindOf(key));
  const read = (at: number, bytes: number): AsyncIterable<Buffer> =>
    repository.storage.get(key, { range: { offset: at, length: bytes }, ...(signal && { signal }) });
  if (opener.openRange !== undefined) {
    yield* opener.openRange({ sizeBytes, read }, offset, length);
    return;
  }
  let position = 0;
  for await (const chunk of opener.open(repository.storage.get(key, { ...(signal && { signal }) }))) {
    const from = Math.max(0, offset - position);
    const to = Math.min(chunk.length, offset + length - position);
    if (from < to) yield chunk.subarray(from, to);
    position += chunk.length;
    if (position >= offset + length) return;
  }
  throw new HoldfastError('object-damaged', `${key} ends before the part that is asked for`, {
    context: { key },
  });
}

/** Collects a stream of at most `maxBytes`; more throws `object-damaged`. */
export async function collect(
  source: AsyncIterable<Buffer>,
  maxBytes: number,
  what: string,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of source) {
    size += chunk.length;
    if (size > maxBytes) throw new HoldfastError('object-damaged', `${what} is larger than it can be`);
    chunks.push(chunk);
  }
  return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks, size);
}

/**
 * Reads an object back and compares it with what its writer recorded. Needs no key. Throws `object-missing`, or
 * `object-damaged` naming the object.
 */
export async function verifyStored(
  storage: Storage,
  stored: StoredObject,
  signal?: AbortSignal,
): Promise<void> {
  const hash = createBlake3();
  let sizeBytes = 0;
  for await (const chunk of storage.get(stored.key, { ...(signal && { signal }) })) {
    hash.update(chunk);
    sizeBytes += chunk.length;
  }
  if (sizeBytes !== stored.sizeBytes || hash.hex() !== stored.hash) {
    throw new HoldfastError(
      'object-damaged',
      `${stored.key} is not what was stored (${sizeBytes} bytes of ${stored.sizeBytes})`,
      {
        hint: 'this copy is damaged: use another repository or another backup',
        context: { key: stored.key },
      },
    );
  }
}
