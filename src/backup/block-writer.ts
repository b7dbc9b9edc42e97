import { assert } from '../errors.ts';
import {
  type Extent,
  FRAME_MAX_BYTES,
  type FrameLocation,
  HASH_BYTES,
  type MapEntry,
  SPAN_BLOCKS,
} from '../repository/block-map.ts';
import { packKey } from '../repository/layout.ts';
import type { PackWriter } from '../repository/pack-writer.ts';
import { type PreviousBackup, PriorBlocks } from '../repository/previous-backup.ts';
import { crc32c } from '../stream/crc32c.ts';
import { blake3 } from '../stream/hash.ts';

/** A frame being filled or compressed; `location` is set once it has its place in a pack. */
interface Frame {
  buffer: Buffer;
  used: number;
  location?: FrameLocation;
}

interface DraftExtent {
  frame: Frame | FrameLocation | undefined;
  plainOffset: number;
  blocks: number;
  hashes: Buffer[];
}

/** An entry whose frames may not have their places yet. */
interface DraftEntry {
  make: (extents: Extent[]) => MapEntry;
  extents: DraftExtent[];
}

export interface BlockCounts {
  blocks: number;
  newBlocks: number;
  files: number;
  sizeBytes: number;
}

/**
 * Cuts the files of a backup into blocks, compares each with the block at the same place in the previous backup, and
 * gives only what differs to the pack writer. Finished map entries go to `emit` once all their frames have a place, in
 * no particular order: one changed block in a frame that fills slowly must not hold back everything behind it.
 *
 * Synchronous where it can be: `write` returns a promise only when it must wait, and the chunk it was given must stay
 * as it is until then.
 */
export class BlockWriter {
  readonly counts: BlockCounts = { blocks: 0, newBlocks: 0, files: 0, sizeBytes: 0 };
  /** Keys (without the sealer's suffix) of older packs that the new map refers to. */
  readonly reusedPacks = new Set<string>();
  readonly #blockSize: number;
  readonly #packs: PackWriter;
  readonly #previous: PreviousBackup | undefined;
  readonly #emit: (entry: MapEntry) => Promise<void> | undefined;
  readonly #zeroHash: Buffer;
  readonly #spareBuffers: Buffer[] = [];
  #frame: Frame;
  /** Bytes of the current, unfinished block, behind `#frame.used`. */
  #fill = 0;
  #drafts: DraftEntry[] = [];
  /** Drafts looked at before that have a block in a frame without a place: as many as a few frames have blocks. */
  #waiting: DraftEntry[] = [];
  #framePlaced = false;
  #emitting: Promise<void> = Promise.resolve();

  #file: { path: string; mode: number } | undefined;
  #fileBytes = 0;
  #fileCrc = 0;
  #span = 0;
  #spanBlocks = 0;
  #extents: DraftExtent[] = [];
  #prior: PriorBlocks | undefined;
  #priorHasSpans = false;

  constructor(
    packs: PackWriter,
    previous: PreviousBackup | undefined,
    blockSizeBytes: number,
    emit: (entry: MapEntry) => Promise<void> | undefined,
  ) {
    this.#packs = packs;
    this.#previous = previous?.record.layout.blockSizeBytes === blockSizeBytes ? previous : undefined;
    this.#blockSize = blockSizeBytes;
    this.#emit = emit;
    this.#zeroHash = blockHash(Buffer.alloc(blockSizeBytes));
    this.#frame = this.#newFrame();
  }

  /** An entry without content. */
  other(entry: MapEntry): void {
    this.#drafts.push({ make: () => entry, extents: [] });
  }

