import assert from 'node:assert/strict';
import { test } from 'node:test';

import { IDENTITY, walOf } from '../../../test/receive-lab.ts';
import { createWalLab, openTestRepository } from '../../../test/wal-lab.ts';
import type { WalSegmentName } from '../../postgres/wal-segment.ts';
import { storeWalFile } from '../../repository/wal-file.ts';
import { listTails, prepareTail, storeTail } from '../../repository/wal-tail.ts';
import { openWalSource } from '../wal-source.ts';
import { dropLeftTails } from './tail-writer.ts';

const NEVER = new AbortController().signal;
const WHOLE = '000000010000000000000003' as WalSegmentName;
const BEGUN = '000000010000000000000004' as WalSegmentName;

test('dropLeftTails() deletes the tails of segments that are stored whole, and no others', async () => {
  await using lab = await createWalLab();
  const repository = await openTestRepository();
  for (const [name, bytes] of [
    [WHOLE, walOf(3)],
    [BEGUN, walOf(4)],
  ] as const) {
    await storeTail(repository, IDENTITY, await prepareTail(name, 0, bytes.subarray(0, 8000), undefined));
  }
  const tails = async (): Promise<string[]> =>
    Array.fromAsync(listTails(repository, IDENTITY), ({ segment }) => segment);
  await dropLeftTails(repository, IDENTITY, NEVER);
  assert.deepEqual(await tails(), [WHOLE, BEGUN], 'neither is whole');

  await using source = await openWalSource(await lab.write(WHOLE, walOf(3)));
  const { sizeBytes, modifiedAt } = source;
  const file = {
    name: WHOLE,
    sizeBytes,
    modifiedAt,
    hash: await source.hash(),
    frames: () => source.frames(),
  };
  await storeWalFile(repository, IDENTITY, file, { host: 'test', now: () => new Date(0) });
  await dropLeftTails(repository, IDENTITY, NEVER);
  assert.deepEqual(await tails(), [BEGUN]);
});
