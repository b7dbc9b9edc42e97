import { HoldfastError } from '../src/errors.ts';
import type {
  GetOptions,
  ListOptions,
  ObjectInfo,
  PutOptions,
  PutResult,
  Storage,
  StorageFeatures,
} from '../src/storage/storage.ts';
import { seededRandom } from './seeded-random.ts';

/** A put is two operations: before its source is read, and when its object becomes visible. */
export type StorageOperation = 'put-start' | 'put-publish' | 'get' | 'head' | 'list' | 'delete' | 'confirm';

/**
 * - `crash-before`, `crash-after`: the process dies before or after the operation was applied (a read: somewhere
 *   midway); it and every later operation throw `CrashError`.
 * - `crash-unsynced`: like `crash-after`, of a put or delete that is visible and would not survive a power cut; the
 *   inner store must have `unsync` (`VolatileStorage`).
 * - `error-before`, `error-after`: `storage-unavailable` once, before or after the operation was applied.
 * - `truncated-read`, `flipped-read`: a get ends early as if complete, or has one bit wrong.
 * - `short-list`: a list ends early as if complete.
 */
export type FaultKind =
  | 'crash-before'
  | 'crash-after'
  | 'crash-unsynced'
  | 'error-before'
  | 'error-after'
  | 'truncated-read'
  | 'flipped-read'
  | 'short-list';

export interface FaultPlan {
  kind: FaultKind;
  /** Which operation is hit, from 1, counting only those the kind can hit and `only` and `keys` let through. */
  at: number;
  only?: readonly StorageOperation[];
  /** Matched against the key, or the prefix of a list. */
  keys?: RegExp;
  /** Decides where reads and lists are cut or damaged. */
  seed?: number;
}

export interface OperationRecord {
  operation: StorageOperation;
  /** The prefix, of a list. */
  key: string;
}

/** The process is gone. Not a `HoldfastError`, so that nothing mistakes it for a failure to handle or retry. */
export class CrashError extends Error {
  override readonly name = 'CrashError';
}

const ALL: readonly StorageOperation[] = [
  'put-start',
  'put-publish',
  'get',
  'head',
  'list',
  'delete',
  'confirm',
];

const HITS: Readonly<Record<FaultKind, readonly StorageOperation[]>> = {
  'crash-before': ALL,
  'crash-after': ALL,
  'crash-unsynced': ['put-publish', 'delete'],
  'error-before': ALL,
  'error-after': ALL,
  'truncated-read': ['get'],
  'flipped-read': ['get'],
  'short-list': ['list'],
};

/** A store that fails once, at a chosen operation, in a chosen way. Without a plan it only keeps the record. */
export class FaultyStorage implements Storage {
  readonly description: string;
  readonly features: StorageFeatures;
  /** Every operation so far, in order. */
  readonly operations: OperationRecord[] = [];
  /** What the fault hit; undefined while it has not. */
  fired: OperationRecord | undefined;
  crashed = false;

  readonly #inner: Storage;
  readonly #plan: FaultPlan | undefined;
  readonly #random: () => number;
  #counted = 0;

  constructor(inner: Storage, plan?: FaultPlan) {
    this.#inner = inner;
    this.#plan = plan;
    this.#random = seededRandom(plan?.seed ?? 1);
    this.description = inner.description;
    this.features = inner.features;
  }

  async put(
    key: string,
    source: Buffer | AsyncIterable<Buffer>,
    options: PutOptions = {},
  ): Promise<PutResult> {
    const start = this.#next('put-start', key);
    this.#failBefore(start);
    this.#failAfter(start);

    let publish: FaultKind | undefined;
    const reachPublication = (): void => {
      publish = this.#next('put-publish', key);
      this.#failBefore(publish);
    };
    const result = await this.#inner.put(key, this.#watch(source, reachPublication), options);
    this.#failIfDead();
    if (publish === 'crash-unsynced') this.#unsync(key);
    this.#failAfter(publish);
    return result;
  }

