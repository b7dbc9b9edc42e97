/** What a receiver keeps on its own disk is disposable: it may vanish at any moment. */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { createCluster } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  eventually,
  flushedLsn,
  identityOf,
  startLoad,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';
import { walBytesOnDisk } from '../harness/wal-on-disk.ts';

const MIB = 2 ** 20;

test('wal receive goes on, and loses nothing it reported, though its spool is removed under it again and again', async () => {
  await using cluster = await createCluster({ segmentSizeMb: 1, settings: { wal_keep_size: '1GB' } });
  await createLoadTable(cluster);
  await using lab = await createReceiverLab({ urls: [cluster.url] });
  const identity = await identityOf(cluster);
  await using receiver = await lab.start();
  await receiver.event('streaming');
  // A slot begins somewhere before anything is stored.
  await untilFlushed(cluster, receiver);
  const load = await startLoad(cluster);
  for (let round = 0; round < 8; round += 1) {
    await sleep(100 + Math.random() * 300);
    const reported = await flushedLsn(cluster);
    await rm(join(lab.stateDirectory, ...(round % 2 === 0 ? ['wal', 'receive', 'app.spool'] : [])), {
      recursive: true,
      force: true,
      maxRetries: 5,
    });
    assert.ok((await storedWal(await lab.repository(), identity, MIB)).end >= reported);
  }
  await eventually('load', () => load.acknowledged.length > 200);
  await load.stop();
  const lsn = await untilFlushed(cluster, receiver);
  const { status } = await receiver.end();
  assert.equal(status, 0, receiver.text());
  const stored = await storedWal(await lab.repository(), identity, MIB);
  assert.ok(stored.end >= lsn && stored.segments.length > 1);
  assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB)));
});
