import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';

import { seededRandom } from '../../../test/seeded-random.ts';
import { failsWith } from '../../../test/sealed-object.ts';
import { runWithCrashAtEveryOperation } from '../../../test/every-operation.ts';
import { VolatileStorage } from '../../../test/volatile-storage.ts';
import { createReceiveLab, heldOf, IDENTITY, walOf } from '../../../test/receive-lab.ts';
import { openTestRepository, withStorage } from '../../../test/wal-lab.ts';
import type { Repository } from '../../repository/repository.ts';
import { listTails, prepareTail, storeTail } from '../../repository/wal-tail.ts';
import type { Storage } from '../../storage/storage.ts';
import { createTailWriter } from './tail-writer.ts';

const NEVER = new AbortController().signal;
const NAME = '000000010000000000000003' as Parameters<typeof createTailWriter>[0];
const BYTES = walOf(3);

async function tailCount(repository: Repository): Promise<number> {
  return (await Array.fromAsync(listTails(repository, IDENTITY, { segment: NAME }))).length;
}

/** The same store, behind a repository of the same name that has forgotten nothing. */
async function reopened(storage: Storage): Promise<Repository> {
  return openTestRepository(storage, 'local');
}

void describe('createTailWriter()', () => {
  void it('write() keeps a chain of all bytes in few tails, however often and whoever writes', async () => {
    await using lab = await createReceiveLab();
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 4000 }), { minLength: 1, maxLength: 60 }),
        fc.array(fc.integer({ min: 0, max: 59 }), { maxLength: 4 }),
        async (steps, restarts) => {
          const repository = await openTestRepository();
          const { segment } = await lab.begin(3);
          let writer = createTailWriter(NAME, IDENTITY);
          let end = 0;
          for (const [index, step] of steps.entries()) {
            // A receiver that starts anew gets the segment from its beginning.
            if (restarts.includes(index)) writer = createTailWriter(NAME, IDENTITY);
            segment.append(BYTES.subarray(end, end + step));
            end += step;
            await writer.write(
              repository,
              segment.file,
              { end, lastCommitTime: segment.lastCommitTime() },
              NEVER,
            );
            assert.equal(await heldOf(repository, NAME, BYTES), end);
            // As in a binary counter of the bytes.
            assert.ok(
              (await tailCount(repository)) <= Math.log2(end) + 2,
              `${await tailCount(repository)} of ${end}`,
            );
          }
          await segment.discard();
        },
      ),
      { numRuns: 60 },
    );
  });

  void it('write() of equal steps leaves logarithmically many tails', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    const { segment } = await lab.begin(3);
    const writer = createTailWriter(NAME, IDENTITY);
    let most = 0;
    for (let end = 1000; end <= 512_000; end += 1000) {
      segment.append(BYTES.subarray(end - 1000, end));
      await writer.write(repository, segment.file, { end, lastCommitTime: undefined }, NEVER);
      most = Math.max(most, await tailCount(repository));
    }
    assert.ok(most >= 2 && most <= 11, String(most));
    assert.equal(await heldOf(repository, NAME, BYTES), 512_000);
    await segment.discard();
  });

  void it('write() that is hit at any operation loses nothing it had said was there, and can be repeated', async () => {
    await using lab = await createReceiveLab();
    const ends = [5000, 9000, 10_000, 30_000];
    let said = 0;
    const write = async (repository: Repository, upTo: number): Promise<void> => {
      const writer = createTailWriter(NAME, IDENTITY);
      const { segment } = await lab.begin(3);
      try {
        let at = 0;
        for (const end of ends.filter((one) => one <= upTo)) {
          segment.append(BYTES.subarray(at, end));
          at = end;
          await writer.write(repository, segment.file, { end, lastCommitTime: undefined }, NEVER);
          said = Math.max(said, end);
        }
      } finally {
        await segment.discard();
      }
    };
    let whole: Repository | undefined;
    const { runs } = await runWithCrashAtEveryOperation({
      kinds: ['crash-before', 'crash-after', 'crash-unsynced', 'error-before', 'error-after'],
      async prepare() {
        said = 0;
        const storage = new VolatileStorage();
        whole = await reopened(storage);
        return storage;
      },
      async scenario(storage) {
        assert.ok(whole !== undefined);
        await write(withStorage(whole, storage), 30_000);
      },
      async invariant(inner, run) {
        // What is only visible may be lost at any time; it must not be what was relied upon.
        const seen = await reopened(inner);
        if (!run.kind.startsWith('error')) {
          await write(seen, 10_000);
          inner.crash();
        }
        const repository = await reopened(inner);
        assert.ok(
          (await heldOf(repository, NAME, BYTES)) >= said,
          `${await heldOf(repository, NAME, BYTES)} < ${said}`,
        );
        await write(repository, 30_000);
        assert.equal(await heldOf(repository, NAME, BYTES), 30_000);
      },
    });
    assert.ok(runs > 40, String(runs));
  });

  void it('write() refuses other bytes, also where what is stored reaches further than what has come', async () => {
    await using lab = await createReceiveLab();
    const random = seededRandom(7);
    for (const [stored, steps, differsAt] of [
      [20_000, [30_000], 10_000],
      [20_000, [10_000, 30_000], 15_000],
      [20_000, [10_000, 20_000], 15_000],
      [20_000, [19_999, 20_001], 19_999],
    ] as const) {
      const repository = await openTestRepository();
      const other = Buffer.from(BYTES);
      other.writeUInt8(other.readUInt8(differsAt) ^ (1 + Math.floor(random() * 255)), differsAt);
      await storeTail(repository, IDENTITY, await prepareTail(NAME, 0, other.subarray(0, stored), undefined));
      const before = await Array.fromAsync(listTails(repository, IDENTITY), ({ key }) => key);
      const writer = createTailWriter(NAME, IDENTITY);
      const { segment } = await lab.begin(3);
      let at = 0;
      await assert.rejects(
        async () => {
          for (const end of steps) {
            segment.append(BYTES.subarray(at, end));
            at = end;
            await writer.write(repository, segment.file, { end, lastCommitTime: undefined }, NEVER);
          }
        },
        failsWith('wal-conflict'),
        steps.join(),
      );
      const after = await Array.fromAsync(listTails(repository, IDENTITY), ({ key }) => key);
      assert.ok(
        before.every((key) => after.includes(key)),
        'something was overwritten',
      );
      await segment.discard();
    }
  });

  void it('write() goes on behind the tails that are there, without writing them again', async () => {
    await using lab = await createReceiveLab();
    const repository = await openTestRepository();
    const first = await lab.receive(3, 300_000);
    await createTailWriter(NAME, IDENTITY).write(
      repository,
      first.file,
      { end: 300_000, lastCommitTime: 5n },
      NEVER,
    );
    await first.discard();
    const second = await lab.receive(3, 301_000);
    await createTailWriter(NAME, IDENTITY).write(
      repository,
      second.file,
      { end: 301_000, lastCommitTime: 6n },
      NEVER,
    );
    await second.discard();
    const tails = await Array.fromAsync(listTails(repository, IDENTITY), ({ from, to }) => [from, to]);
    assert.deepEqual(tails, [
      [0, 300_000],
      [300_000, 301_000],
    ]);
  });
});
