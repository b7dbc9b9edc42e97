import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '../stream/crc32c.ts';
import { readControlData } from './control-data.ts';
import { type MajorVersion, SUPPORTED_MAJORS, VERSION_FACTS } from './version.ts';

function controlFile(major: MajorVersion): Buffer {
  const facts = VERSION_FACTS[major];
  const bytes = Buffer.alloc(8192);
  bytes.writeBigUInt64LE(7_000_000_000_000_000_001n, 0);
  bytes.writeUInt32LE(facts.controlVersion, 8);
  bytes.writeUInt32LE(facts.catalogVersion, 12);
  bytes.writeUInt32LE(6, 16);
  bytes.writeBigInt64LE(1_767_261_600n, 24);
  bytes.writeBigUInt64LE(0x3000060n, 32);
  bytes.writeBigUInt64LE(0x3000028n, 40);
  bytes.writeUInt32LE(3, 48);
  bytes.writeUInt32LE(2, 52);
  bytes.writeBigInt64LE(1_767_261_500n, 104);
  bytes.writeUInt32LE(1, 172);
  bytes.writeInt32LE(123, 180);
  bytes.writeUInt32LE(8192, 216);
  bytes.writeUInt32LE(2 ** 20, 228);
  bytes.writeUInt32LE(1, 252);
  return seal(bytes, major);
}

function seal(bytes: Buffer, major: MajorVersion): Buffer {
  const at = VERSION_FACTS[major].controlCrcOffset;
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, at)), at);
  return bytes;
}

test('readControlData() reads the layout of every supported major', () => {
  for (const major of SUPPORTED_MAJORS) {
    const data = readControlData(controlFile(major));
    assert.partialDeepStrictEqual(data, {
      majorVersion: major,
      systemIdentifier: '7000000000000000001',
      state: 'in production',
      checkpoint: 0x3000060n,
      redo: 0x3000028n,
      timeline: 3,
      previousTimeline: 2,
      checkpointTime: new Date('2026-01-01T09:58:20Z'),
      blockSize: 8192,
      walSegmentSize: 2 ** 20,
      dataChecksumVersion: 1,
    });
    assert.equal(data.settings.walLevel, 'replica');
    assert.equal(data.settings.maxConnections, 123);
  }
});

test('readControlData() notices a change in any byte that counts', () => {
  for (const major of SUPPORTED_MAJORS) {
    const good = controlFile(major);
    for (let at = 0; at < VERSION_FACTS[major].controlCrcOffset + 4; at++) {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] ?? 0) ^ 0x01;
      const isVersion = at >= 8 && at < 12;
      assert.throws(() => readControlData(bad), {
        code: isVersion ? 'version-unsupported' : 'checksum-mismatch',
      });
    }
  }
});

test('readControlData() refuses other versions and short files', () => {
  const other = controlFile(15);
  other.writeUInt32LE(202107181, 12);
  assert.throws(() => readControlData(seal(other, 15)), { code: 'version-unsupported' });
  assert.throws(() => readControlData(controlFile(18).subarray(0, 292)), { code: 'checksum-mismatch' });
  assert.throws(() => readControlData(Buffer.alloc(0)), { code: 'checksum-mismatch' });
});
