import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { lsnOf, parseLsn } from './lsn.ts';
import { timelineOf } from './timeline.ts';
import {
  type WalSegmentName,
  classifyWalFile,
  isWalSegmentSize,
  lastSegmentBefore,
  nextSegmentName,
  parseWalSegmentName,
  segmentOfLsn,
  segmentStart,
  walSegmentName,
} from './wal-segment.ts';

const MIB = 2 ** 20;

test('walSegmentName() counts the low part by the segment size', () => {
  assert.equal(walSegmentName(timelineOf(1), 255n, 16 * MIB), '0000000100000000000000FF');
  assert.equal(walSegmentName(timelineOf(1), 256n, 16 * MIB), '000000010000000100000000');
  assert.equal(walSegmentName(timelineOf(10), 4096n, MIB), '0000000A0000000100000000');
  assert.equal(walSegmentName(timelineOf(1), 5n, 1024 * MIB), '000000010000000100000001');
});

test('parseWalSegmentName() is the inverse of walSegmentName() at every segment size', () => {
  const sizes = fc.integer({ min: 20, max: 30 }).map((power) => 2 ** power);
  fc.assert(
    fc.property(
      sizes,
      fc.integer({ min: 1, max: 0xffff_ffff }),
      fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
      (size, tli, position) => {
        const timeline = timelineOf(tli);
        const segmentNumber = segmentOfLsn(lsnOf(position), size);
        const name = walSegmentName(timeline, segmentNumber, size);
        assert.deepEqual(parseWalSegmentName(name, size), { timeline, segmentNumber });
        const start = segmentStart(segmentNumber, size);
        assert.ok(start <= position && position < start + BigInt(size));
      },
    ),
  );
});

test('parseWalSegmentName() refuses names this segment size cannot have', () => {
  assert.throws(() => parseWalSegmentName('000000010000000000000100', 16 * MIB), { code: 'wal-invalid' });
  assert.equal(parseWalSegmentName('000000010000000000000100', MIB).segmentNumber, 256n);
  assert.throws(() => parseWalSegmentName('000000000000000000000001', MIB), { code: 'wal-invalid' });
  assert.throws(() => parseWalSegmentName('000000010000000000000001', 3 * MIB), { code: 'wal-invalid' });
});

test('isWalSegmentSize() knows the powers of two from 1 MiB to 1 GiB', () => {
  for (const size of [MIB, 16 * MIB, 64 * MIB, 1024 * MIB]) assert.equal(isWalSegmentSize(size), true);
  for (const size of [0, -MIB, MIB / 2, 3 * MIB, 2048 * MIB, Number.NaN])
    assert.equal(isWalSegmentSize(size), false);
});

test('lastSegmentBefore() does not ask for the segment that starts at an end position', () => {
  assert.equal(lastSegmentBefore(parseLsn('0/2000000'), 16 * MIB), 1n);
  assert.equal(lastSegmentBefore(parseLsn('0/2000001'), 16 * MIB), 2n);
});

test('nextSegmentName() carries into the high part', () => {
  assert.equal(
    nextSegmentName('0000000A00000000000000FF' as WalSegmentName, 16 * MIB),
    '0000000A0000000100000000',
  );
});

test('classifyWalFile() knows the four kinds', () => {
  const segment = '0000000A0000000100000002';
  assert.deepEqual(classifyWalFile(segment), { kind: 'segment', name: segment, timeline: 10, segment });
  const partial = `${segment}.partial`;
  assert.deepEqual(classifyWalFile(partial), { kind: 'partial', name: partial, timeline: 10, segment });
  assert.deepEqual(classifyWalFile('0000000B.history'), {
    kind: 'history',
    name: '0000000B.history',
    timeline: 11,
  });
  const backup = `${segment}.00000028.backup`;
  assert.deepEqual(classifyWalFile(backup), {
    kind: 'backup-label',
    name: backup,
    timeline: 10,
    segment,
    offset: 40,
  });
});

test('classifyWalFile() knows nothing else', () => {
  const segment = '0000000A0000000100000002';
  const names = [
    '',
    '.',
    '..',
    `../${segment}`,
    `${segment}/`,
    `${segment}\n`,
    segment.toLowerCase(),
    `${segment}0`,
  ];
  names.push(`${segment}.PARTIAL`, `${segment}.partial.partial`, `${segment}.28.backup`, '00000000.history');
  names.push(
    '0000000a.history',
    `00000000${segment.slice(8)}`,
    `${segment}.gz`,
    'RECOVERYXLOG',
    `${segment}\0`,
  );
  for (const name of names) assert.equal(classifyWalFile(name), undefined, JSON.stringify(name));
});
