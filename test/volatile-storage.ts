import { createMemoryStorage } from '../src/storage/memory.ts';
import type {
  GetOptions,
  ListOptions,
  ObjectInfo,
  PutOptions,
  PutResult,
  Storage,
} from '../src/storage/storage.ts';
import { CrashError } from './faulty-storage.ts';

/**
 * A memory store with a power switch. `put` and `delete` are durable when they return, as `Storage` promises. `unsync`
 * takes that back for the last change of a key, as if its writer had died between making it visible and syncing it:
 * other processes see the change, `confirm` makes it durable, `crash` loses it. So a caller that acknowledges what it
 * merely saw, without `confirm`, is found out.
 */
export class VolatileStorage implements Storage {
  readonly description = 'volatile:';
  readonly features = { conditionalPut: true, rangedGet: true };

  readonly #visible = new Map<string, Buffer>();
  readonly #durable = new Map<string, Buffer>();
  /** What was durable under a key before its last change. */
  readonly #before = new Map<string, Buffer | undefined>();
  readonly #memory = createMemoryStorage(this.#visible);
  #crashes = 0;

  /** The keys whose visible state a power cut would lose. */
  get volatileKeys(): string[] {
    const keys = new Set([...this.#visible.keys(), ...this.#durable.keys()]);
    return [...keys].filter((key) => this.#visible.get(key) !== this.#durable.get(key)).sort();
  }

  /** Makes the last put or delete of `key` visible only, not durable. */
  unsync(key: string): void {
    if (!this.#before.has(key)) throw new Error(`nothing was written under ${key} yet`);
    assign(this.#durable, key, this.#before.get(key));
  }

  /**
   * Cuts the power: what is not durable is gone, unless `survives` says that the kernel happened to have written it.
   * Puts under way fail with `CrashError`. The store can be used again at once.
   */
  crash(survives: (key: string) => boolean = () => false): void {
    this.#crashes += 1;
    for (const key of this.volatileKeys) {
      if (survives(key)) assign(this.#durable, key, this.#visible.get(key));
      else assign(this.#visible, key, this.#durable.get(key));
    }
    this.#before.clear();
  }

  async put(
    key: string,
    source: Buffer | AsyncIterable<Buffer>,
    options: PutOptions = {},
  ): Promise<PutResult> {
    const result = await this.#memory.put(key, this.#whilePowered(source), options);
    if (result.created) this.#settle(key);
    return result;
  }

  get(key: string, options: GetOptions = {}): AsyncIterable<Buffer> {
    return this.#memory.get(key, options);
  }

  async head(key: string, options: { signal?: AbortSignal } = {}): Promise<ObjectInfo | undefined> {
    return await this.#memory.head(key, options);
  }

  list(prefix: string, options: ListOptions = {}): AsyncIterable<ObjectInfo> {
    return this.#memory.list(prefix, options);
  }

  async delete(key: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#memory.delete(key, options);
    this.#settle(key);
  }

  async confirm(key: string): Promise<void> {
    await this.#memory.confirm(key);
    this.#settle(key);
  }

  #settle(key: string): void {
    this.#before.set(key, this.#durable.get(key));
    assign(this.#durable, key, this.#visible.get(key));
  }

  #whilePowered(source: Buffer | AsyncIterable<Buffer>): Buffer | AsyncIterable<Buffer> {
    if (Buffer.isBuffer(source)) return source;
    const crashes = this.#crashes;
    const failIfCut = (): void => {
      if (this.#crashes !== crashes) throw new CrashError('the power was cut');
    };
    return (async function* () {
      for await (const chunk of source) {
        failIfCut();
        yield chunk;
      }
      failIfCut();
    })();
  }
}

function assign(map: Map<string, Buffer>, key: string, value: Buffer | undefined): void {
  if (value === undefined) map.delete(key);
  else map.set(key, value);
}
