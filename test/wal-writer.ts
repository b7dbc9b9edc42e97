import { type Lsn, lsnOf } from '../src/postgres/lsn.ts';
import { type MajorVersion, VERSION_FACTS } from '../src/postgres/version.ts';
import { crc32c } from '../src/stream/crc32c.ts';

export interface WalWriterOptions {
  /** The start of a segment. */
  start?: Lsn;
  segmentSize?: number;
  timeline?: number;
  systemIdentifier?: bigint;
  major?: MajorVersion;
}

export interface WrittenRecord {
  lsn: Lsn;
  endLsn: Lsn;
}

const BLOCK = 8192;
const POSTGRES_EPOCH = 946_684_800_000_000n;

/** Writes valid WAL as a server would, for tests that need none. Every method appends one record. */
export class WalWriter {
  readonly start: Lsn;
  readonly segmentSize: number;
  timeline: number;
  readonly #sysId: bigint;
  readonly #major: MajorVersion;
  #bytes: Buffer;
  #at = 0;
  #previous: bigint;
  #overwriteNextPage = false;

  constructor(options: WalWriterOptions = {}) {
    this.segmentSize = options.segmentSize ?? 2 ** 20;
    this.start = options.start ?? lsnOf(BigInt(this.segmentSize));
    this.timeline = options.timeline ?? 1;
    this.#sysId = options.systemIdentifier ?? 7_000_000_000_000_000_001n;
    this.#major = options.major ?? 15;
    this.#bytes = Buffer.alloc(this.segmentSize);
    this.#previous = this.start - 64n;
  }

