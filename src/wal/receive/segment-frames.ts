import { HoldfastError } from '../../errors.ts';
import { compressProven, type WalFrame } from '../../repository/wal-frames.ts';
import { createBlake3 } from '../../stream/hash.ts';
import { releaseBuffer } from '../../stream/release.ts';

/** Plain bytes of one frame. */
const PIECE_BYTES = 1024 * 1024;

/** Pieces that are filled or compressed at once, over all segments: what the receiver holds of plain WAL. */
const PIECES_AT_ONCE = 6;

/** Buffers for pieces, used again and again. */
export class PiecePool {
  readonly #free: Buffer[] = [];
  #inUse = 0;
  #waiting: (() => void)[] = [];

  take(): Buffer {
    this.#inUse += 1;
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(PIECE_BYTES);
  }

  give(piece: Buffer): void {
    this.#inUse -= 1;
    if (this.#free.length < PIECES_AT_ONCE) this.#free.push(piece);
    if (this.#inUse >= PIECES_AT_ONCE) return;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  /** Resolves when no more than a few are in use; undefined where that is so now. */
  room(): Promise<void> | undefined {
    if (this.#inUse < PIECES_AT_ONCE) return undefined;
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}

/**
 * Compresses a segment while it comes in, so that when its last byte is there most of it is done. Holds the compressed
 * frames, and plain bytes only of pieces that are not compressed yet.
 */
export class SegmentFrames {
  readonly #pool: PiecePool;
  readonly #hash = createBlake3();
  readonly #frames: Promise<WalFrame>[] = [];
  #piece: Buffer | undefined;
  #filled = 0;
  #digest: string | undefined;

  constructor(pool: PiecePool) {
    this.#pool = pool;
  }

  append(bytes: Buffer): void {
    for (let at = 0; at < bytes.length;) {
      this.#piece ??= this.#pool.take();
      const copied = bytes.copy(this.#piece, this.#filled, at);
      this.#filled += copied;
      at += copied;
      if (this.#filled === PIECE_BYTES) this.#dispatch(this.#piece);
    }
  }

  /** Nothing more will come. BLAKE3-256 of everything, hexadecimal; may be called again. */
  finish(): string {
    if (this.#piece !== undefined && this.#filled > 0) this.#dispatch(this.#piece);
    return (this.#digest ??= this.#hash.hex());
  }

  /** How many frames are complete or under way. */
  get count(): number {
    return this.#frames.length;
  }

  async frame(index: number): Promise<WalFrame> {
    const frame = this.#frames[index];
    if (frame === undefined) throw new HoldfastError('assertion', `there is no frame ${index}`);
    return frame;
  }

  /** The bytes behind the last frame, in memory that changes with the next call of anything. */
  rest(): Buffer {
    return this.#piece?.subarray(0, this.#filled) ?? Buffer.alloc(0);
  }

  /** The frames in order; may be gone through several times. */
  async *frames(): AsyncGenerator<WalFrame> {
    for (const frame of this.#frames) yield await frame;
  }

  /** Gives back what is held: nothing is asked for any more. */
  async release(): Promise<void> {
    if (this.#piece !== undefined) this.#pool.give(this.#piece);
    this.#piece = undefined;
    this.#filled = 0;
    for (const result of await Promise.allSettled(this.#frames)) {
      if (result.status === 'fulfilled') releaseBuffer(result.value.bytes);
    }
  }

  #dispatch(piece: Buffer): void {
    const plain = piece.subarray(0, this.#filled);
    this.#piece = undefined;
    this.#filled = 0;
    this.#hash.update(plain);
    const frame = compressProven(plain).finally(() => this.#pool.give(piece));
    // Whoever goes through the frames gets the error.
    frame.catch(() => undefined);
    this.#frames.push(frame);
  }
}
