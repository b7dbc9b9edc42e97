/** A receiver that is ended, or whose repository is full, while something is not stored. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';

import { createCluster, scratchDirectory } from '../harness/cluster.ts';
import {
  createLoadTable,
  createReceiverLab,
  currentLsn,
  flushedLsn,
  identityOf,
  storedWal,
  untilFlushed,
} from '../harness/receiver.ts';

const MIB = 2 ** 20;
const SETTINGS = { wal_keep_size: '512MB', wal_sender_timeout: '2s' };

void describe('wal receive', () => {
  void it('wal receive that is ended while a repository is away says what is not stored, and loses nothing', async () => {
    await using cluster = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
    await createLoadTable(cluster);
    await using lab = await createReceiverLab({ urls: [cluster.url] });
    await using receiver = await lab.start();
    await receiver.event('streaming');
    await untilFlushed(cluster, receiver);
    const root = lab.roots['local'] ?? '';
    await rename(root, `${root}-away`);
    await cluster.sql("INSERT INTO load VALUES (1, 'x')");
    await receiver.event('problem');
    const { status, ms } = await receiver.end();
    assert.equal(status, 30, receiver.text());
    assert.match(receiver.text(), /before everything received was stored/);
    assert.ok(ms < 20_000, `${ms} ms`);
    await rename(`${root}-away`, root);
    await using next = await lab.start();
    await untilFlushed(cluster, next);
    assert.ok(
      next.events.some(({ event }) => event === 'salvaged'),
      next.text(),
    );
    assert.equal((await next.end()).status, 0, next.text());
  });

  void it('wal receive waits while a repository is full', async () => {
    const mounted = join(await scratchDirectory(), 'small');
    await mkdir(mounted);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'none', mounted]);
    try {
      await using cluster = await createCluster({ segmentSizeMb: 1, settings: SETTINGS });
      await createLoadTable(cluster);
      await using lab = await createReceiverLab({
        urls: [cluster.url],
        repositories: [{ name: 'small', root: join(mounted, 'repository') }],
      });
      await using receiver = await lab.start();
      await receiver.event('streaming');
      await writeFile(join(mounted, 'other'), Buffer.alloc(2 * MIB));
      await cluster.sql(
        'INSERT INTO load SELECT n, (SELECT string_agg(md5(random()::text || n || m), $$$$) FROM generate_series(1, 60) m) FROM generate_series(1, 2500) n',
      );
      const { text } = await receiver.event('problem', (event) => event['repository'] === 'small');
      assert.match(String(text), /space|full/i);
      const reported = await flushedLsn(cluster);
      const identity = await identityOf(cluster);
      assert.ok((await storedWal(await lab.repository(), identity, MIB)).end >= reported);
      assert.ok(reported < (await currentLsn(cluster)));
      execFileSync('mount', ['-o', 'remount,size=64m', mounted]);
      const lsn = await untilFlushed(cluster, receiver);
      assert.ok((await storedWal(await lab.repository(), identity, MIB)).end >= lsn);
      await receiver.event(
        'problem',
        (event) => event['repository'] === 'small' && event['text'] === undefined,
      );
      assert.equal((await receiver.end()).status, 0, receiver.text());
    } finally {
      execFileSync('umount', ['-l', mounted]);
    }
  });
});
