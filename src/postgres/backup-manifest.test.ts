import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import {
  BackupManifestReader,
  type ManifestEnd,
  type ManifestFile,
  manifestCrc32c,
} from './backup-manifest.ts';

const FILES = [
  `{ "Path": "backup_label", "Size": 227, "Last-Modified": "2026-11-22 22:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "0a1b2c3d" }`,
  `{ "Path": "odd \\"quoted\\" \\\\ }],", "Size": 0, "Last-Modified": "2026-11-22 22:00:00 GMT" }`,
  `{ "Encoded-Path": "62ff61", "Size": 5, "Last-Modified": "2026-11-22 22:00:00 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "00000000" }`,
];

function manifest(version: 1 | 2, files = FILES): string {
  const identifier = version === 2 ? `"System-Identifier": 7711122965906296124,\n` : '';
  const body = `{ "PostgreSQL-Backup-Manifest-Version": ${version},
${identifier}"Files": [
${files.join(',\n')}
],
"WAL-Ranges": [
{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "1/2000100" }
],
`;
  return `${body}"Manifest-Checksum": "${createHash('sha256').update(body).digest('hex')}"}\n`;
}

function read(text: string | Buffer, pieceSize = 1_000_000): { files: ManifestFile[]; end: ManifestEnd } {
  const bytes = Buffer.from(text);
  const reader = new BackupManifestReader();
  const files: ManifestFile[] = [];
  for (let at = 0; at < bytes.length; at += pieceSize) {
    // The reader must keep nothing of a chunk that its owner writes over.
    const chunk = Buffer.from(bytes.subarray(at, at + pieceSize));
    files.push(...reader.push(chunk));
    chunk.fill(0);
  }
  return { files, end: reader.finish() };
}

void test('BackupManifestReader reads both versions', () => {
  for (const version of [1, 2] as const) {
    const { files, end } = read(manifest(version));
    assert.deepEqual(
      files.map(({ path, sizeBytes, checksum }) => [path, sizeBytes, checksum?.hex]),
      [
        ['backup_label', 227, '0a1b2c3d'],
        ['odd "quoted" \\ }],', 0, undefined],
        ['b\xffa', 5, '00000000'],
      ],
    );
    assert.equal(files[0]?.modified.toISOString(), '2026-11-22T22:00:00.000Z');
    assert.deepEqual(end, {
      version,
      systemIdentifier: version === 2 ? '7711122965906296124' : undefined,
      walRanges: [{ timeline: 1, start: 0x2000028n, end: 0x1_0200_0100n }],
      fileCount: 3,
    });
  }
});

void test('BackupManifestReader gives the same in pieces of any size', () => {
  const whole = read(manifest(2));
  for (let size = 1; size < 400; size++) assert.deepEqual(read(manifest(2), size), whole);
});

void test('BackupManifestReader does not rely on line ends', () => {
  const body = manifest(1)
    .replace(/"Manifest-Checksum".*/s, '')
    .replaceAll('\n', '  ');
  const text = `${body}"Manifest-Checksum":"${createHash('sha256').update(body).digest('hex')}"}`;
  assert.equal(read(text, 7).files.length, 3);
});

void test('BackupManifestReader notices any flipped byte', () => {
  const whole = Buffer.from(manifest(2));
  const meaning = read(whole);
  fc.assert(
    fc.property(fc.nat({ max: whole.length - 1 }), fc.integer({ min: 0, max: 7 }), (at, bit) => {
      const bytes = Buffer.from(whole);
      bytes[at] = (bytes[at] ?? 0) ^ (1 << bit);
      try {
        // Only the case of the checksum's own digits and white space after it may differ.
        assert.deepEqual(read(bytes), meaning);
        assert.ok(at >= whole.indexOf('"Manifest-Checksum"'), `byte ${at} was not noticed`);
      } catch (error) {
        assert.ok(error instanceof HoldfastError, String(error));
      }
    }),
    { numRuns: 3000 },
  );
});

void test('BackupManifestReader notices a manifest that was cut short', () => {
  const whole = manifest(1);
  for (let size = 0; size < whole.length - 2; size++) {
    assert.throws(() => read(whole.slice(0, size)), HoldfastError, `${size} bytes`);
  }
});

void test('BackupManifestReader refuses names that leave the data directory', () => {
  for (const path of ['/etc/passwd', '../x', 'a/../../b']) {
    const file = `{ "Path": "${path}", "Size": 1, "Last-Modified": "2026-11-22 22:00:00 GMT" }`;
    assert.throws(() => read(manifest(1, [file])), { code: 'object-damaged' });
  }
});

void test('BackupManifestReader refuses a version it does not know', () => {
  assert.throws(() => read(manifest(1).replace('Version": 1', 'Version": 3')), {
    code: 'version-unsupported',
  });
});

void test('BackupManifestReader refuses an entry that has no end', () => {
  const reader = new BackupManifestReader();
  assert.throws(() => {
    for (const chunk of [`{ "Files": [ {"Path": "`, ...Array.from({ length: 100 }, () => 'x'.repeat(1000))]) {
      assert.deepEqual([...reader.push(Buffer.from(chunk))], []);
    }
  }, /too long/);
});

void test('manifestCrc32c() prints as PostgreSQL does', () => {
  assert.equal(manifestCrc32c(0x01020304), '04030201');
});
