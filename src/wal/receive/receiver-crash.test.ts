/** A receiver that dies, or whose stores and spool fail, at every operation: what it reported as flushed is stored. */
import assert from 'node:assert/strict';
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

import { historyText, openTestRepository, SEGMENT_SIZE, SYSTEM_IDENTIFIER } from '../../../test/wal-lab.ts';
import { runWithCrashAtEveryOperation } from '../../../test/every-operation.ts';
import { seededRandom } from '../../../test/seeded-random.ts';
import { VolatileStorage } from '../../../test/volatile-storage.ts';
import { WalWriter } from '../../../test/wal-writer.ts';
import { type Clock, systemClock } from '../../clock.ts';
import { HoldfastError } from '../../errors.ts';
import { formatLsn, type Lsn, lsnOf } from '../../postgres/lsn.ts';
import type { ReplicationConnection } from '../../postgres/replication.ts';
import { parseTimelineHistory, type TimelineId, timelineOf } from '../../postgres/timeline.ts';
import {
  parseWalSegmentName,
  segmentStart,
  type WalSegmentName,
  walSegmentName,
} from '../../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHeader, readWholeWalFile } from '../../repository/wal-file.ts';
import { listWal } from '../../repository/wal-listing.ts';
import { findTailChain, listTails, readTailChain } from '../../repository/wal-tail.ts';
import type { Storage } from '../../storage/storage.ts';
import { Publisher } from './publisher.ts';
import { receiveOnce } from './receive-session.ts';
import { openSegmentSpool } from './segment-spool.ts';

const IDENTITY: ClusterIdentity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };
const SIZE = BigInt(SEGMENT_SIZE);
const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
/** What a server sends at once; segments end within. */
const CHUNK = 700_000;

/** Nobody waits for a store that fails once. */
const clock: Clock = { ...systemClock, sleep: async () => new Promise((resolve) => setImmediate(resolve)) };

interface Branch {
  bytes: Buffer;
  start: Lsn;
  end: Lsn;
}

/** The WAL of a primary that was promoted in its third segment, and went on into the fourth. */
function makeHistory(): { branches: Map<number, Branch>; switchPoint: Lsn } {
  const parent = new WalWriter({ start: lsnOf(SIZE), segmentSize: SEGMENT_SIZE });
  const child = new WalWriter({ start: lsnOf(3n * SIZE), segmentSize: SEGMENT_SIZE });
  const random = seededRandom(7);
  const fill = (writer: WalWriter, until: Lsn, firstXid: number): void => {
    for (let xid = firstXid; writer.end < until; xid += 1) {
      writer.record(
        10,
        0x00,
        xid,
        Buffer.from(Array.from({ length: 30_000 }, () => Math.floor(random() * 256))),
      );
      writer.commit(xid, 1_800_000_000_000_000n + BigInt(xid));
    }
  };
  fill(parent, lsnOf(3n * SIZE + 300_000n), 100);
  fill(child, lsnOf(4n * SIZE + 200_000n), 1000);
  const switchPoint = parent.end;
  const childBytes = child.bytes();
  // The child's first file begins with the parent's bytes. Its records behind the switch are of no interest here.
  const parentBytes = parent.bytes();
  parentBytes.copy(childBytes, 0, 2 * SEGMENT_SIZE, Number(switchPoint - SIZE));
  return {
    switchPoint,
    branches: new Map([
      [1, { bytes: parentBytes, start: parent.start, end: switchPoint }],
      [2, { bytes: childBytes, start: child.start, end: child.end }],
    ]),
  };
}

const HISTORY = makeHistory();
const END = branchOf(2).end;
const HISTORY_FILE = Buffer.from(historyText([1, formatLsn(HISTORY.switchPoint)]));

function branchOf(timeline: number): Branch {
  const branch = HISTORY.branches.get(timeline);
  assert(branch !== undefined);
  return branch;
}

/** A server that gives away, and forgets, what it is told is flushed. */
class ForgetfulServer {
  /** By timeline. */
  readonly flushed = new Map<number, Lsn>();