  async beginFile(path: string, mode: number): Promise<void> {
    assert(this.#file === undefined, 'a file began within another');
    await this.#flush();
    this.#file = { path, mode };
    this.#fileBytes = 0;
    this.#fileCrc = 0;
    this.#span = 0;
    this.#spanBlocks = 0;
    this.#extents = [];
    const prior = await this.#previous?.file(path);
    this.#priorHasSpans = prior !== undefined && prior.sizeBytes > SPAN_BLOCKS * this.#blockSize;
    this.#prior = undefined;
    if (prior === undefined) return;
    const extents = this.#priorHasSpans ? await this.#previous?.span(path, 0) : prior.extents;
    this.#prior = new PriorBlocks(extents ?? [], this.#blockSize);
  }

  write(chunk: Buffer): Promise<void> | undefined {
    this.#fileCrc = crc32c(chunk, this.#fileCrc);
    this.#fileBytes += chunk.length;
    return this.#take(chunk, 0);
  }

  endFile(): Promise<void> | undefined {
    const file = this.#file;
    assert(file !== undefined, 'a file ended that had not begun');
    if (this.#fill > 0) this.#closeBlock();
    const [sizeBytes, crc] = [this.#fileBytes, this.#fileCrc];
    this.#file = undefined;
    this.counts.files += 1;
    this.counts.sizeBytes += sizeBytes;
    const make = (extents: Extent[]): MapEntry => {
      return { kind: 'file', path: file.path, mode: file.mode, sizeBytes, crc32c: crc, extents };
    };
    if (this.#span === 0) {
      this.#drafts.push({ make, extents: this.#extents });
    } else {
      if (this.#spanBlocks > 0) this.#closeSpan(file.path);
      this.#drafts.push({ make, extents: [] });
    }
    return this.#settle();
  }

  /** Ends the last frame and waits until everything is placed, emitted and durable. */
  async finish(): Promise<void> {
    assert(this.#file === undefined, 'the backup ended within a file');
    this.#submitFrame();
    await this.#packs.finish();
    await this.#flush();
    assert(this.#waiting.length === 0, 'a map entry is left whose frame has no place');
  }

  #take(chunk: Buffer, from: number): Promise<void> | undefined {
    for (let at = from; at < chunk.length;) {
      if (this.#spanBlocks === SPAN_BLOCKS) {
        const rest = at;
        return this.#nextSpan().then(() => this.#take(chunk, rest));
      }
      const bytes = Math.min(chunk.length - at, this.#blockSize - this.#fill);
      chunk.copy(this.#frame.buffer, this.#frame.used + this.#fill, at, at + bytes);
      this.#fill += bytes;
      at += bytes;
      if (this.#fill < this.#blockSize) continue;
      this.#closeBlock();
      const wait = this.#settle();
      if (wait === undefined) continue;
      const rest = at;
      return wait.then(() => this.#take(chunk, rest));
    }
    return undefined;
  }

  /** After each block: the frame may be full, and then there may be no room for it yet. */
  #settle(): Promise<void> | undefined {
    if (this.#frame.used + this.#blockSize > FRAME_MAX_BYTES) this.#submitFrame();
    return this.#packs.hasRoom ? undefined : this.#packs.room();
  }

  #closeBlock(): void {
    const { used, buffer } = this.#frame;
    const block = buffer.subarray(used, used + this.#fill);
    const hash = blockHash(block);
    const index = this.#spanBlocks;
    this.#spanBlocks += 1;
    this.counts.blocks += 1;
    if (this.#fill === this.#blockSize && hash.equals(this.#zeroHash)) {
      this.#addZero();
    } else {
      const prior = this.#prior?.find(index, hash);
      if (prior !== undefined && this.#previous?.holdsBlocksOf(prior.frame.run, prior.frame.pack) === true) {
        if (this.#addBlock(prior.frame, prior.plainOffset, hash)) {
          this.reusedPacks.add(packKey(this.#previous.record, prior.frame.run, 'b', prior.frame.pack));
        }
      } else {
        this.#addBlock(this.#frame, used, hash);
        this.#frame.used += this.#fill;
        this.counts.newBlocks += 1;
      }
    }
    this.#fill = 0;
  }

  #addZero(): void {
    const last = this.#extents.at(-1);
    if (last !== undefined && last.frame === undefined) last.blocks += 1;
    else this.#extents.push({ frame: undefined, plainOffset: 0, blocks: 1, hashes: [] });
  }

  /** True where it began a new extent. */
  #addBlock(frame: Frame | FrameLocation, plainOffset: number, hash: Buffer): boolean {
    const last = this.#extents.at(-1);
    const follows =
      last?.frame !== undefined &&
      sameFrame(last.frame, frame) &&
      last.plainOffset + last.blocks * this.#blockSize === plainOffset;
    if (follows) {
      last.blocks += 1;
      last.hashes.push(hash);
      return false;
    }
    this.#extents.push({ frame, plainOffset, blocks: 1, hashes: [hash] });
    return true;
  }

  async #nextSpan(): Promise<void> {
    const path = this.#file?.path ?? '';
    this.#closeSpan(path);
    await this.#flush();
    if (this.#prior !== undefined) {
      const extents = this.#priorHasSpans ? await this.#previous?.span(path, this.#span) : [];
      this.#prior = new PriorBlocks(extents ?? [], this.#blockSize);
    }
  }

  #closeSpan(path: string): void {
    const span = this.#span;
    this.#drafts.push({ make: (extents) => ({ kind: 'span', path, span, extents }), extents: this.#extents });
    this.#span += 1;
    this.#spanBlocks = 0;
    this.#extents = [];
  }

  #submitFrame(): void {
    const frame = this.#frame;
    if (frame.used === 0) return;
    const { placed } = this.#packs.add(frame.buffer.subarray(0, frame.used));
    // A failure reaches the caller through room() and finish(); here it only must not go unhandled.
    placed.then(
      (location) => {
        frame.location = location;
        this.#framePlaced = true;
        this.#spareBuffers.push(frame.buffer);
      },
      () => undefined,
    );
    this.#frame = this.#newFrame();
  }

  #newFrame(): Frame {
    return { buffer: this.#spareBuffers.pop() ?? Buffer.allocUnsafeSlow(FRAME_MAX_BYTES), used: 0 };
  }

  /** Emits what has all its places; a second call waits for the first. */
  #flush(): Promise<void> {
    this.#emitting = this.#emitting.then(() => this.#emitReady());
    return this.#emitting;
  }

  async #emitReady(): Promise<void> {
    const candidates = this.#framePlaced ? this.#waiting.concat(this.#drafts) : this.#drafts;
    if (this.#framePlaced) this.#waiting = [];
    this.#framePlaced = false;
    this.#drafts = [];
    for (const draft of candidates) {
      const extents = placedExtents(draft.extents);
      if (extents === undefined) this.#waiting.push(draft);
      else await this.#emit(draft.make(extents));
    }
  }
}

function sameFrame(a: Frame | FrameLocation, b: Frame | FrameLocation): boolean {
  if (a === b) return true;
  if ('buffer' in a || 'buffer' in b) return false;
  return a.run === b.run && a.pack === b.pack && a.offset === b.offset;
}

function placedExtents(drafts: readonly DraftExtent[]): Extent[] | undefined {
  const extents: Extent[] = [];
  for (const { frame, plainOffset, blocks, hashes } of drafts) {
    if (frame === undefined) {
      extents.push({ zeroBlocks: blocks });
      continue;
    }
    const location = 'buffer' in frame ? frame.location : frame;
    if (location === undefined) return undefined;
    extents.push({ frame: location, plainOffset, hashes: Buffer.concat(hashes, blocks * HASH_BYTES) });
  }
  return extents;
}

function blockHash(block: Buffer): Buffer {
  return blake3(block).subarray(0, HASH_BYTES);
}
