import { assert } from '../errors.ts';
import { type Lsn, lsnOf, lsnOfHalves } from './lsn.ts';
import { type SystemIdentifier } from './system-identifier.ts';
import { type TimelineId } from './timeline.ts';
import { type MajorVersion, VERSION_FACTS, majorOfWalMagic } from './version.ts';
import { crc32cOfRange, crc32cOfRecord } from './wal-crc.ts';
import {
  DEFAULT_WAL_BLOCK_SIZE,
  LONG_HEADER_BYTES,
  PAGE_ALL_FLAGS,
  PAGE_FIRST_IS_CONTINUATION,
  PAGE_FIRST_IS_OVERWRITE,
  PAGE_HAS_LONG_HEADER,
  SHORT_HEADER_BYTES,
} from './wal-page.ts';
import {
  DECODED_KINDS,
  RECORD_HEADER_BYTES,
  type TransactionSink,
  type WalRecord,
  type WalRecordKind,
  decodeWalRecord,
  transactionEndTime,
  walRecordKind,
} from './wal-record.ts';
import { isWalSegmentSize } from './wal-segment.ts';

export interface WalDecoderOptions {
  /**
   * Where to start. The start of a segment means its first record, after what continues from the segment before. Any
   * other value must be the LSN of a record, or the `endLsn` of the one before it.
   */
  start: Lsn;
  segmentSize: number;
  /** Left out: WAL of any cluster, but of one only. */
  systemIdentifier?: SystemIdentifier;
  /** The highest timeline a page may be of. Left out: any; going back to a lower one is refused in any case. */
  timeline?: TimelineId;
  /** The kinds to yield; every record is checked all the same. Left out: all. */
  kinds?: readonly WalRecordKind[];
  /** Takes most commits and aborts that are wanted, which then are not yielded: an object for each would cost more. */
  transactions?: TransactionSink;
  blockSize?: number;
}

/** Why decoding stands where it stands. */
export interface WalEnd {
  /** `endLsn` of the last whole record; `start` if there was none. What recovery over the same bytes would reach. */
  lsn: Lsn;
  /**
   * `needs-more`: everything pushed was sound so far. `zeros`: unwritten space. `invalid`: anything else that recovery
   * takes for the end of WAL: left-over bytes of a recycled segment, a torn record, or damage. Only the caller can know
   * whether WAL had to go on here.
   */
  reason: 'needs-more' | 'zeros' | 'invalid';
  /** What was wrong, for `invalid`. */
  detail?: string;
  /** Where the thing that could not be read stands (at or after `lsn`). */
  at: Lsn;
  /** With `needs-more`: the bytes so far end within a record. */
  inRecord: boolean;
}

const HIGHEST_BUILTIN_RMGR = 21;
const LOWEST_CUSTOM_RMGR = 128;

/**
 * Reads WAL records out of consecutive bytes, as PostgreSQL's xlogreader does: page headers, records over pages and
 * segments, the prev-links, every record's CRC-32C, aborted records that were overwritten. Never throws for what the
 * bytes hold: it stops for good at the first thing that is wrong and says so in `end`. Needs memory for one page, one
 * pushed buffer and the transaction end it is in the midst of, not for other records however large.
 */
export class WalDecoder {
  readonly #segmentSize: number;
  readonly #blockSize: number;
  readonly #sysId: bigint | undefined;
  readonly #maxTimeline: number;
  readonly #wanted: ReadonlySet<WalRecordKind>;
  readonly #wantsOther: boolean;
  readonly #transactions: TransactionSink | undefined;

  // The bytes at hand: page `#page` of `#view` (counted from `#origin`), of which `#limit` bytes are there.
  #view: DataView = new DataView(new ArrayBuffer(0));
  #origin = 0;
  #limit = 0;
  #input: Uint8Array | undefined;
  #inputAt = 0;
  readonly #pending: Uint8Array;
  #pendingBytes = 0;

  // LSNs are pairs of 32-bit halves here: bigint in this loop would cost more than the checksums.
  #pageHigh: number;
  #pageLow: number;
  /** Offset in the page of the next unread byte; -1 until its header was read. */
  #at = -1;
  #mode: 'before-start' | 'find-record' | 'records' | 'in-record' | 'after-switch';
  /** A record from before the start goes on behind the page at hand. */
  #continuesBeyond = false;
  readonly #startPage: Lsn;
  readonly #startOffset: number;

