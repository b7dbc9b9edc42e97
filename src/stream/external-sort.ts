import { mkdtemp, open, rm, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

import { assert } from '../errors.ts';

export interface SortRecord {
  /** Compared by UTF-16 code unit; callers keep to latin1 ("binary") strings, so that this is byte order. */
  key: string;
  value: Buffer;
}

const RUN_BYTES = 8 * 1024 * 1024;
const WRITE_BYTES = 256 * 1024;
/** For all runs together: each gets its share, within sensible bounds. */
const READ_BYTES = 16 * 1024 * 1024;
const MIN_READ_BYTES = 16 * 1024;
const MAX_READ_BYTES = 256 * 1024;
/** What a record costs in memory beside its bytes: an object, a string and a buffer's view. */
const RECORD_OVERHEAD_BYTES = 320;

/**
 * Sorts any number of records in bounded memory: sorted runs of some MiB in a scratch directory, merged on reading.
 * Records of one key keep the order they were added in. Use: `add` …, then iterate `sorted()` once, then dispose.
 * The scratch files are no data anyone keeps: not fsynced, removed on dispose.
 */
export class ExternalSort implements AsyncDisposable {
  readonly #parentDirectory: string;
  readonly #runBytes: number;
  #directory: string | undefined;
  #runs: string[] = [];
  #records: SortRecord[] = [];
  #bytes = 0;
  count = 0;

  constructor(parentDirectory: string, runBytes = RUN_BYTES) {
    this.#parentDirectory = parentDirectory;
    this.#runBytes = runBytes;
  }

  /** Takes a record; resolves at once unless a run has to be written. The value is kept, not copied. */
  add(key: string, value: Buffer): Promise<void> | undefined {
    this.#records.push({ key, value });
    this.#bytes += key.length + value.length + RECORD_OVERHEAD_BYTES;
    this.count += 1;
    return this.#bytes >= this.#runBytes ? this.#spill() : undefined;
  }

  async *sorted(): AsyncGenerator<SortRecord> {
    const last = sortRecords(this.#records);
    this.#records = [];
    const share = Math.floor(READ_BYTES / Math.max(1, this.#runs.length));
    const readBytes = Math.min(MAX_READ_BYTES, Math.max(MIN_READ_BYTES, share));
    const sources = [...this.#runs.map((run) => readRun(run, readBytes)), asIterator(last)];
    try {
      yield* merge(sources);
    } finally {
      for (const source of sources) await source.return(undefined);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#records = [];
    if (this.#directory !== undefined) await rm(this.#directory, { recursive: true, force: true });
  }

  async #spill(): Promise<void> {
    const records = sortRecords(this.#records);
    this.#records = [];
    this.#bytes = 0;
    this.#directory ??= await mkdtemp(join(this.#parentDirectory, 'sort-'));
    const path = join(this.#directory, `run-${this.#runs.length}`);
    this.#runs.push(path);
    await using file = await open(path, 'wx', 0o600);
    let parts: Buffer[] = [];
    let size = 0;
    for (const record of records) {
      const key = Buffer.from(record.key, 'latin1');
      const head = Buffer.allocUnsafe(8);
      head.writeUInt32LE(key.length, 0);
      head.writeUInt32LE(record.value.length, 4);
      parts.push(head, key, record.value);
      size += 8 + key.length + record.value.length;
      if (size >= WRITE_BYTES) {
        await writeAll(file, Buffer.concat(parts, size));
        parts = [];
        size = 0;
      }
    }
    await writeAll(file, Buffer.concat(parts, size));
  }
}

function sortRecords(records: SortRecord[]): SortRecord[] {
  return records.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
}

async function writeAll(file: FileHandle, bytes: Buffer): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += (await file.write(bytes, done, bytes.length - done)).bytesWritten;
  }
}

async function* asIterator(records: SortRecord[]): AsyncGenerator<SortRecord> {
  yield* records;
}

async function* readRun(path: string, readBytes: number): AsyncGenerator<SortRecord> {
  await using file = await open(path, 'r');
  let buffered: Buffer = Buffer.alloc(0);
  const need = async (bytes: number): Promise<boolean> => {
    while (buffered.length < bytes) {
      const chunk = Buffer.allocUnsafe(Math.max(readBytes, bytes - buffered.length));
      const { bytesRead } = await file.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) return false;
      buffered = Buffer.concat([buffered, chunk.subarray(0, bytesRead)]);
    }
    return true;
  };
  while (await need(8)) {
    const keyBytes = buffered.readUInt32LE(0);
    const valueBytes = buffered.readUInt32LE(4);
    assert(await need(8 + keyBytes + valueBytes), 'a sort run ends within a record');
    const key = buffered.toString('latin1', 8, 8 + keyBytes);
    const value = Buffer.from(buffered.subarray(8 + keyBytes, 8 + keyBytes + valueBytes));
    buffered = buffered.subarray(8 + keyBytes + valueBytes);
    yield { key, value };
  }
  assert(buffered.length === 0, 'a sort run ends within a record');
}

/** A merge over few sources by a binary heap; ties go to the earlier source, which keeps the sort stable. */
async function* merge(sources: AsyncIterator<SortRecord>[]): AsyncGenerator<SortRecord> {
  interface Head {
    record: SortRecord;
    source: AsyncIterator<SortRecord>;
    order: number;
  }
  const heap: Head[] = [];
  const before = (a: Head, b: Head): boolean =>
    a.record.key < b.record.key || (a.record.key === b.record.key && a.order < b.order);
  const siftDown = (from: number): void => {
    for (let at = from; ;) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        const candidate = heap[child];
        const current = heap[least];
        if (candidate !== undefined && current !== undefined && before(candidate, current)) least = child;
      }
      if (least === at) return;
      const [a, b] = [heap[at], heap[least]];
      if (a === undefined || b === undefined) return;
      heap[at] = b;
      heap[least] = a;
      at = least;
    }
  };
  for (const [order, source] of sources.entries()) {
    const first = await source.next();
    if (first.done !== true) heap.push({ record: first.value, source, order });
  }
  for (let at = heap.length >> 1; at >= 0; at -= 1) siftDown(at);
  for (let top = heap[0]; top !== undefined; top = heap[0]) {
    yield top.record;
    const next = await top.source.next();
    if (next.done === true) {
      const last = heap.pop();
      if (last !== undefined && last !== top) heap[0] = last;
    } else {
      top.record = next.value;
    }
    siftDown(0);
  }
}
