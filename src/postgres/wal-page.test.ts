import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WalWriter } from '../../test/wal-writer.ts';
import { lsnOf } from './lsn.ts';
import { parseSystemIdentifier } from './system-identifier.ts';
import { SUPPORTED_MAJORS } from './version.ts';
import { checkWalSegment, readWalLongHeader } from './wal-page.ts';

const MIB = 2 ** 20;
const NAME = '000000020000000000000003';
const SYSTEM = parseSystemIdentifier('7000000000000000001');

function segment(changes: ConstructorParameters<typeof WalWriter>[0] = {}): Buffer {
  const writer = new WalWriter({ start: lsnOf(3n * BigInt(MIB)), timeline: 2, ...changes });
  writer.filler(100);
  return writer.bytes();
}

test('readWalLongHeader() reads the header of every supported major', () => {
  for (const major of SUPPORTED_MAJORS) {
    assert.partialDeepStrictEqual(readWalLongHeader(segment({ major })), {
      majorVersion: major,
      timeline: 2,
      pageAddress: 3n * BigInt(MIB),
      systemIdentifier: SYSTEM,
      segmentSize: MIB,
      blockSize: 8192,
    });
  }
});

test('readWalLongHeader() tells WAL of another version from no WAL at all', () => {
  const other = segment();
  other.writeUInt16LE(0xd10d, 0);
  assert.throws(() => readWalLongHeader(other), { code: 'version-unsupported' });
  for (const bytes of [
    Buffer.alloc(0),
    Buffer.alloc(39, 0xd1),
    Buffer.alloc(8192),
    Buffer.alloc(8192, 0x20),
  ]) {
    assert.throws(() => readWalLongHeader(bytes), { code: 'wal-invalid' });
  }
  const short = segment();
  short.writeUInt16LE(0, 2);
  assert.throws(() => readWalLongHeader(short), { code: 'wal-invalid' });
  const odd = segment();
  odd.writeUInt32LE(3 * MIB, 32);
  assert.throws(() => readWalLongHeader(odd), { code: 'wal-invalid' });
});

test('checkWalSegment() accepts the segment it claims to be', () => {
  const expected = {
    name: NAME,
    sizeBytes: MIB,
    systemIdentifier: SYSTEM,
    segmentSize: MIB,
    majorVersion: 15,
  } as const;
  assert.equal(checkWalSegment(segment(), expected).timeline, 2);
  assert.equal(checkWalSegment(segment(), { ...expected, name: `${NAME}.partial` }).timeline, 2);
});

test('checkWalSegment() accepts the copy of a parent timeline that begins a new one', () => {
  const name = `00000005${NAME.slice(8)}`;
  assert.equal(checkWalSegment(segment(), { name, sizeBytes: MIB }).timeline, 2);
});

test('checkWalSegment() refuses another cluster, version, size, place or a later timeline', () => {
  const refusals = [
    ['cluster-mismatch', { systemIdentifier: parseSystemIdentifier('7000000000000000002') }],
    ['cluster-mismatch', { majorVersion: 16 }],
    ['wal-invalid', { segmentSize: 16 * MIB }],
    ['wal-invalid', { sizeBytes: MIB - 1 }],
    ['wal-invalid', { name: '000000020000000000000004' }],
    ['wal-invalid', { name: `00000001${NAME.slice(8)}` }],
    ['wal-invalid', { name: 'pg_control' }],
  ] as const;
  for (const [code, change] of refusals) {
    assert.throws(() => checkWalSegment(segment(), { name: NAME, sizeBytes: MIB, ...change }), { code });
  }
});