  async *get(key: string, options: GetOptions = {}): AsyncGenerator<Buffer> {
    const damage = this.#plan?.kind === 'truncated-read' || this.#plan?.kind === 'flipped-read';
    const sizeBytes = damage ? await this.#readableBytes(key, options) : 0;
    const fault = this.#next('get', key, !damage || sizeBytes > 0);
    this.#failBefore(fault);
    const at = Math.floor(this.#random() * sizeBytes);
    const bit = 1 << Math.floor(this.#random() * 8);
    let position = 0;
    for await (const chunk of this.#inner.get(key, options)) {
      this.#failIfDead();
      if (breaksOff(fault) && this.#random() < 0.5) break;
      if (fault === 'truncated-read' && position + chunk.length >= at) {
        if (at > position) yield chunk.subarray(0, at - position);
        return;
      }
      if (fault === 'flipped-read' && position <= at && at < position + chunk.length) {
        chunk.writeUInt8(chunk.readUInt8(at - position) ^ bit, at - position);
      }
      position += chunk.length;
      yield chunk;
    }
    this.#failIfDead();
    this.#failAfter(fault);
  }

  async head(key: string, options: { signal?: AbortSignal } = {}): Promise<ObjectInfo | undefined> {
    return await this.#simple('head', key, () => this.#inner.head(key, options));
  }

  async *list(prefix: string, options: ListOptions = {}): AsyncGenerator<ObjectInfo> {
    const short = this.#plan?.kind === 'short-list';
    const entries = short ? await countEntries(this.#inner.list(prefix, options)) : 0;
    const fault = this.#next('list', prefix, !short || entries > 0);
    this.#failBefore(fault);
    let left = fault === 'short-list' ? Math.floor(this.#random() * entries) : Infinity;
    for await (const entry of this.#inner.list(prefix, options)) {
      this.#failIfDead();
      if (breaksOff(fault) && this.#random() < 0.5) break;
      if (left <= 0) return;
      left -= 1;
      yield entry;
    }
    this.#failIfDead();
    this.#failAfter(fault);
  }

  async delete(key: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#simple('delete', key, () => this.#inner.delete(key, options));
  }

  async confirm(key: string): Promise<void> {
    await this.#simple('confirm', key, () => this.#inner.confirm(key));
  }

  async #simple<T>(operation: StorageOperation, key: string, apply: () => Promise<T>): Promise<T> {
    const fault = this.#next(operation, key);
    this.#failBefore(fault);
    const result = await apply();
    this.#failIfDead();
    if (fault === 'crash-unsynced') this.#unsync(key);
    this.#failAfter(fault);
    return result;
  }

  /** Records an operation and says which fault hits it. */
  #next(operation: StorageOperation, key: string, canBeHit = true): FaultKind | undefined {
    this.#failIfDead();
    this.operations.push({ operation, key });
    const plan = this.#plan;
    if (plan === undefined || !canBeHit) return undefined;
    if (!HITS[plan.kind].includes(operation) || !(plan.only ?? ALL).includes(operation)) return undefined;
    if (plan.keys !== undefined && !plan.keys.test(key)) return undefined;
    this.#counted += 1;
    if (this.#counted !== plan.at) return undefined;
    this.fired = { operation, key };
    return plan.kind;
  }

  #failBefore(fault: FaultKind | undefined): void {
    if (fault === 'crash-before') this.#crash();
    if (fault === 'error-before') throw this.#failure('before');
  }

  #failAfter(fault: FaultKind | undefined): void {
    if (fault === 'crash-after' || fault === 'crash-unsynced') this.#crash();
    if (fault === 'error-after') throw this.#failure('after');
  }

  #failIfDead(): void {
    if (this.crashed) throw new CrashError('the process has crashed');
  }

  #crash(): never {
    this.crashed = true;
    throw new CrashError(`crash at ${this.#where()}`);
  }

  #failure(when: string): HoldfastError {
    return new HoldfastError('storage-unavailable', `injected error ${when} ${this.#where()}`);
  }

  #where(): string {
    return `operation ${this.#plan?.at} (${this.fired?.operation} ${this.fired?.key})`;
  }

  #unsync(key: string): void {
    const inner: Storage & { unsync?: (key: string) => void } = this.#inner;
    if (inner.unsync === undefined) throw new Error('crash-unsynced needs a store that can forget a write');
    inner.unsync(key);
  }

  async #readableBytes(key: string, options: GetOptions): Promise<number> {
    return options.range?.length ?? (await this.#inner.head(key))?.sizeBytes ?? 0;
  }

  #watch(source: Buffer | AsyncIterable<Buffer>, atEnd: () => void): Buffer | AsyncIterable<Buffer> {
    if (Buffer.isBuffer(source)) {
      atEnd();
      return source;
    }
    const failIfDead = (): void => this.#failIfDead();
    return (async function* () {
      for await (const chunk of source) {
        failIfDead();
        yield chunk;
      }
      atEnd();
    })();
  }
}

function breaksOff(fault: FaultKind | undefined): boolean {
  return fault === 'crash-after' || fault === 'error-after';
}

async function countEntries(entries: AsyncIterable<ObjectInfo>): Promise<number> {
  let count = 0;
  for await (const _ of entries) count += 1;
  return count;
}