  #major: MajorVersion | undefined;
  #foundSysId: bigint | undefined;
  #pageTimeline = 0;
  #hasPrevious = false;
  #previousHigh = 0;
  #previousLow = 0;
  #endHigh: number;
  #endLow: number;

  // The record in the midst of which the page ended.
  readonly #head = new DataView(new ArrayBuffer(RECORD_HEADER_BYTES));
  #recordHigh = 0;
  #recordLow = 0;
  #recordLength = 0;
  #recordGot = 0;
  #recordCrc = 0;
  #recordParts: Uint8Array[] | undefined;

  #stopped: { reason: 'zeros' | 'invalid'; detail?: string; at: Lsn } | undefined;

  constructor(options: WalDecoderOptions) {
    const { start, segmentSize, blockSize = DEFAULT_WAL_BLOCK_SIZE } = options;
    assert(isWalSegmentSize(segmentSize), `a wal segment cannot have ${segmentSize} bytes`);
    assert(Number.isInteger(Math.log2(blockSize)) && blockSize >= 1024, 'a wal block size is a power of two');
    this.#segmentSize = segmentSize;
    this.#blockSize = blockSize;
    this.#sysId = options.systemIdentifier === undefined ? undefined : BigInt(options.systemIdentifier);
    this.#maxTimeline = options.timeline ?? 0xffff_ffff;
    this.#wanted = new Set(options.kinds ?? [...DECODED_KINDS, 'other']);
    this.#wantsOther = this.#wanted.has('other');
    this.#transactions = options.transactions;
    this.#pending = new Uint8Array(blockSize);
    const segment = start - (start % BigInt(segmentSize));
    this.#pageHigh = Number(segment >> 32n);
    this.#pageLow = Number(segment & 0xffff_ffffn);
    this.#endHigh = Number(start >> 32n);
    this.#endLow = Number(start & 0xffff_ffffn);
    this.#startOffset = Number(start % BigInt(blockSize));
    this.#startPage = lsnOf(start - BigInt(this.#startOffset));
    this.#mode = start === segment ? 'find-record' : 'before-start';
  }

  /** The major version that wrote the WAL; undefined until a page was read. */
  get majorVersion(): MajorVersion | undefined {
    return this.#major;
  }

