import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { WalWriter, type WrittenRecord } from '../../test/wal-writer.ts';
import { type Lsn, lsnOf, lsnOfHalves } from './lsn.ts';
import { parseSystemIdentifier } from './system-identifier.ts';
import { timelineOf } from './timeline.ts';
import { SUPPORTED_MAJORS } from './version.ts';
import { WalDecoder, type WalDecoderOptions, type WalEnd } from './wal-decoder.ts';
import type { WalRecord } from './wal-record.ts';

const MIB = 2 ** 20;
const T = 1_767_261_600_000_001n;

interface Decoded {
  records: WalRecord[];
  end: WalEnd;
}

function decode(
  bytes: Uint8Array,
  options: Partial<WalDecoderOptions> & { start: Lsn },
  chunk = bytes.length,
): Decoded {
  const decoder = new WalDecoder({ segmentSize: MIB, ...options });
  const records: WalRecord[] = [];
  for (let at = 0; at < bytes.length; at += chunk)
    records.push(...decoder.push(bytes.subarray(at, at + chunk)));
  return { records, end: decoder.end };
}

function places(records: readonly WrittenRecord[]): WrittenRecord[] {
  return records.map(({ lsn, endLsn }) => ({ lsn, endLsn }));
}

const sizes = fc.array(
  fc.oneof(fc.nat(300), fc.integer({ min: 7900, max: 8300 }), fc.nat(100_000), fc.constant(3 * MIB)),
  { minLength: 1, maxLength: 60 },
);

test('WalDecoder finds every record of any sizes, over pages and segments, in pieces of any size', () => {
  fc.assert(
    fc.property(sizes, fc.integer({ min: 500, max: 50_000 }), (lengths, chunk) => {
      const writer = new WalWriter();
      const written = lengths.map((bytes) => writer.filler(bytes));
      const { records, end } = decode(writer.bytes(), { start: writer.start }, chunk);
      assert.deepEqual(places(records), written);
      assert.equal(end.lsn, writer.end);
      records.forEach((record, i) => {
        assert.equal(record.previousEnd, i === 0 ? record.lsn : records[i - 1]?.endLsn);
      });
    }),
    { numRuns: 40 },
  );
});

test('WalDecoder takes single bytes', () => {
  const writer = new WalWriter();
  const written = [writer.filler(9000), writer.commit(7, T), writer.filler(20_000), writer.commit(8, T)];
  const bytes = writer.bytes().subarray(0, 40_000);
  assert.deepEqual(places(decode(bytes, { start: writer.start }, 1).records), written);
});

test('WalDecoder yields a record as soon as its last byte is there', () => {
  const writer = new WalWriter();
  const { endLsn } = writer.commit(7, T);
  const bytes = writer.bytes();
  const decoder = new WalDecoder({ start: writer.start, segmentSize: MIB });
  const length = Number(endLsn - writer.start);
  // The last 6 bytes are padding.
  assert.equal([...decoder.push(bytes.subarray(0, length - 7))].length, 0);
  assert.equal(decoder.end.inRecord, true);
  assert.equal([...decoder.push(bytes.subarray(length - 7, length - 6))].length, 1);
  assert.deepEqual(decoder.end, { lsn: endLsn, reason: 'needs-more', at: endLsn, inRecord: false });
});

test('WalDecoder starts at any record, and at any segment behind what continues there', () => {
  const writer = new WalWriter();
  const written = Array.from({ length: 400 }, (_, i) => writer.filler(i * 37));
  written.push(writer.filler(2 * MIB), writer.commit(7, T));
  const segments = writer.segments();
  for (const [i, { lsn, endLsn }] of written.entries()) {
    const first = Number((lsn - writer.start) / BigInt(MIB));
    const { records } = decode(Buffer.concat(segments.slice(first)), { start: lsn });
    assert.deepEqual(places(records), written.slice(i));
    const afterwards = Number((endLsn - writer.start) / BigInt(MIB));
    if (i === written.length - 1 || endLsn % BigInt(MIB) === 0n) continue;
    const next = decode(Buffer.concat(segments.slice(afterwards)), { start: endLsn });
    assert.deepEqual(places(next.records), written.slice(i + 1));
  }
  for (const [i, bytes] of segments.entries()) {
    const start = lsnOf(writer.start + BigInt(i * MIB));
    const whole = written.filter((r) => r.lsn >= start && r.endLsn <= start + BigInt(MIB));
    assert.deepEqual(places(decode(bytes, { start }).records), whole);
  }
});

