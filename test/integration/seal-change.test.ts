import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';

import { generateIdentity, parseIdentities } from '../../src/seal/identity.ts';
import { openerFor, sealerFor } from '../../src/seal/sealers.ts';
import { initializeRepository, type Repository } from '../../src/repository/repository.ts';
import { readReferences } from '../../src/repository/map-index.ts';
import { createMemoryStorage } from '../../src/storage/memory.ts';
import type { Storage } from '../../src/storage/storage.ts';
import { createCluster, scratchDirectory } from '../harness/cluster.ts';
import { backupLab, restoreFiles } from '../harness/backup.ts';

async function sealedFor(
  storage: Storage,
  key: { identity: string; recipient: string } | undefined,
): Promise<Repository> {
  const identities = key === undefined ? [] : parseIdentities(key.identity, 'the test');
  const keys = {
    sealer: await sealerFor(key === undefined ? [] : [key.recipient]),
    opener: (kind: Parameters<Repository['opener']>[0]) => openerFor(kind, identities),
  };
  return (await initializeRepository('local', storage, keys, new Date('2026-01-01T00:00:00Z'))).repository;
}

test('a backup refers to no pack that its own recipients cannot open, and to no clear one', async () => {
  await using cluster = await createCluster({ segmentSizeMb: 1 });
  const storage = createMemoryStorage();
  const [first, second] = [generateIdentity(), generateIdentity()];
  const stages: [key: typeof first | undefined, suffix: string, isNew: boolean][] = [
    [undefined, '.pack', true],
    [undefined, '.pack', false],
    [first, '.pack.age', true],
    [first, '.pack.age', false],
    [second, '.pack.age', true],
  ];
  for (const [key, suffix, isNew] of stages) {
    const repository = await sealedFor(storage, key);
    const lab = await backupLab(cluster, repository);
    const record = await lab.backup();
    const packs = await readReferences(repository, record);
    for (const { key: pack } of packs.values()) assert.ok(pack.endsWith(suffix), pack);
    assert.equal(record.previous === null, isNew);
    const { newBlocks, blocks } = record.stored;
    assert.ok(isNew ? newBlocks > 0.9 * blocks : newBlocks < 0.1 * blocks, `${newBlocks} of ${blocks}`);
    const directory = join(await scratchDirectory(), 'restored');
    const { files, bytesWritten } = await restoreFiles(directory, record, { repository });
    assert.equal(files, record.files.count);
    assert.ok(bytesWritten > 0);
  }
});