  connection(): ReplicationConnection {
    return {
      server: 'fake',
      identifySystem: async () => Promise.reject(new Error('not asked')),
      show: async () => Promise.reject(new Error('not asked')),
      timelineHistory: async () => ({
        fileName: '00000002.history',
        bytes: HISTORY_FILE,
        history: parseTimelineHistory(timelineOf(2), HISTORY_FILE.toString()),
      }),
      baseBackup: async () => Promise.reject(new Error('not asked')),
      createPhysicalSlot: async () => Promise.reject(new Error('not asked')),
      readSlot: async () => ({ restartLsn: lsnOf(SIZE), restartTimeline: timelineOf(1) }),
      dropSlot: async () => Promise.reject(new Error('not asked')),
      streamWal: async ({ timeline, start, signal }, sink) => {
        const { bytes, start: first, end } = branchOf(timeline);
        const told = this.flushed.get(timeline) ?? first;
        assert.ok(
          start >= told - (told % SIZE),
          `${formatLsn(start)} is gone: ${formatLsn(told)} was flushed`,
        );
        assert.ok(timeline > 1 || !this.flushed.has(2), 'the receiver goes back to a timeline it had left');
        const stopped = new AbortController();
        sink.started?.({
          report: ({ flushed }) => {
            const before = this.flushed.get(timeline) ?? first;
            assert.ok(flushed <= end, 'more is flushed than there is');
            this.flushed.set(timeline, flushed > before ? flushed : before);
          },
          stop: () => stopped.abort(),
        });
        for (let at = start; at < end && !stopped.signal.aborted;) {
          signal?.throwIfAborted();
          const to = lsnOf(end - at < CHUNK ? end : at + BigInt(CHUNK));
          await sink.write(Buffer.from(bytes.subarray(Number(at - first), Number(to - first))), at);
          at = to;
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        if (timeline === 1) {
          return { kind: 'timeline-ended', nextTimeline: timelineOf(2), switchPoint: HISTORY.switchPoint };
        }
        while (!stopped.signal.aborted) {
          signal?.throwIfAborted();
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        return { kind: 'stopped' };
      },
      close: async () => undefined,
      [Symbol.asyncDispose]: async () => undefined,
    };
  }
}

/** Receives until everything there is was reported as flushed. */
async function receive(
  server: ForgetfulServer,
  repository: Repository,
  spoolDirectory: string,
): Promise<void> {
  const ending = new AbortController();
  const publisher = new Publisher({
    required: [repository],
    identity: IDENTITY,
    segmentSize: SEGMENT_SIZE,
    host: 'test',
    clock,
    signal: ending.signal,
    committed: () => undefined,
    tailed: () => undefined,
    damaged: () => undefined,
    problem: () => undefined,
  });
  try {
    await receiveOnce({
      source: {
        url: 'fake',
        server: 'fake',
        inRecovery: false,
        systemIdentifier: SYSTEM_IDENTIFIER as never,
        timeline: timelineOf(2),
        position: END,
        replication: server.connection(),
      },
      identity: IDENTITY,
      slot: 'holdfast',
      segmentSize: SEGMENT_SIZE,
      required: [repository],
      spool: await openSegmentSpool(spoolDirectory),
      publisher,
      tailIntervalMs: 60_000,
      // Every chunk gives a tail, without waiting for a clock.
      synchronous: true,
      onTimeline: undefined,
      until: END,
      clock,
      stop: new AbortController().signal,
      signal: ending.signal,
      observe: { streaming: () => undefined, received: () => undefined, switched: () => undefined },
    });
  } finally {
    ending.abort();
  }
}

/** The stored bytes of a timeline, from its first segment to the first thing that is missing; each one verified. */
async function stored(repository: Repository, timeline: TimelineId): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let segment = branchOf(timeline).start / SIZE; ; segment += 1n) {
    const name: WalSegmentName = walSegmentName(timeline, segment, SEGMENT_SIZE);
    const header = await readWalHeader(repository, IDENTITY, name);
    if (header === undefined) {
      const chain = await findTailChain(repository, IDENTITY, name);
      if (chain !== undefined) parts.push(...(await Array.fromAsync(readTailChain(repository, chain))));
      return Buffer.concat(parts);
    }
    parts.push(await readWholeWalFile(repository, header, SEGMENT_SIZE));
  }
}

