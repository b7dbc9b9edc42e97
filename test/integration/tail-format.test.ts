/** What `docs/repository-format.md` says of tails, against the code: the reader in Python has to give them back. */
import assert from 'node:assert/strict';
import { lstat, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { nextSegmentName, type WalSegmentName } from '../../src/postgres/wal-segment.ts';
import { findTailChain, prepareTail, storeTail } from '../../src/repository/wal-tail.ts';
import { pushWal } from '../../src/wal/push.ts';
import { createFormatLab, type FormatLab, withChange } from '../harness/format-lab.ts';

/** Stores some of the segment that is being written as tails, with one left over that a longer one replaced. */
async function storeTails(lab: FormatLab): Promise<{ segment: WalSegmentName; bytes: Buffer; end: number }> {
  const { cluster, repository, identity } = lab;
  await cluster.sql("select pg_logical_emit_message(true, 'test', repeat('x', 20000))");
  const [row] = await cluster.sql<{ segment: string; end: number }>(
    "select pg_walfile_name(lsn) as segment, (lsn - '0/0')::bigint % 1048576 as end from pg_current_wal_flush_lsn() as lsn",
  );
  const segment = (row?.segment ?? '') as WalSegmentName;
  const end = Number(row?.end);
  const bytes = await readFile(join(cluster.dataDir, 'pg_wal', segment));
  for (const [from, to, commit] of [
    [0, 17, undefined],
    [0, 5000, undefined],
    [3000, end - 9, 1_767_225_600_000_001n],
    [end - 9, end, 1_767_225_600_000_002n],
  ] as const) {
    const piece = await prepareTail(segment, from, Buffer.from(bytes.subarray(from, to)), commit);
    await storeTail(repository, identity, piece);
  }
  return { segment, bytes, end };
}

describe('the reader in Python', { timeout: 120_000 }, () => {
  for (const kind of ['none', 'age'] as const) {
    it(`lists and gives back what tails hold of a segment without a header, sealed with ${kind}, and refuses them damaged`, async () => {
      await using lab = await createFormatLab(kind);
      const { segment, bytes, end } = await storeTails(lab);
      const list = async (): Promise<string> => (await lab.read('tail-list')).stdout;
      const listed = { segment, end, commit: 1_767_225_600_000_002, tails: 3 };
      assert.deepEqual(JSON.parse(await list()), listed);
      const destination = join(lab.directory, 'tail');
      const { status, stdout, stderr } = await lab.read('tail', segment, destination);
      assert.equal(status, 0, stderr);
      assert.equal(Number(stdout), end);
      const expected = Buffer.concat([bytes.subarray(0, end), Buffer.alloc(bytes.length - end)]);
      assert.ok((await readFile(destination)).equals(expected));
      await rm(destination);

      const chain = await findTailChain(lab.repository, lab.identity, segment);
      assert.equal(chain?.end, end);
      for (const { key } of chain?.tails ?? []) {
        const stored = await readFile(lab.pathOf(key));
        const flipped = Buffer.from(stored);
        const middle = Math.floor(stored.length / 2);
        flipped[middle] = (flipped[middle] ?? 0) ^ 1;
        for (const changed of [flipped, stored.subarray(0, -1)]) {
          await withChange(lab.pathOf(key), changed, async () => {
            const refused = await lab.read('tail', segment, destination);
            assert.equal(refused.status, 1);
            assert.ok(refused.stderr.includes(key), `${refused.stderr} names ${key}`);
          });
        }
      }
      const next = nextSegmentName(segment, bytes.length);
      assert.equal((await lab.read('tail', next, destination)).status, 3);
      // Once the segment is whole they are of no use.
      await lab.cluster.sql('select pg_switch_wal()');
      await pushWal({
        path: join(lab.cluster.dataDir, 'pg_wal', segment),
        repositories: [lab.repository],
        cluster: { configured: [lab.identity.cluster] },
        host: 'test',
        now: () => new Date(),
      });
      assert.equal(await list(), '');
      assert.equal((await lab.read('tail', segment, destination)).status, 1);
      await assert.rejects(lstat(destination), { code: 'ENOENT' });
    });
  }
});