  get end(): WalEnd {
    const lsn = lsnOfHalves(this.#endHigh, this.#endLow);
    if (this.#stopped !== undefined) return { lsn, ...this.#stopped, inRecord: false };
    const at = this.#mode === 'in-record' ? lsnOfHalves(this.#recordHigh, this.#recordLow) : lsn;
    return { lsn, reason: 'needs-more', at, inRecord: this.#isInRecord() };
  }

  /**
   * Takes the next bytes, of any number; the first ones ever are the first of the segment that holds `start`. Yields the
   * records that are whole by now. The generator must be run to its end before the next push, and the buffer left
   * unchanged until then. After the decoder has stopped it yields nothing.
   */
  *push(buffer: Uint8Array): Generator<WalRecord, void, undefined> {
    assert(this.#input === undefined, 'the records of the previous push were not all taken');
    this.#input = buffer;
    this.#inputAt = 0;
    while (this.#stopped === undefined && this.#loadPage()) {
      let record: WalRecord | undefined;
      while ((record = this.#nextInPage()) !== undefined) yield record;
    }
    this.#input = undefined;
  }

  /** Brings the next page's bytes to hand, in place where the input holds all of it; false if no byte is left. */
  #loadPage(): boolean {
    const input = this.#input;
    if (input === undefined) return false;
    if (this.#limit === this.#blockSize) {
      this.#turnPage();
    }
    const left = input.byteLength - this.#inputAt;
    if (left === 0) return false;
    if (this.#pendingBytes === 0 && left >= this.#blockSize) {
      this.#view = new DataView(input.buffer, input.byteOffset, input.byteLength);
      this.#origin = this.#inputAt;
      this.#limit = this.#blockSize;
      this.#inputAt += this.#blockSize;
      return true;
    }
    const taken = Math.min(left, this.#blockSize - this.#pendingBytes);
    this.#pending.set(input.subarray(this.#inputAt, this.#inputAt + taken), this.#pendingBytes);
    this.#pendingBytes += taken;
    this.#inputAt += taken;
    this.#view = new DataView(this.#pending.buffer);
    this.#origin = 0;
    this.#limit = this.#pendingBytes;
    return true;
  }

  #turnPage(): void {
    this.#limit = 0;
    this.#pendingBytes = 0;
    this.#at = -1;
    this.#pageLow += this.#blockSize;
    if (this.#pageLow > 0xffff_ffff) {
      this.#pageLow = 0;
      this.#pageHigh++;
    }
  }

  /** The next wanted record in the page at hand; undefined if the page is used up, lacks bytes or decoding stopped. */
  #nextInPage(): WalRecord | undefined {
    if (this.#at < 0 && !this.#enterPage()) return undefined;
    if (this.#mode === 'in-record') {
      const record = this.#continueRecord();
      if (record !== undefined) return record;
    }
    while (this.#mode === 'records') {
      const room = this.#blockSize - this.#at;
      const there = this.#limit - this.#at;
      if (room === 0 || there < 4) return undefined;
      const from = this.#origin + this.#at;
      const length = this.#view.getUint32(from, true);
      if (length < RECORD_HEADER_BYTES) {
        if (length === 0) this.#stop('zeros', this.#at);
        else this.#stop('invalid', this.#at, `a record cannot have ${length} bytes`);
        return undefined;
      }
      const low = this.#pageLow + this.#at;
      if (length > room) {
        if (this.#limit === this.#blockSize) this.#beginRecord(from, room, length, low);
        return undefined;
      }
      if (there < length || !this.#checkHeader(this.#view, from, this.#pageHigh, low)) return undefined;
      if (crc32cOfRecord(this.#view, from, length) !== this.#view.getUint32(from + 20, true)) {
        this.#stop('invalid', this.#at, 'the checksum of a record is wrong');
        return undefined;
      }
      const record = this.#finishRecord(
        this.#view,
        from,
        length,
        this.#pageHigh,
        low,
        this.#at + length,
        undefined,
      );
      if (record !== undefined) return record;
    }
    return undefined;
  }

  /** Reads the page header and places `#at` behind it; false if bytes are missing, the page is skipped, or it is wrong. */
  #enterPage(): boolean {
    const atSegmentStart = (this.#pageLow & (this.#segmentSize - 1)) === 0;
    if (this.#mode === 'after-switch') {
      if (!atSegmentStart) return false;
      this.#mode = 'records';
    }
    const headerBytes = atSegmentStart ? LONG_HEADER_BYTES : SHORT_HEADER_BYTES;
    if (this.#limit < headerBytes || !this.#checkPage(atSegmentStart)) return false;
    const from = this.#origin;
    const info = this.#view.getUint16(from + 2, true);
    const continues = (info & PAGE_FIRST_IS_CONTINUATION) !== 0;
    const remaining = this.#view.getUint32(from + 16, true);
    this.#at = headerBytes;
    switch (this.#mode) {
      case 'before-start': {
        if (lsnOfHalves(this.#pageHigh, this.#pageLow) < this.#startPage) {
          this.#at = this.#blockSize;
          return false;
        }
        if (this.#startOffset === 0 || this.#startOffset === headerBytes)
          return this.#expectRecord(continues);
        this.#at = this.#startOffset;
        this.#mode = 'records';
        if (this.#startOffset > headerBytes && this.#startOffset % 8 === 0) return true;
        this.#stop('invalid', this.#startOffset, 'no record can start at this lsn');
        return false;
      }
      case 'find-record':
        this.#continuesBeyond = continues && remaining > this.#blockSize - headerBytes;
        this.#at = continues ? Math.min(this.#blockSize, headerBytes + align8(remaining)) : headerBytes;
        if (!this.#continuesBeyond) this.#mode = 'records';
        return true;
      case 'in-record':
        if ((info & PAGE_FIRST_IS_OVERWRITE) !== 0) {
          // A crash cut the record off, and the server wrote on here after its restart.
          this.#recordParts = undefined;
          this.#mode = 'records';
        } else if (!continues || remaining !== this.#recordLength - this.#recordGot || remaining === 0) {
          this.#stop('invalid', 0, 'the page does not continue the record before it');
          return false;
        }
        return true;
      case 'records':
        return this.#expectRecord(continues);
    }
  }

  #expectRecord(pageContinues: boolean): boolean {
    this.#mode = 'records';
    if (!pageContinues) return true;
    this.#stop('invalid', this.#at, 'the page continues a record where a new one was to start');
    return false;
  }

  #checkPage(atSegmentStart: boolean): boolean {
    const view = this.#view;
    const from = this.#origin;
    const magic = view.getUint16(from, true);
    const info = view.getUint16(from + 2, true);
    const timeline = view.getUint32(from + 4, true);
    this.#major ??= majorOfWalMagic(magic);
    if (magic === 0 && info === 0 && timeline === 0) this.#stop('zeros', 0);
    else if (this.#major === undefined || magic !== VERSION_FACTS[this.#major].walMagic) {
      this.#stop('invalid', 0, `the magic number ${magic.toString(16)} of a page is wrong`);
    } else if ((info & ~PAGE_ALL_FLAGS) !== 0 || ((info & PAGE_HAS_LONG_HEADER) !== 0) !== atSegmentStart) {
      this.#stop('invalid', 0, `the info bits ${info.toString(16)} of a page are wrong`);
    } else if (
      view.getUint32(from + 8, true) !== this.#pageLow ||
      view.getUint32(from + 12, true) !== this.#pageHigh
    ) {
      this.#stop('invalid', 0, 'the address of a page is another');
    } else if (timeline < this.#pageTimeline || timeline > this.#maxTimeline || timeline === 0) {
      this.#stop('invalid', 0, `the timeline ${timeline} of a page is out of sequence`);
    } else if (atSegmentStart && !this.#isOurSegment()) {
      this.#stop('invalid', 0, 'the segment is of another cluster');
    }
    this.#pageTimeline = timeline;
    return this.#stopped === undefined;
  }

  #isOurSegment(): boolean {
    const sysId = this.#view.getBigUint64(this.#origin + 24, true);
    this.#foundSysId ??= this.#sysId ?? sysId;
    return (
      sysId === this.#foundSysId &&
      this.#view.getUint32(this.#origin + 32, true) === this.#segmentSize &&
      this.#view.getUint32(this.#origin + 36, true) === this.#blockSize
    );
  }

  /** Checks the resource manager and the prev-link in a record's header. */
  #checkHeader(view: DataView, from: number, high: number, low: number): boolean {
    const rmgr = view.getUint8(from + 17);
    const previousLow = view.getUint32(from + 8, true);
    const previousHigh = view.getUint32(from + 12, true);
    if (rmgr > HIGHEST_BUILTIN_RMGR && rmgr < LOWEST_CUSTOM_RMGR) {
      this.#stopAt('invalid', high, low, `no resource manager has the number ${rmgr}`);
      return false;
    }
    const isRight = this.#hasPrevious
      ? previousLow === this.#previousLow && previousHigh === this.#previousHigh
      : previousHigh < high || (previousHigh === high && previousLow < low);
    if (!isRight) this.#stopAt('invalid', high, low, 'the prev-link of a record is wrong');
    return isRight;
  }

  #beginRecord(from: number, room: number, length: number, low: number): void {
    this.#mode = 'in-record';
    this.#recordHigh = this.#pageHigh;
    this.#recordLow = low;
    this.#recordLength = length;
    this.#recordGot = 0;
    this.#recordCrc = 0;
    this.#recordParts = [];
    this.#feedRecord(from, room);
    this.#at = this.#blockSize;
  }

  #continueRecord(): WalRecord | undefined {
    if (this.#at === this.#blockSize) return undefined;
    const left = this.#recordLength - this.#recordGot;
    const here = Math.min(left, this.#blockSize - this.#at);
    if (this.#limit - this.#at < here) return undefined;
    if (!this.#feedRecord(this.#origin + this.#at, here)) return undefined;
    this.#at += here;
    if (here < left) return undefined;
    const head = this.#head;
    const crc = crc32cOfRange(head, 0, 20, this.#recordCrc);
    if (crc !== head.getUint32(20, true)) {
      this.#stopAt('invalid', this.#recordHigh, this.#recordLow, 'the checksum of a record is wrong');
      return undefined;
    }
    this.#mode = 'records';
    const parts = this.#recordParts;
    this.#recordParts = undefined;
    return this.#finishRecord(
      head,
      0,
      this.#recordLength,
      this.#recordHigh,
      this.#recordLow,
      this.#at,
      parts,
    );
  }

  /** Takes `count` more bytes of the record: its header aside, its body into the CRC and, if it is decoded, a copy. */
  #feedRecord(from: number, count: number): boolean {
    const inHead = Math.max(0, Math.min(count, RECORD_HEADER_BYTES - this.#recordGot));
    for (let at = 0; at < inHead; at++) {
      this.#head.setUint8(this.#recordGot + at, this.#view.getUint8(from + at));
    }
    const isHeadComplete = inHead > 0 && this.#recordGot + inHead === RECORD_HEADER_BYTES;
    this.#recordGot += count;
    if (isHeadComplete) {
      if (!this.#checkHeader(this.#head, 0, this.#recordHigh, this.#recordLow)) return false;
      const kind = walRecordKind(this.#head.getUint8(17), this.#head.getUint8(16));
      if (kind === 'other' || !this.#wanted.has(kind)) this.#recordParts = undefined;
    }
    if (count > inHead) {
      this.#recordCrc = crc32cOfRange(this.#view, from + inHead, from + count, this.#recordCrc);
    }
    this.#recordParts?.push(new Uint8Array(this.#view.buffer, this.#view.byteOffset + from, count).slice());
    return true;
  }

  /** Moves past a sound record and returns it if it is wanted. `pageEnd` is where its last byte ends in the page. */
  #finishRecord(
    head: DataView,
    from: number,
    length: number,
    high: number,
    low: number,
    pageEnd: number,
    parts: Uint8Array[] | undefined,
  ): WalRecord | undefined {
    const rmgr = head.getUint8(from + 17);
    const info = head.getUint8(from + 16);
    const kind = rmgr > 1 ? 'other' : walRecordKind(rmgr, info);
    const previousEndHigh = this.#hasPrevious ? this.#endHigh : high;
    const previousEndLow = this.#hasPrevious ? this.#endLow : low;
    this.#hasPrevious = true;
    this.#previousHigh = high;
    this.#previousLow = low;
    this.#at = align8(pageEnd);
    this.#endHigh = this.#pageHigh;
    this.#endLow = this.#pageLow + this.#at;
    if (kind === 'switch') {
      this.#endLow += -this.#endLow & (this.#segmentSize - 1);
      this.#at = this.#blockSize;
      this.#mode = 'after-switch';
    }
    if (this.#endLow > 0xffff_ffff) {
      this.#endLow -= 0x1_0000_0000;
      this.#endHigh++;
    }
    if (kind === 'other' ? !this.#wantsOther : !this.#wanted.has(kind)) return undefined;
    if (this.#transactions !== undefined && parts === undefined && (kind === 'commit' || kind === 'abort')) {
      const time = transactionEndTime(head, from, length);
      if (time !== undefined) {
        this.#transactions.ended(kind, head.getUint32(from + 4, true), time, high, low);
        return undefined;
      }
    }
    const lsn = lsnOfHalves(high, low);
    const place = {
      lsn,
      endLsn: lsnOfHalves(this.#endHigh, this.#endLow),
      previousEnd: previousEndLow === low ? lsn : lsnOfHalves(previousEndHigh, previousEndLow),
      xid: head.getUint32(from + 4, true),
      rmgr,
      info,
      lengthBytes: length,
    };
    if (kind === 'other') return { kind, ...place };
    const record = decodeWalRecord(
      parts === undefined ? head : viewOf(Buffer.concat(parts)),
      parts === undefined ? from : 0,
      place,
      this.#major as MajorVersion,
    );
    if (record === undefined)
      this.#stopAt('invalid', high, low, `a record of kind ${kind} has impossible content`);
    return record;
  }

  #isInRecord(): boolean {
    if (this.#mode === 'in-record' || this.#continuesBeyond) return true;
    if (this.#mode !== 'records' || this.#at < 0) return false;
    // Up to seven bytes of padding behind a record may still be missing.
    return this.#limit > this.#at || this.#at - this.#limit >= 8;
  }

  #stop(reason: 'zeros' | 'invalid', at: number, detail?: string): void {
    this.#stopAt(reason, this.#pageHigh, this.#pageLow + at, detail);
  }

  #stopAt(reason: 'zeros' | 'invalid', high: number, low: number, detail?: string): void {
    this.#stopped = { reason, at: lsnOfHalves(high, low), ...(detail === undefined ? {} : { detail }) };
  }
}

function align8(value: number): number {
  return value + (-value & 7);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