test('WalDecoder says whether a segment ends within a record', () => {
  const writer = new WalWriter();
  const long = writer.filler(3 * MIB);
  const [first, second, , last] = writer.segments() as [Buffer, Buffer, Buffer, Buffer];
  const at = (i: number) => lsnOf(writer.start + BigInt(i * MIB));
  assert.partialDeepStrictEqual(decode(first, { start: at(0) }).end, {
    reason: 'needs-more',
    inRecord: true,
    at: long.lsn,
  });
  assert.partialDeepStrictEqual(decode(second, { start: at(1) }).end, {
    reason: 'needs-more',
    inRecord: true,
  });
  assert.partialDeepStrictEqual(decode(last, { start: at(3) }).end, { reason: 'zeros', inRecord: false });
});

test('WalDecoder refuses a start that is no record', () => {
  const writer = new WalWriter();
  writer.filler(20_000);
  const second = writer.commit(7, T);
  const bytes = writer.bytes();
  for (const start of [second.lsn + 8n, second.lsn + 4n, writer.start + 8192n, writer.start + 8192n + 8n]) {
    assert.partialDeepStrictEqual(decode(bytes, { start: lsnOf(start) }), {
      records: [],
      end: { reason: 'invalid' },
    });
  }
});

test('WalDecoder decodes each kind with its values', () => {
  const writer = new WalWriter({ timeline: 3 });
  const redo = writer.start;
  writer.commit(700, T);
  writer.abort(701, T + 1n);
  writer.restorePoint('before the migration ü', T + 2n);
  writer.checkpoint({ shutdown: false, redo, seconds: 1_767_261_600 });
  writer.checkpoint({ shutdown: true, redo, timeline: 3, previousTimeline: 2 });
  writer.endOfRecovery(T + 3n, 3, 2);
  writer.parameterChange(0);
  writer.parameterChange(2);
  writer.backupEnd(lsnOf(0x2000028n));
  writer.filler(10);
  writer.switch();
  const { records } = decode(writer.bytes(), { start: writer.start });
  const expected = [
    { kind: 'commit', xid: 700, time: T },
    { kind: 'abort', xid: 701, time: T + 1n },
    { kind: 'restore-point', name: 'before the migration ü', time: T + 2n },
    {
      kind: 'checkpoint',
      shutdown: false,
      redo,
      timeline: 3,
      previousTimeline: 3,
      time: 1_767_261_600_000_000n,
    },
    { kind: 'checkpoint', shutdown: true, redo, timeline: 3, previousTimeline: 2 },
    { kind: 'end-of-recovery', time: T + 3n, timeline: 3, previousTimeline: 2 },
    { kind: 'parameter-change', walLevel: 'minimal' },
    { kind: 'parameter-change', walLevel: 'logical' },
    { kind: 'backup-end', backupStart: 0x2000028n },
    { kind: 'other', rmgr: 10 },
    { kind: 'switch', endLsn: 2n * BigInt(MIB) },
  ];
  assert.equal(records.length, expected.length);
  assert.partialDeepStrictEqual(records, expected);
});

test('WalDecoder finds the xid of prepared transactions behind lists of any length, in every major', () => {
  const lists = fc.record({
    subxacts: fc.nat(3000),
    relations: fc.nat(2000),
    stats: fc.nat(500),
    messages: fc.nat(1000),
  });
  fc.assert(
    fc.property(fc.constantFrom(...SUPPORTED_MAJORS), lists, (major, counts) => {
      const writer = new WalWriter({ major });
      writer.prepared('commit', 4_000_000_000, T, counts);
      writer.prepared('abort', 5, T + 1n, counts);
      const { records } = decode(writer.bytes(), { start: writer.start });
      assert.equal(records.length, 2);
      assert.partialDeepStrictEqual(records, [
        { kind: 'commit-prepared', xid: 4_000_000_000, time: T },
        { kind: 'abort-prepared', xid: 5, time: T + 1n },
      ]);
    }),
    { numRuns: 30 },
  );
});

test('WalDecoder goes on in the next segment after a switch, wherever the switch stands', () => {
  for (let bytes = 7900; bytes < 8200; bytes += 8) {
    const writer = new WalWriter();
    writer.filler(bytes);
    const { endLsn } = writer.switch();
    assert.equal(endLsn, 2n * BigInt(MIB));
    const after = writer.commit(7, T);
    const { records } = decode(writer.bytes(), { start: writer.start, kinds: ['switch', 'commit'] });
    assert.partialDeepStrictEqual(records, [
      { kind: 'switch', endLsn },
      { kind: 'commit', lsn: after.lsn, previousEnd: endLsn },
    ]);
  }
});

