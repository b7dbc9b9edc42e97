import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsync,
  ftruncateSync,
  openSync,
  readSync,
  write,
  writeSync,
} from 'node:fs';
import { promisify } from 'node:util';

import { HoldfastError } from '../errors.ts';

const fsyncAsync = promisify(fsync);
const writeAsync = promisify(write);

/** Larger writes go through libuv's pool, beside decompression; for smaller ones the way there costs more than they do. */
const POOL_WRITE_BYTES = 256 * 1024;

/**
 * A file of a restored data directory. Its small operations are synchronous: a cluster has hundreds of thousands of files,
 * and each takes several calls of some microseconds. What may wait for the disk (`sync`, large writes) is not.
 */
export class DataFile {
  readonly #descriptor: number;
  readonly #place: Buffer;

  private constructor(descriptor: number, place: Buffer) {
    this.#descriptor = descriptor;
    this.#place = place;
  }

  /** Never follows a symbolic link; without `orExisting` the file must not be there. */
  static create(place: Buffer, mode: number, orExisting: boolean): DataFile {
    const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
    const flags = O_RDWR | O_CREAT | O_NOFOLLOW | (orExisting ? 0 : O_EXCL);
    return new DataFile(openSync(place, flags, mode), place);
  }

  static open(place: Buffer): DataFile {
    return new DataFile(openSync(place, constants.O_RDWR | constants.O_NOFOLLOW), place);
  }

  get sizeBytes(): number {
    return fstatSync(this.#descriptor).size;
  }

  /** Gives it its mode, whatever the umask took, and its owner. Throws where it is no file. */
  own(mode: number, owner: { uid: number; gid: number } | undefined): void {
    if (!fstatSync(this.#descriptor).isFile()) {
      throw new HoldfastError(
        'data-directory-not-empty',
        `${this.#place.toString()} is in the way: it is no file`,
      );
    }
    fchmodSync(this.#descriptor, mode);
    if (owner !== undefined) fchownSync(this.#descriptor, owner.uid, owner.gid);
  }

  truncate(sizeBytes: number): void {
    ftruncateSync(this.#descriptor, sizeBytes);
  }

  /** Fewer bytes only at the end of the file. */
  read(offset: number, length: number): Buffer {
    const buffer = Buffer.allocUnsafe(length);
    let done = 0;
    while (done < length) {
      const bytesRead = readSync(this.#descriptor, buffer, done, length - done, offset + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return buffer.subarray(0, done);
  }

  async write(content: Buffer, offset: number): Promise<void> {
    for (let done = 0; done < content.length;) {
      const left = content.length - done;
      done +=
        left < POOL_WRITE_BYTES
          ? writeSync(this.#descriptor, content, done, left, offset + done)
          : (await writeAsync(this.#descriptor, content, done, left, offset + done)).bytesWritten;
    }
  }

  async sync(): Promise<void> {
    await fsyncAsync(this.#descriptor);
  }

  close(): void {
    closeSync(this.#descriptor);
  }
}
