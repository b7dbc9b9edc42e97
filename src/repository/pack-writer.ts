import { HoldfastError } from '../errors.ts';
import { compressFrame, decompressFrame } from '../stream/zstd.ts';
import type { FrameLocation } from './block-map.ts';
import { type ClusterIdentity, packKey } from './layout.ts';
import type { Repository } from './repository.ts';
import { putSealed, type StoredObject } from './sealed-object.ts';

/** Plain content of a pack, after compression: large enough for object stores, small enough to read again. */
const PACK_BYTES = 32 * 1024 * 1024;
/** Frames being compressed or waiting to be written. */
const FRAMES_IN_FLIGHT = 6;

interface PendingFrame {
  compressed: Promise<Buffer>;
  place: (location: FrameLocation) => void;
  fail: (error: unknown) => void;
}

/**
 * Writes frames, in the order given, into packs of bounded size. Compression runs on several cores; each frame is
 * decompressed and compared before it is written, because a compressor bug or bad memory must not reach the repository.
 *
 * A frame's place is known before its pack is durable: nothing may be said to be stored before `finish()` resolved.
 * After a failure every further call throws it.
 */
export class PackWriter {
  readonly packs: StoredObject[] = [];
  readonly #repository: Repository;
  readonly #identity: ClusterIdentity;
  readonly #run: string;
  readonly #kind: 'b' | 'm';
  readonly #signal: AbortSignal | undefined;
  readonly #queue: PendingFrame[] = [];
  #wakeWriter: (() => void) | undefined;
  #wakeCallers: (() => void)[] = [];
  #ended = false;
  #failure: unknown;
  #writing: Promise<void> | undefined;
  #inFlight = 0;

  constructor(
    repository: Repository,
    identity: ClusterIdentity,
    run: string,
    kind: 'b' | 'm',
    signal?: AbortSignal,
  ) {
    this.#repository = repository;
    this.#identity = identity;
    this.#run = run;
    this.#kind = kind;
    this.#signal = signal;
  }

  get storedBytes(): number {
    return this.packs.reduce((sum, pack) => sum + pack.sizeBytes, 0);
  }

  /** True while another frame would be taken without waiting. */
  get hasRoom(): boolean {
    return this.#inFlight < FRAMES_IN_FLIGHT;
  }

  /** Resolves when there is room for a frame; throws what made the writer fail. */
  async room(): Promise<void> {
    while (!this.hasRoom && this.#failure === undefined) {
      await new Promise<void>((resolve) => this.#wakeCallers.push(resolve));
    }
    this.#throwFailure();
  }

  /**
   * Takes one frame of plain bytes; the buffer may be used again when `placed` has settled. Await `room()` first: more
   * frames than there is room for are taken all the same, at the cost of memory.
   */
  add(plain: Buffer): { placed: Promise<FrameLocation> } {
    this.#throwFailure();
    const { promise, resolve, reject } = Promise.withResolvers<FrameLocation>();
    promise.catch(() => undefined);
    const compressed = compressAndCompare(plain);
    compressed.catch(() => undefined);
    this.#queue.push({ compressed, place: resolve, fail: reject });
    this.#inFlight += 1;
    this.#wakeWriter?.();
    this.#writing ??= this.#write();
    return { placed: promise };
  }

  /** Ends the last pack. When it resolves, every frame is durable in the repository. */
  async finish(): Promise<void> {
    this.#ended = true;
    this.#wakeWriter?.();
    await this.#writing;
    this.#throwFailure();
  }

  /** Stops without finishing; resolves when nothing is being written any more. */
  async abort(reason: unknown): Promise<void> {
    this.#failure ??= reason;
    this.#wakeWriter?.();
    await this.#writing;
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  async #write(): Promise<void> {
    try {
      for (let number = 1; await this.#hasNext(); number += 1) {
        const key = packKey(this.#identity, this.#run, this.#kind, number);
        this.packs.push(await putSealed(this.#repository, key, this.#packBody(number), this.#signal));
      }
    } catch (error) {
      this.#failure ??= error;
      for (const frame of this.#queue.splice(0)) frame.fail(this.#failure);
      this.#inFlight = 0;
      this.#notifyCallers();
    }
  }

  async *#packBody(number: number): AsyncGenerator<Buffer> {
    let offset = 0;
    while (offset < PACK_BYTES && (await this.#hasNext())) {
      const frame = this.#queue.shift();
      if (frame === undefined) return;
      let bytes: Buffer;
      try {
        bytes = await frame.compressed;
      } catch (error) {
        frame.fail(error);
        throw error;
      }
      frame.place({ run: this.#run, pack: number, offset, bytes: bytes.length });
      offset += bytes.length;
      yield bytes;
      this.#inFlight -= 1;
      this.#notifyCallers();
    }
  }

  async #hasNext(): Promise<boolean> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#queue.length > 0) return true;
      if (this.#ended) return false;
      await new Promise<void>((resolve) => {
        this.#wakeWriter = resolve;
      });
      this.#wakeWriter = undefined;
    }
  }

  #notifyCallers(): void {
    for (const wake of this.#wakeCallers.splice(0)) wake();
  }
}

async function compressAndCompare(plain: Buffer): Promise<Buffer> {
  const compressed = await compressFrame(plain, { pages: true });
  const back = await decompressFrame(compressed, plain.length);
  if (!back.equals(plain)) {
    throw new HoldfastError('checksum-mismatch', 'a compressed frame did not decompress to what went in', {
      hint: "nothing wrong was stored, but this machine's memory or libraries cannot be trusted: test the memory",
    });
  }
  return compressed;
}