  /** Where the next record would start, or the page boundary before it. */
  get end(): Lsn {
    return lsnOf(this.start + BigInt(this.#at));
  }

  /** Everything written, as whole segments padded with zeros. */
  segments(): Buffer[] {
    const count = Math.max(1, Math.ceil(this.#at / this.segmentSize));
    this.#reserve(count * this.segmentSize);
    return Array.from({ length: count }, (_, i) =>
      this.#bytes.subarray(i * this.segmentSize, (i + 1) * this.segmentSize),
    );
  }

  bytes(): Buffer {
    return Buffer.concat(this.segments());
  }

  record(rmgr: number, info: number, xid: number, mainData: Uint8Array): WrittenRecord {
    return this.#append(this.#build(rmgr, info, xid, mainData));
  }

  /** A record of no interest, of exactly this many bytes of main data. */
  filler(bytes: number): WrittenRecord {
    return this.record(10, 0x00, 9, Buffer.alloc(bytes, 0xa5));
  }

  commit(xid: number, time: bigint): WrittenRecord {
    return this.record(1, 0x00, xid, timestamp(time));
  }

  abort(xid: number, time: bigint): WrittenRecord {
    return this.record(1, 0x20, xid, timestamp(time));
  }

  /** The end of a prepared transaction, with lists of the given lengths before its xid. */
  prepared(
    kind: 'commit' | 'abort',
    xid: number,
    time: bigint,
    lists: { subxacts?: number; relations?: number; stats?: number; messages?: number } = {},
  ): WrittenRecord {
    const { subxacts = 0, relations = 0, stats = 0, messages = 0 } = lists;
    const parts = [timestamp(time)];
    let flags = 0x01 | 0x10;
    const list = (flag: number, count: number, itemBytes: number): void => {
      if (count === 0) return;
      flags |= flag;
      parts.push(u32(count), Buffer.alloc(count * itemBytes, 0xee));
    };
    parts.push(Buffer.alloc(8, 0xdb));
    list(0x02, subxacts, 4);
    list(0x04, relations, 12);
    list(0x100, stats, VERSION_FACTS[this.#major].droppedStatsItemBytes);
    if (kind === 'commit') list(0x08, messages, 16);
    parts.push(u32(xid), Buffer.from('gid\0'));
    parts.splice(1, 0, u32(flags));
    return this.record(1, (kind === 'commit' ? 0x30 : 0x40) | 0x80, 0, Buffer.concat(parts));
  }

  restorePoint(name: string, time: bigint): WrittenRecord {
    const text = Buffer.alloc(64);
    text.write(name);
    return this.record(0, 0x70, 0, Buffer.concat([timestamp(time), text]));
  }

  checkpoint(options: {
    shutdown: boolean;
    redo: Lsn;
    timeline?: number;
    previousTimeline?: number;
    seconds?: number;
  }) {
    const data = Buffer.alloc(88);
    data.writeBigUInt64LE(options.redo, 0);
    data.writeUInt32LE(options.timeline ?? this.timeline, 8);
    data.writeUInt32LE(options.previousTimeline ?? this.timeline, 12);
    data.writeBigInt64LE(BigInt(options.seconds ?? 0), 64);
    return this.record(0, options.shutdown ? 0x00 : 0x10, 0, data);
  }

  endOfRecovery(time: bigint, timeline: number, previousTimeline: number): WrittenRecord {
    return this.record(0, 0x90, 0, Buffer.concat([timestamp(time), u32(timeline), u32(previousTimeline)]));
  }

  parameterChange(walLevel: number): WrittenRecord {
    const data = Buffer.alloc(26);
    data.writeInt32LE(walLevel, 20);
    return this.record(0, 0x60, 0, data);
  }

  backupEnd(backupStart: Lsn): WrittenRecord {
    const data = Buffer.alloc(8);
    data.writeBigUInt64LE(backupStart);
    return this.record(0, 0x50, 0, data);
  }

  switch(): WrittenRecord {
    const { lsn } = this.#append(this.#build(0, 0x40, 0, undefined));
    this.#at = Math.ceil(this.#at / this.segmentSize) * this.segmentSize;
    return { lsn, endLsn: this.end };
  }

  /** A record cut off by a crash at the end of its page, and the record a restarted server puts there. */
  abortedRecord(bytes: number): WrittenRecord {
    const previous = this.#previous;
    const record = this.#build(10, 0x00, 9, Buffer.alloc(bytes, 0x5a));
    this.#enterPage(0);
    const room = BLOCK - (this.#at % BLOCK);
    if (record.length <= room) throw new Error('the record to abort fits its page');
    record.copy(this.#bytes, this.#at, 0, room);
    this.#at += room;
    this.#previous = previous;
    this.#overwriteNextPage = true;
    return this.record(0, 0xd0, 0, Buffer.alloc(16));
  }

  #build(rmgr: number, info: number, xid: number, mainData: Uint8Array | undefined): Buffer {
    const head = Buffer.alloc(24);
    const lead = mainData === undefined ? Buffer.alloc(0) : dataHeader(mainData.length);
    const body = Buffer.concat([lead, mainData ?? Buffer.alloc(0)]);
    head.writeUInt32LE(24 + body.length, 0);
    head.writeUInt32LE(xid, 4);
    head.writeBigUInt64LE(this.#previous, 8);
    head.writeUInt8(info, 16);
    head.writeUInt8(rmgr, 17);
    head.writeUInt32LE(crc32c(head.subarray(0, 20), crc32c(body)), 20);
    return Buffer.concat([head, body]);
  }

  #append(record: Buffer): WrittenRecord {
    this.#enterPage(0);
    const lsn = this.end;
    for (let done = 0; done < record.length;) {
      this.#enterPage(record.length - done);
      const room = Math.min(record.length - done, BLOCK - (this.#at % BLOCK));
      record.copy(this.#bytes, this.#at, done, done + room);
      done += room;
      this.#at += room;
    }
    this.#at = Math.ceil(this.#at / 8) * 8;
    this.#previous = lsn;
    return { lsn, endLsn: this.end };
  }

  /** Writes a page header if a page begins here; `remaining` bytes of a record continue on it. */
  #enterPage(remaining: number): void {
    this.#reserve(this.#at + BLOCK);
    if (this.#at % BLOCK !== 0) return;
    const isLong = this.#at % this.segmentSize === 0;
    const page = this.#bytes.subarray(this.#at);
    page.writeUInt16LE(VERSION_FACTS[this.#major].walMagic, 0);
    page.writeUInt16LE((remaining > 0 ? 1 : 0) | (isLong ? 2 : 0) | (this.#overwriteNextPage ? 8 : 0), 2);
    page.writeUInt32LE(this.timeline, 4);
    page.writeBigUInt64LE(this.end, 8);
    page.writeUInt32LE(remaining, 16);
    this.#overwriteNextPage = false;
    this.#at += 24;
    if (!isLong) return;
    page.writeBigUInt64LE(this.#sysId, 24);
    page.writeUInt32LE(this.segmentSize, 32);
    page.writeUInt32LE(BLOCK, 36);
    this.#at += 16;
  }

  #reserve(bytes: number): void {
    if (bytes <= this.#bytes.length) return;
    const grown = Buffer.alloc(Math.max(bytes, this.#bytes.length * 2));
    this.#bytes.copy(grown);
    this.#bytes = grown;
  }
}

function dataHeader(length: number): Buffer {
  return length < 256 ? Buffer.from([255, length]) : Buffer.concat([Buffer.from([254]), u32(length)]);
}

function timestamp(time: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64LE(time - POSTGRES_EPOCH);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
