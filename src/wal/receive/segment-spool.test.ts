import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { failsWith } from '../../../test/sealed-object.ts';
import type { WalSegmentName } from '../../postgres/wal-segment.ts';
import { openSegmentSpool } from './segment-spool.ts';

const NAME = '000000010000000000000003' as WalSegmentName;
const NEXT = '000000010000000000000004' as WalSegmentName;

async function inDirectory(work: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-spool-'));
  try {
    await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

void describe('openSegmentSpool()', () => {
  void it('openSegmentSpool() keeps what is appended, and begins a segment anew', async () => {
    await inDirectory(async (directory) => {
      const spool = await openSegmentSpool(join(directory, 'a', 'b'));
      const file = await spool.create(NAME);
      file.append(Buffer.from('one '));
      await file.sync();
      file.append(Buffer.from('two'));
      assert.equal(file.sizeBytes, 7);
      assert.equal((await file.read(2, 6)).toString(), 'e tw');
      await assert.rejects(file.read(0, 8), failsWith('assertion'));
      await file.close();
      assert.equal(await readFile(file.path, 'utf8'), 'one two');
      assert.deepEqual(await spool.leftOver(), [{ name: NAME, path: file.path }]);
      const again = await spool.create(NAME);
      assert.equal(again.sizeBytes, 0);
      await again.discard();
      assert.deepEqual(await spool.leftOver(), []);
    });
  });

  void it('clear() closes and removes segments and histories, and touches nothing else', async () => {
    await inDirectory(async (directory) => {
      const spool = await openSegmentSpool(directory);
      const file = await spool.create(NAME);
      await writeFile(join(directory, NEXT), 'x');
      await writeFile(join(directory, '00000002.history'), 'x');
      await writeFile(join(directory, 'notes'), 'x');
      assert.deepEqual(
        (await spool.leftOver()).map(({ name }) => name),
        [NAME, NEXT],
      );
      await spool.clear();
      assert.deepEqual(await readdir(directory), ['notes']);
      assert.throws(() => file.append(Buffer.from('late')), failsWith('assertion'));
      await file.close();
    });
  });

  void it('clear() and leftOver() take a directory that was removed for an empty one', async () => {
    await inDirectory(async (directory) => {
      const spool = await openSegmentSpool(join(directory, 'spool'));
      await (await spool.create(NAME)).close();
      await rm(spool.directory, { recursive: true });
      assert.deepEqual(await spool.leftOver(), []);
      await spool.clear();
      await (await spool.create(NEXT)).discard();
    });
  });

  void it('append() on a full disk throws storage-full, and what came before stays readable', async () => {
    await inDirectory(async (directory) => {
      if (process.getuid?.() !== 0) {
        // Only root can mount; /dev/full is full for everybody, but holds nothing to read.
        return;
      }
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', directory]);
      try {
        const spool = await openSegmentSpool(directory);
        const file = await spool.create(NAME);
        const piece = Buffer.alloc(16 * 1024, 7);
        let taken = 0;
        assert.throws(() => {
          for (;;) {
            file.append(piece);
            taken += piece.length;
          }
        }, failsWith('storage-full'));
        assert.ok(taken > 0 && file.sizeBytes === taken);
        assert.ok((await file.read(0, taken)).equals(Buffer.alloc(taken, 7)));
        await file.sync();
        await file.discard();
        const after = await spool.create(NEXT);
        after.append(piece);
        await spool.close();
      } finally {
        execFileSync('umount', [directory]);
      }
    });
  });
});