test('WalDecoder leaves out kinds that were not asked for, but not their positions', () => {
  const writer = new WalWriter();
  writer.commit(7, T);
  const filler = writer.filler(9000);
  writer.restorePoint('a', T);
  const { records } = decode(writer.bytes(), { start: writer.start, kinds: ['restore-point'] });
  assert.deepEqual(
    records.map((r) => [r.kind, r.previousEnd]),
    [['restore-point', filler.endLsn]],
  );
});

test('WalDecoder tells a sink of the same ends of transactions that it would yield, in the order of the WAL', () => {
  const steps = fc.array(
    fc.record({
      what: fc.constantFrom('commit', 'abort', 'filler'),
      xid: fc.nat(2 ** 32 - 1),
      time: fc.bigInt({ min: T, max: 2n ** 63n - 1n - T }),
      bytes: fc.nat(9000),
    }),
    { minLength: 1, maxLength: 300, size: 'max' },
  );
  fc.assert(
    fc.property(steps, fc.integer({ min: 500, max: 50_000 }), (all, chunk) => {
      const writer = new WalWriter();
      for (const { what, xid, time, bytes } of all) {
        if (what === 'commit') writer.commit(xid, time);
        else if (what === 'abort') writer.abort(xid, time);
        else writer.filler(bytes);
      }
      const ends = ({ records }: Decoded): unknown[] =>
        records.flatMap((one) =>
          one.kind === 'commit' || one.kind === 'abort' ? [[one.kind, one.xid, one.time, one.lsn]] : [],
        );
      const expected = ends(decode(writer.bytes(), { start: writer.start }));
      const told: unknown[] = [];
      const decoder = new WalDecoder({
        start: writer.start,
        segmentSize: MIB,
        transactions: {
          ended: (kind, xid, time, high, low) => told.push([kind, xid, BigInt(time), lsnOfHalves(high, low)]),
        },
      });
      const bytes = writer.bytes();
      for (let at = 0; at < bytes.length; at += chunk) {
        for (const record of decoder.push(bytes.subarray(at, at + chunk))) {
          told.push(...ends({ records: [record], end: decoder.end }));
        }
      }
      assert.deepEqual(told, expected);
    }),
    { numRuns: 30 },
  );
});

test('WalDecoder reads on where a crash cut a record off and the server wrote over it', () => {
  const writer = new WalWriter();
  const before = writer.commit(7, T);
  const overwrite = writer.abortedRecord(30_000);
  const after = writer.commit(8, T);
  const { records } = decode(writer.bytes(), { start: writer.start });
  assert.deepEqual(places(records), [before, overwrite, after]);
  assert.equal(records[1]?.previousEnd, before.endLsn);
});

test('WalDecoder stops before the record that has a damaged byte, on one page or on several', () => {
  const writer = new WalWriter();
  const written = Array.from({ length: 40 }, (_, i) => writer.filler(i * 250));
  const good = writer.bytes();
  const length = Number(writer.end - writer.start);
  fc.assert(
    fc.property(fc.nat(length - 1), fc.integer({ min: 1, max: 255 }), (at, mask) => {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] ?? 0) ^ mask;
      const position = writer.start + BigInt(at);
      const { records, end } = decode(bad, { start: writer.start });
      const hit = written.findIndex(({ endLsn }) => position < endLsn);
      const isInPageHeader = at % 8192 < 24 || at < 40;
      const isPadding = position + 8n > (written[hit]?.endLsn ?? 0n);
      if (isInPageHeader || isPadding) assert.ok(records.length >= hit);
      else {
        assert.equal(records.length, hit);
        assert.notEqual(end.reason, 'needs-more');
      }
      assert.deepEqual(places(records), written.slice(0, records.length));
    }),
    { numRuns: 300 },
  );
});

test('WalDecoder checks the magic, flags, address and remaining length in the header of a page', () => {
  const writer = new WalWriter();
  const before = writer.filler(7000);
  writer.filler(3000);
  const good = writer.bytes();
  assert.equal(decode(good, { start: writer.start }).records.length, 2);
  for (const at of [0, 1, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]) {
    const bad = Buffer.from(good);
    bad[8192 + at] = (bad[8192 + at] ?? 0) ^ 0x40;
    const { records, end } = decode(bad, { start: writer.start });
    assert.deepEqual(places(records), [before], `byte ${at}`);
    assert.equal(end.reason, 'invalid');
  }
});

