import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { WalWriter } from '../../test/wal-writer.ts';
import { formatLsn, lsnOf } from './lsn.ts';
import { createWalSummarizer, summarizeWalSegment } from './wal-summary.ts';

const MIB = 2 ** 20;
const T = 1_767_261_600_000_000n;

test('summarizeWalSegment() counts what a segment holds', () => {
  const writer = new WalWriter();
  writer.commit(4_294_967_290, T + 5n);
  writer.commit(5, T + 3n);
  writer.abort(9, T + 9n);
  const last = writer.prepared('commit', 7, T + 4n);
  const point = writer.restorePoint('p', T + 1n);
  writer.filler(2 * MIB);
  const options = { start: writer.start, segmentSize: MIB };
  assert.deepEqual(summarizeWalSegment(writer.segments()[0] as Buffer, options), {
    startLsn: '0/100000',
    endLsn: formatLsn(point.endLsn),
    commits: 3,
    aborts: 1,
    firstCommitTime: '2026-01-01T10:00:00.000003Z',
    lastCommitTime: '2026-01-01T10:00:00.000005Z',
    lastCommitLsn: formatLsn(last.lsn),
    minXid: 4_294_967_290,
    maxXid: 9,
    restorePoints: [{ name: 'p', time: '2026-01-01T10:00:00.000001Z', lsn: formatLsn(point.lsn) }],
    endsInPartialRecord: true,
    switched: false,
    walLevelMinimal: false,
  });
});

test('summarizeWalSegment() has nothing to say of a segment within one record', () => {
  const writer = new WalWriter();
  writer.filler(3 * MIB);
  const start = lsnOf(writer.start + BigInt(MIB));
  const summary = summarizeWalSegment(writer.segments()[1] as Buffer, { start, segmentSize: MIB });
  assert.partialDeepStrictEqual(summary, {
    startLsn: '0/200000',
    endLsn: '0/200000',
    endsInPartialRecord: true,
  });
  assert.equal(summary.damagedAt, undefined);
});

test('summarizeWalSegment() reports a switch and a minimal wal_level', () => {
  const writer = new WalWriter();
  writer.parameterChange(0);
  writer.parameterChange(1);
  writer.switch();
  const summary = summarizeWalSegment(writer.bytes(), { start: writer.start, segmentSize: MIB });
  assert.partialDeepStrictEqual(summary, { endLsn: '0/200000', switched: true, walLevelMinimal: true });
  assert.equal(summary.damagedAt, undefined);
});

test('summarizeWalSegment() reports damage in a full segment, not the end of a partial one', () => {
  const writer = new WalWriter();
  writer.commit(5, T);
  const broken = writer.filler(100);
  writer.commit(6, T);
  const bytes = writer.bytes();
  const options = { start: writer.start, segmentSize: MIB };
  const unwritten = summarizeWalSegment(bytes, options);
  assert.equal(unwritten.damagedAt, formatLsn(writer.end));
  assert.equal(summarizeWalSegment(bytes, { ...options, partial: true }).damagedAt, undefined);
  const at = Number(broken.lsn - writer.start) + 50;
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  const damaged = summarizeWalSegment(bytes, options);
  assert.equal(damaged.damagedAt, formatLsn(broken.lsn));
  assert.match(damaged.damage ?? '', /checksum/);
  assert.equal(damaged.commits, 1);
});

test('summarizeWalSegment() reports a segment cut short', () => {
  const writer = new WalWriter();
  writer.filler(2 * MIB);
  const bytes = (writer.segments()[0] as Buffer).subarray(0, MIB / 2);
  const summary = summarizeWalSegment(bytes, { start: writer.start, segmentSize: MIB });
  assert.equal(summary.damagedAt, '0/180000');
});

test('summarizeWalSegment() never throws', () => {
  const options = { start: lsnOf(BigInt(MIB)), segmentSize: MIB };
  const writer = new WalWriter();
  for (let i = 0; i < 100; i++) writer.prepared('commit', i, T, { subxacts: i });
  const good = writer.bytes().subarray(0, 65_536);
  fc.assert(
    fc.property(fc.nat(65_535), fc.uint8Array({ maxLength: 300 }), (at, patch) => {
      const bytes = Buffer.from(good);
      bytes.set(patch.subarray(0, bytes.length - at), at);
      JSON.stringify(summarizeWalSegment(bytes, options));
      JSON.stringify(summarizeWalSegment(patch, options));
    }),
  );
});

test('createWalSummarizer() gives the same in pieces', () => {
  const writer = new WalWriter();
  for (let i = 0; i < 2000; i++) writer.commit(i + 3, T + BigInt(i));
  writer.switch();
  const bytes = writer.bytes();
  const options = { start: writer.start, segmentSize: MIB };
  const summarizer = createWalSummarizer(options);
  for (let at = 0; at < bytes.length; at += 30_001) summarizer.push(bytes.subarray(at, at + 30_001));
  assert.deepEqual(summarizer.finish(), summarizeWalSegment(bytes, options));
});
