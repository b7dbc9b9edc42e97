import { throwIfCancelled } from '../cancellation.ts';
import { checkKey, checkPrefix } from './key.ts';
import { checkRange, objectMissing, READ_CHUNK_BYTES, readSpan } from './read-span.ts';
import type { GetOptions, ListOptions, ObjectInfo, PutOptions, PutResult, Storage } from './storage.ts';

/**
 * A store that lasts as long as `objects`, for tests and trials. Several stores over one map are like several processes
 * over one directory. Whoever holds the map may alter the bytes in it; the store itself copies on the way in and out.
 */
export function createMemoryStorage(objects: Map<string, Buffer> = new Map()): Storage {
  const find = (key: string): Buffer => {
    const object = objects.get(key);
    if (object === undefined) throw objectMissing(key, 'memory:');
    return object;
  };

  return {
    description: 'memory:',
    features: { conditionalPut: true, rangedGet: true },

    async put(
      key: string,
      source: Buffer | AsyncIterable<Buffer>,
      options: PutOptions = {},
    ): Promise<PutResult> {
      checkKey(key);
      throwIfCancelled(options.signal);
      const chunks: Buffer[] = [];
      if (Buffer.isBuffer(source)) {
        chunks.push(source);
      } else {
        for await (const chunk of source) {
          throwIfCancelled(options.signal);
          chunks.push(Buffer.from(chunk));
        }
      }
      throwIfCancelled(options.signal);
      // `concat` copies, and nothing is awaited between the question and the answer: racing callers cannot both win.
      const object = Buffer.concat(chunks);
      const created = !(options.ifAbsent === true && objects.has(key));
      if (created) objects.set(key, object);
      return { created, sizeBytes: object.length };
    },

    async *get(key: string, options: GetOptions = {}): AsyncGenerator<Buffer> {
      checkKey(key);
      checkRange(options.range);
      throwIfCancelled(options.signal);
      const object = find(key);
      const { start, end } = readSpan(key, object.length, options.range);
      for (let position = start; position < end; position += READ_CHUNK_BYTES) {
        throwIfCancelled(options.signal);
        yield Buffer.from(object.subarray(position, Math.min(end, position + READ_CHUNK_BYTES)));
      }
    },

    async head(key: string, options: { signal?: AbortSignal } = {}): Promise<ObjectInfo | undefined> {
      checkKey(key);
      throwIfCancelled(options.signal);
      const object = objects.get(key);
      return object && { key, sizeBytes: object.length };
    },

    async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<ObjectInfo> {
      checkPrefix(prefix);
      const { after = '', signal } = options;
      throwIfCancelled(signal);
      const keys = [...objects.keys()].filter((key) => key.startsWith(prefix) && key > after).sort();
      for (const key of keys) {
        throwIfCancelled(signal);
        const object = objects.get(key);
        if (object !== undefined) yield { key, sizeBytes: object.length };
      }
    },

    async delete(key: string, options: { signal?: AbortSignal } = {}): Promise<void> {
      checkKey(key);
      throwIfCancelled(options.signal);
      objects.delete(key);
    },

    async confirm(key: string): Promise<void> {
      checkKey(key);
      find(key);
    },
  };
}