test('WalDecoder knows a record that ends exactly with a page or a segment', () => {
  for (const pages of [1, 2, 128]) {
    const writer = new WalWriter();
    // Behind the first page's header of 40 bytes: a record header, its data header of 5, and the later pages' headers.
    writer.filler(pages * 8192 - 40 - 24 - 5 - (pages - 1) * 24);
    assert.equal(writer.end, writer.start + BigInt(pages * 8192));
    const next = writer.commit(7, T);
    const { records, end } = decode(writer.bytes(), { start: writer.start });
    assert.partialDeepStrictEqual(records, [
      { endLsn: writer.start + BigInt(pages * 8192) },
      { lsn: next.lsn },
    ]);
    assert.equal(end.lsn, next.endLsn);
  }
  const writer = new WalWriter();
  writer.filler(2 * MIB - 40 - 40 - 24 - 5 - (2 * 128 - 2) * 24);
  const start = lsnOf(writer.start + BigInt(MIB));
  assert.equal(writer.end, start + BigInt(MIB));
  const [first, second] = writer.segments() as [Buffer, Buffer];
  assert.equal(decode(first, { start: writer.start }).end.inRecord, true);
  assert.partialDeepStrictEqual(decode(second, { start }).end, { reason: 'needs-more', inRecord: false });
  assert.equal(
    decode(Buffer.concat([first, second]), { start: writer.start }).records[0]?.endLsn,
    writer.end,
  );
});

test('WalDecoder detects a change in any byte of a record', () => {
  const writer = new WalWriter();
  const { lsn } = writer.commit(7, T);
  const good = writer.bytes();
  const from = Number(lsn - writer.start);
  for (let at = from; at < from + 34; at++) {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] ?? 0) ^ 0x80;
    const { records, end } = decode(bad, { start: writer.start });
    assert.equal(records.length, 0, `byte ${at - from}`);
    assert.equal(end.lsn, writer.start);
  }
});

test('WalDecoder ends at the left-overs of a recycled segment', () => {
  const old = new WalWriter();
  for (let i = 0; i < 200; i++) old.filler(300);
  const writer = new WalWriter({ start: lsnOf(9n * BigInt(MIB)) });
  for (let i = 0; i < 50; i++) writer.filler(300);
  const bytes = writer.bytes();
  const end = Number(writer.end - writer.start);
  old.bytes().copy(bytes, end, end);
  const { records, end: reached } = decode(bytes, { start: writer.start });
  assert.equal(records.length, 50);
  assert.equal(reached.lsn, writer.end);
  assert.equal(reached.reason, 'invalid');
});

test('WalDecoder refuses pages of another cluster, segment size or timeline', () => {
  const writer = new WalWriter({ timeline: 5 });
  writer.commit(7, T);
  const bytes = writer.bytes();
  const { start } = writer;
  const ours = {
    start,
    systemIdentifier: parseSystemIdentifier('7000000000000000001'),
    timeline: timelineOf(5),
  };
  assert.equal(decode(bytes, ours).records.length, 1);
  const other = parseSystemIdentifier('7000000000000000002');
  assert.equal(decode(bytes, { ...ours, systemIdentifier: other }).records.length, 0);
  assert.equal(decode(bytes, { ...ours, segmentSize: 2 * MIB, start: lsnOf(0n) }).records.length, 0);
  assert.equal(decode(bytes, { ...ours, timeline: timelineOf(4) }).records.length, 0);
});

test('WalDecoder follows a rising timeline and refuses a falling one', () => {
  const build = (second: number): Decoded => {
    const writer = new WalWriter({ timeline: 5 });
    writer.filler(5000);
    writer.timeline = second;
    writer.filler(5000);
    return decode(writer.bytes(), { start: writer.start });
  };
  assert.equal(build(6).records.length, 2);
  assert.equal(build(4).records.length, 1);
});

test('WalDecoder counts beyond 32 bits', () => {
  const writer = new WalWriter({ start: lsnOf(0x1_ffff_ffffn - BigInt(MIB) + 1n) });
  const written = Array.from({ length: 300 }, () => writer.filler(8000));
  assert.ok(writer.end > 0x2_0000_0000n);
  assert.deepEqual(places(decode(writer.bytes(), { start: writer.start }).records), written);
});

test('WalDecoder stays stopped', () => {
  const writer = new WalWriter();
  writer.commit(7, T);
  const decoder = new WalDecoder({ start: writer.start, segmentSize: MIB });
  const [segment] = writer.segments() as [Buffer];
  assert.equal([...decoder.push(segment)].length, 1);
  assert.equal(decoder.end.reason, 'zeros');
  assert.deepEqual([...decoder.push(segment)], []);
});

test('WalDecoder demands that every record is taken before the next push', () => {
  const writer = new WalWriter();
  writer.commit(7, T);
  writer.commit(8, T);
  const decoder = new WalDecoder({ start: writer.start, segmentSize: MIB });
  const generator = decoder.push(writer.bytes());
  generator.next();
  assert.throws(() => decoder.push(Buffer.alloc(1)).next(), { code: 'assertion' });
});
