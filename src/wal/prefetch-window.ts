import { open, readdir, rename, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import type { TimelineId } from '../postgres/timeline.ts';
import { parseWalSegmentName, type WalSegmentName, walSegmentName } from '../postgres/wal-segment.ts';
import type { FetchResult } from './fetch.ts';
import { comingName, deliveredSegment, readyName, warningName } from './prefetch-owner.ts';
import { planWindow, windowCapacity } from './prefetch-plan.ts';

export interface WindowOptions {
  /** Where the segments lie; nobody else writes there but for notes of what was delivered another way. */
  directory: string;
  systemIdentifier: string;
  /** Recovery was just given this one. */
  after: WalSegmentName;
  segmentSize: number;
  /** The first segment recovery has no need of. */
  end?: bigint;
  fetch: (name: string, destination: string, signal: AbortSignal) => Promise<FetchResult>;
}

const PARALLEL = 3;

/** Segments ahead of recovery: those that are ready, and those on their way. */
export class PrefetchWindow {
  readonly #options: WindowOptions;
  readonly #timeline: TimelineId;
  /** The names of complete segments, by number. */
  readonly #ready = new Map<bigint, string>();
  readonly #inFlight = new Map<bigint, AbortController>();
  readonly #running = new Set<Promise<void>>();
  #position: bigint;
  #end: bigint | undefined;
  #takenAtMs = performance.now();
  #wake: () => void = () => undefined;

  constructor(options: WindowOptions) {
    const { timeline, segmentNumber } = parseWalSegmentName(options.after, options.segmentSize);
    this.#options = options;
    this.#timeline = timeline;
    this.#position = segmentNumber + 1n;
    // Recovery that is beyond what it has to reach wants all there is.
    this.#end = options.end !== undefined && options.end > this.#position ? options.end : undefined;
  }

  /** How long recovery has taken nothing. */
  get idleMs(): number {
    return performance.now() - this.#takenAtMs;
  }

  /** How many segments are on their way. */
  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** Everything there is was taken: there is nothing left to do. */
  get isOver(): boolean {
    return this.#end !== undefined && this.#position >= this.#end && this.#inFlight.size === 0;
  }

  /** Sees what was taken since, and begins, ends and removes what that asks for. Throws what the file system does. */
  async advance(): Promise<void> {
    const { directory, segmentSize } = this.#options;
    // In this order: what became ready while the directory was read must not pass for taken.
    const offered = [...this.#ready];
    await this.#seeTaken(offered, await readdir(directory));
    const { bavail, bsize } = await statfs(directory);
    const plan = planWindow({
      position: this.#position,
      ready: new Set(this.#ready.keys()),
      inFlight: new Set(this.#inFlight.keys()),
      end: this.#end,
      capacity: windowCapacity(segmentSize, bavail * bsize),
      parallel: PARALLEL,
    });
    for (const number of plan.cancel) this.#inFlight.get(number)?.abort();
    for (const number of plan.drop) await this.#drop(number);
    for (const number of plan.fetch) {
      const running = this.#fetch(number).finally(() => {
        this.#running.delete(running);
        this.#wake();
      });
      this.#running.add(running);
    }
  }

  /** Resolves after so many milliseconds, or when a fetch has ended. */
  async pause(ms: number, signal: AbortSignal): Promise<void> {
    const woken = new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    await Promise.race([woken, sleep(ms, undefined, { signal }).catch(() => undefined)]);
  }

  /** Ends what is on its way. */
  async stop(): Promise<void> {
    for (const controller of this.#inFlight.values()) controller.abort();
    await Promise.all(this.#running);
  }

  async #seeTaken(offered: readonly (readonly [bigint, string])[], names: readonly string[]): Promise<void> {
    const { directory, segmentSize } = this.#options;
    const there = new Set(names);
    const taken = offered.flatMap(([number, name]) => (there.has(name) ? [] : [number]));
    for (const number of taken) {
      await this.#drop(number);
      this.#moveTo(number < this.#position ? this.#position : number + 1n);
    }
    for (const name of names.toSorted()) {
      const segment = deliveredSegment(name);
      if (segment === undefined) continue;
      await rm(join(directory, name), { force: true });
      // This may lead back: recovery reads the checkpoint's segment before the one where redo starts.
      this.#moveTo(parseWalSegmentName(segment, segmentSize).segmentNumber + 1n);
    }
  }

  #moveTo(position: bigint): void {
    this.#position = position;
    // What could not be had was handed over all the same: it may go on there.
    if (this.#end !== undefined && this.#position > this.#end) this.#end = undefined;
    this.#takenAtMs = performance.now();
  }

  async #drop(number: bigint): Promise<void> {
    const { directory } = this.#options;
    const name = this.#ready.get(number);
    this.#ready.delete(number);
    if (name === undefined) return;
    await rm(join(directory, name), { force: true });
    await rm(join(directory, warningName(this.#nameOf(number))), { force: true });
  }

  async #fetch(number: bigint): Promise<void> {
    const { directory, systemIdentifier, segmentSize } = this.#options;
    const segment = this.#nameOf(number);
    const controller = new AbortController();
    this.#inFlight.set(number, controller);
    const coming = join(directory, comingName(segment));
    const partial = join(directory, `${segment}.partial`);
    try {
      await writeFile(coming, '', { mode: 0o600 });
      const result = await this.#options.fetch(segment, partial, controller.signal);
      controller.signal.throwIfAborted();
      if (result.kind !== 'delivered' || result.hash === undefined || result.sizeBytes !== segmentSize) {
        this.#endAt(number);
        return;
      }
      if (result.warnings.length > 0) {
        const lines = result.warnings.map(({ message }) => `${message.replaceAll('\n', ' ')}\n`);
        await writeFile(join(directory, warningName(segment)), lines.join(''), { mode: 0o600 });
      }
      await flush(partial);
      const name = readyName(systemIdentifier, segment, result.hash);
      await rename(partial, join(directory, name));
      this.#ready.set(number, name);
    } catch {
      if (!controller.signal.aborted) this.#endAt(number);
    } finally {
      // In this order: whoever finds neither the segment nor this looks for the segment once more.
      await rm(coming, { force: true }).catch(() => undefined);
      await rm(partial, { force: true }).catch(() => undefined);
      this.#inFlight.delete(number);
    }
  }

  #endAt(number: bigint): void {
    if (this.#end === undefined || number < this.#end) this.#end = number;
  }

  #nameOf(number: bigint): WalSegmentName {
    return walSegmentName(this.#timeline, number, this.#options.segmentSize);
  }
}

/** Not for safety: PostgreSQL syncs what it restored before it goes on, and would have to wait for all of it then. */
async function flush(path: string): Promise<void> {
  await using file = await open(path, 'r+');
  await file.datasync();
}
