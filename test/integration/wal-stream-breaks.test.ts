import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError } from '../../src/errors.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import type { WalStreamControl } from '../../src/postgres/wal-stream.ts';
import { type TestCluster, availableMajors, createCluster } from '../harness/cluster.ts';
import { WalCollector, failure, plus, restartLsn, segmentStart, until } from '../harness/wal-collector.ts';
const MIB = 1024 * 1024;
const FIRST = timelineOf(1);

void describe('streamWal()', () => {
  void it('streamWal() waits for a slow sink, keeps its bytes and the connection', async () => {
    await using cluster = await createCluster({
      settings: { wal_sender_timeout: '1s', max_wal_size: '1GB' },
    });
    await using connection = await connectReplication(cluster.url);
    await connection.createPhysicalSlot('held');
    const start = await restartLsn(connection, 'held');
    await cluster.sql(
      `CREATE TABLE filled AS SELECT n, repeat(md5(n::text), 30) AS t FROM generate_series(1, 120000) n`,
    );
    const { position } = await connection.identifySystem();
    const before = process.memoryUsage();
    let got = start;
    let calls = 0;
    let isInside = false;
    let highest = 0;
    let control: WalStreamControl | undefined;
    const end = await connection.streamWal(
      { slot: 'held', timeline: FIRST, start },
      {
        started: (given) => (control = given),
        write: async (bytes, at) => {
          assert.ok(!isInside, 'nothing comes while the sink is busy');
          assert.equal(at, got);
          isInside = true;
          const copy = Buffer.from(bytes.subarray(0, 1000));
          calls += 1;
          // Thrice as long as the server waits for a sign of life.
          await (calls === 5 ? sleep(3000) : new Promise((resolve) => setImmediate(resolve)));
          assert.ok(bytes.subarray(0, 1000).equals(copy), 'the bytes stay while the promise is pending');
          got = plus(at, bytes.length);
          const { external, arrayBuffers } = process.memoryUsage();
          highest = Math.max(highest, external + arrayBuffers - before.external - before.arrayBuffers);
          isInside = false;
          if (got >= position) control?.stop();
        },
      },
    );
    assert.deepEqual(end, { kind: 'stopped' });
    assert.ok(position - start > 80 * MIB, `${position - start} bytes`);
    assert.ok(highest < 16 * MIB, `${highest} bytes more than before`);
    const log = await readFile(join(cluster.scratch, 'server.log'), 'utf8');
    assert.doesNotMatch(log, /timeout/);
  });

  void it('streamWal() rejects with what the sink throws, and at once when cancelled', async () => {
    await using cluster = await createCluster();
    for (const write of [
      () => {
        throw new RangeError('disk is full');
      },
      async () => await Promise.reject(new RangeError('disk is full')),
    ]) {
      await using connection = await connectReplication(cluster.url);
      const start = segmentStart((await connection.identifySystem()).position);
      await assert.rejects(connection.streamWal({ timeline: FIRST, start }, { write }), RangeError);
      await assert.rejects(connection.identifySystem(), failure('connection-lost', /given up/));
    }
    for (const isPaused of [true, false]) {
      await using connection = await connectReplication(cluster.url);
      const start = segmentStart((await connection.identifySystem()).position);
      const controller = new AbortController();
      const { signal } = controller;
      const sink = new WalCollector(start);
      if (isPaused) sink.onWrite = async () => await new Promise(() => undefined);
      const streamed = connection.streamWal({ timeline: FIRST, start, signal }, sink);
      await until(() => sink.position > start);
      controller.abort();
      await assert.rejects(streamed, failure('cancelled', /streaming wal .* was cancelled/));
      await assert.rejects(
        connection.streamWal({ timeline: FIRST, start, signal }, sink),
        failure('cancelled', /./),
      );
    }
  });

  void it('streamWal() ends with connection-lost when the server is killed, or silent', async () => {
    await using cluster = await createCluster();
    await using silent = await connectReplication(cluster.url);
    const { position } = await silent.identifySystem();
    const sink = new WalCollector(segmentStart(position));
    const streamed = silent.streamWal({ timeline: FIRST, start: sink.start, stallMs: 1000 }, sink);
    const rejected = assert.rejects(streamed, failure('connection-lost', /sent nothing for 1000 ms/));
    await until(() => sink.position >= position);
    // Idle for longer than that, but it answers: no reason to give up.
    await sleep(2500);
    const pid = await senderPid(cluster);
    process.kill(pid, 'SIGSTOP');
    await rejected;
    process.kill(pid, 'SIGKILL');

    await until(async () => await isReady(cluster));
    await using killed = await connectReplication(cluster.url);
    const other = new WalCollector(segmentStart(position));
    const broken = killed.streamWal({ timeline: FIRST, start: other.start }, other);
    const lost = assert.rejects(broken, failure('connection-lost', /./));
    await until(() => other.position >= position);
    await cluster.kill();
    await lost;
  });

  void it('streamWal() tells when the server shuts down and waits for what is not flushed', async () => {
    for (const major of await oldestAndNewest()) {
      await using cluster = await createCluster({ major });
      for (const answer of ['report', 'stop'] as const) {
        await using connection = await connectReplication(cluster.url);
        const { position } = await connection.identifySystem();
        const sink = new WalCollector(segmentStart(position));
        const streamed = connection.streamWal({ timeline: FIRST, start: sink.start }, sink);
        const ended = streamed.then(
          (end) => end.kind,
          (error: unknown) => (error instanceof HoldfastError ? `${error.code} ${error.message}` : 'unknown'),
        );
        await until(() => sink.position >= position);
        sink.control?.report({ written: sink.position, flushed: sink.start });
        const stopped = cluster.stop('fast');
        await until(() => sink.stops > 0);
        if (answer === 'report') sink.control?.report({ written: sink.position, flushed: sink.position });
        else sink.control?.stop();
        await stopped;
        assert.match(await ended, answer === 'report' ? /^connection-lost .* shut down$/ : /^stopped$/);
        assert.equal(sink.stops, 1);
        await cluster.start();
      }
    }
  });
});

async function oldestAndNewest(): Promise<number[]> {
  const majors = await availableMajors();
  return [...new Set([majors[0] ?? 0, majors.at(-1) ?? 0])];
}

async function senderPid(cluster: TestCluster): Promise<number> {
  const [row] = await cluster.sql<{ pid: number }>('SELECT pid FROM pg_stat_replication');
  assert.ok(row !== undefined);
  return row.pid;
}

async function isReady(cluster: TestCluster): Promise<boolean> {
  return await cluster.sql('SELECT 1').then(
    () => true,
    () => false,
  );
}
