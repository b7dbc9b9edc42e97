/** Recovery by real servers with segments fetched ahead, and everything that can happen to who fetches them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createRecoveryStage } from '../harness/recovery.ts';
import { createWalRepository } from '../harness/wal-repository.ts';
import { until } from '../harness/backup.ts';
import { existsSync } from 'node:fs';

const upTo = (last: number): number[] => Array.from({ length: last + 1 }, (_, id) => id);

for (const [segmentSizeMb, major] of [
  [1, 18],
  [16, 15],
] as const) {
  test(`wal fetch recovers 60 segments of ${segmentSizeMb} MiB, nearly all fetched ahead`, async (t) => {
    const archive = await createWalRepository();
    await using stage = await createRecoveryStage({ segmentSizeMb, major });
    await stage.fill(1, 60);
    await stage.archive(archive);
    await using copy = await stage.copy({ restore_command: archive.fetch() });
    assert.deepEqual(await copy.recover(), upTo(60));
    const started = await copy.started();
    const segments = started.filter((words) => /^wal fetch [0-9A-F]{24}$/.test(words));
    t.diagnostic(`${segments.length} segments were fetched without being ready`);
    assert.ok(segments.length < 12, started.join('\n'));
    await until('the end of prefetching', async () => (await copy.prefetchers()).length === 0);
    assert.equal(existsSync(copy.spool), false);
  });
}
