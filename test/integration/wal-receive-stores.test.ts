/** Repositories that are away or full while WAL comes in. */
import assert from 'node:assert/strict';
import { mkdir, rename } from 'node:fs/promises';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { readBehind } from '../../src/wal/behind.ts';
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
const SETTINGS = { wal_keep_size: '512MB', wal_sender_timeout: '2s' };

void describe('wal receive', () => {
  void it('wal receive reports nothing while a repository is away, keeps its connection, and catches up', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({
      urls: [cluster.url],
      repositories: [{ name: 'one' }, { name: 'two' }],
    });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await untilFlushed(cluster, receiver);
    const two = lab.roots['two'] ?? '';
    await rename(two, `${two}-away`);
    // An unmounted disk leaves an empty directory.
    await mkdir(two);
    const load = await startLoad(cluster, { bytes: 4000 });
    await receiver.event('problem', (event) => event['repository'] === 'two');
    await eventually('load', () => load.acknowledged.length > 2000);
    const identity = await identityOf(cluster);
    const before = await flushedLsn(cluster);
    await sleep(5000);
    assert.equal(await flushedLsn(cluster), before, 'reported what is not in every repository');
    assert.deepEqual(
      await cluster.sql(
        "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' OR state = 'catchup'",
      ),
      [{ application_name: 'holdfast' }],
    );
    assert.equal(
      receiver.events.filter(({ event }) => event === 'streaming').length,
      1,
      'it had to connect again',
    );
    await load.stop();
    await rename(two, `${two}-empty`);
    await rename(`${two}-away`, two);
    const lsn = await untilFlushed(cluster, receiver);
    for (const name of ['one', 'two']) {
      const stored = await storedWal(await lab.repository(name), identity, MIB);
      assert.ok(stored.end >= lsn, name);
      assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB)), name);
    }
    assert.equal((await receiver.end()).status, 0, receiver.text());
  });

  void it('wal receive is never delayed by an optional repository, and lets it catch up', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({
      urls: [cluster.url],
      repositories: [{ name: 'main' }, { name: 'spare', required: false }],
    });
    const spare = lab.roots['spare'] ?? '';
    await rename(spare, `${spare}-away`);
    await using receiver = await lab.start();
    await receiver.event('streaming');
    const load = await startLoad(cluster);
    await eventually('load', () => load.acknowledged.length > 1000);
    await load.stop();
    const lsn = await untilFlushed(cluster, receiver);
    const identity = await identityOf(cluster);
    await eventually('the note', async () => {
      return (await readBehind(lab.stateDirectory, identity.systemIdentifier)).length === 1;
    });
    await rename(`${spare}-away`, spare);
    await eventually(
      'the copy',
      async () => {
        return (await storedWal(await lab.repository('spare'), identity, MIB)).end >= lsn;
      },
      receiver.text,
      40,
    );
    const stored = await storedWal(await lab.repository('spare'), identity, MIB);
    assert.ok(stored.bytes.equals(await walBytesOnDisk(cluster, stored, MIB)));
    await eventually('the end of the note', async () => {
      return (await readBehind(lab.stateDirectory, identity.systemIdentifier)).length === 0;
    });
    assert.equal((await receiver.end()).status, 0, receiver.text());
  });
});