/** A store that takes its time for the first segment, so that what follows it could get there before. */
function slowAtFirst(storage: Storage): Storage {
  return {
    description: storage.description,
    features: storage.features,
    async put(key, source, options) {
      if (!key.includes('/wal-tail/') && key.includes(walSegmentName(timelineOf(1), 1n, SEGMENT_SIZE))) {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      return storage.put(key, source, options);
    },
    get: (key, options) => storage.get(key, options),
    head: async (key, options) => storage.head(key, options),
    list: (prefix, options) => storage.list(prefix, options),
    delete: async (key, options) => storage.delete(key, options),
    confirm: async (key) => storage.confirm(key),
  };
}

/** What was reported as flushed is there, nothing else than what the server sent, and nothing behind a hole. */
async function assertKept(server: ForgetfulServer, repository: Repository): Promise<void> {
  for (const timeline of [timelineOf(1), timelineOf(2)]) {
    const { bytes, start } = branchOf(timeline);
    const kept = await stored(repository, timeline);
    const found = new Set<bigint>();
    for await (const entry of listWal(repository, IDENTITY, { timeline })) {
      if (entry.kind === 'segment') found.add(parseWalSegmentName(entry.name, SEGMENT_SIZE).segmentNumber);
    }
    for await (const tail of listTails(repository, IDENTITY, { timeline })) {
      found.add(parseWalSegmentName(tail.segment, SEGMENT_SIZE).segmentNumber);
    }
    for (const segment of found) {
      assert.ok(
        segment * SIZE < start + BigInt(kept.length),
        `timeline ${timeline}: ${segment} lies behind a hole`,
      );
    }
    if (timeline > 1 && found.size > 0) {
      assert.ok(await readWalHeader(repository, IDENTITY, '00000002.history'), 'wal without its history');
    }
    assert.ok(
      kept.equals(bytes.subarray(0, kept.length)),
      `timeline ${timeline}: other bytes than the server's`,
    );
    const flushed = server.flushed.get(timeline) ?? start;
    // Of a timeline that was left, what counts in the segment of the switch is the child's.
    const wanted = timeline === 1 && server.flushed.has(2) ? segmentStart(3n, SEGMENT_SIZE) : flushed;
    assert.ok(
      start + BigInt(kept.length) >= wanted,
      `timeline ${timeline}: ${formatLsn(flushed)} was flushed, ${formatLsn(lsnOf(start + BigInt(kept.length)))} is stored`,
    );
  }
}

async function scratch(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'hf-receiver-'));
  t.after(async () => rm(directory, { recursive: true, force: true }));
  return directory;
}

test('receiveOnce() that dies or meets an error at every operation: what it reported is stored, and the next one completes it', async (t) => {
  const directory = await scratch(t);
  let server = new ForgetfulServer();
  let round = 0;
  const { runs } = await runWithCrashAtEveryOperation<VolatileStorage>({
    kinds:
      SCALE > 1
        ? ['crash-before', 'crash-after', 'crash-unsynced', 'error-before', 'error-after']
        : ['crash-before', 'crash-unsynced', 'error-after'],
    prepare: async () => {
      server = new ForgetfulServer();
      round += 1;
      const storage = new VolatileStorage();
      await openTestRepository(storage);
      return storage;
    },
    scenario: async (storage) =>
      receive(server, await openTestRepository(slowAtFirst(storage)), join(directory, String(round))),
    invariant: async (inner, { acknowledged }) => {
      inner.crash();
      const repository = await openTestRepository(inner);
      await assertKept(server, repository);
      if (!acknowledged) {
        // On another host: nothing of the spool is left.
        await receive(server, repository, join(directory, `${round} again`));
        await assertKept(server, repository);
      }
      assert.equal((await stored(repository, timelineOf(2))).length, Number(END - branchOf(2).start));
    },
  });
  assert.ok(runs > 50, `only ${runs} faults were tried`);
  t.diagnostic(`${runs} faults`);
});

test('receiveOnce() syncs what it received before it says so, and never relies on a file whose sync failed', async (t) => {
  const directory = await scratch(t);
  const probe = await open(join(directory, 'probe'), 'w');
  const prototype = Object.getPrototypeOf(probe) as { datasync: () => Promise<void> };
  await probe.close();
  const real = prototype.datasync;
  for (let at = 1; ; at += 1) {
    const server = new ForgetfulServer();
    const repository = await openTestRepository(new VolatileStorage());
    let calls = 0;
    // As a kernel does: the pages that could not be written are dropped, and the next call finds nothing to complain of.
    const mocked = t.mock.method(prototype, 'datasync', async function (this: { fd: number }) {
      calls += 1;
      if (calls !== at) return real.call(this);
      const handle = await open(`/proc/self/fd/${this.fd}`, 'r+');
      const { size } = await handle.stat();
      await handle.write(Buffer.alloc(Math.min(size, 100_000)), 0, undefined, Math.max(0, size - 100_000));
      await handle.close();
      throw Object.assign(new Error('EIO: i/o error, fdatasync'), { code: 'EIO' });
    });
    const outcome = await receive(server, repository, join(directory, String(at))).then(
      () => undefined,
      (error: unknown) => error,
    );
    mocked.mock.restore();
    await assertKept(server, repository);
    if (calls < at) {
      assert.equal(outcome, undefined);
      assert.ok(at > 3, 'hardly anything was synced');
      break;
    }
    assert.ok(outcome instanceof HoldfastError && outcome.code === 'storage-unavailable', String(outcome));
    assert.match(outcome.message, /EIO/);
    await receive(server, repository, join(directory, String(at)));
    await assertKept(server, repository);
    assert.ok(at < 100);
  }
});
