import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { Clock } from '../../clock.ts';
import { HoldfastError } from '../../errors.ts';
import { type Lsn, formatLsn, lsnOf } from '../../postgres/lsn.ts';
import type { ReplicationConnection } from '../../postgres/replication.ts';
import { type TimelineHistory, type TimelineId, historyFileName } from '../../postgres/timeline.ts';
import { segmentOfLsn, segmentStart, walSegmentName } from '../../postgres/wal-segment.ts';
import type { WalStreamControl } from '../../postgres/wal-stream.ts';
import { walStreamRefusal } from '../../postgres/wal-stream-refusal.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import { assertSameRepository, type Repository } from '../../repository/repository.ts';
import { findTailChain } from '../../repository/wal-tail.ts';
import type { OpenSource } from './choose-source.ts';
import { planStart, type StartPlace } from './plan-start.ts';
import type { Publisher } from './publisher.ts';
import { type ReceivedSegment, receiveSegment } from './received-segment.ts';
import { PiecePool } from './segment-frames.ts';
import type { SegmentSpool } from './segment-spool.ts';
import { readStoredReach } from './stored-reach.ts';
import { dropLeftTails } from './tail-writer.ts';

export interface SessionOptions {
  source: OpenSource;
  identity: ClusterIdentity;
  slot: string;
  segmentSize: number;
  required: readonly Repository[];
  spool: SegmentSpool;
  publisher: Publisher;
  tailIntervalMs: number;
  /** Commits wait for this receiver: what comes is made durable at once. */
  synchronous: boolean;
  /** Where to begin instead of where the repositories say: behind a gap that the user accepted. */
  beginAt?: StartPlace;
  /** A timeline to follow although a repository holds a newer one. */
  onTimeline: TimelineId | undefined;
  /** Ends when everything before it is durable. */
  until: Lsn | undefined;
  clock: Clock;
  /** Ends the session politely: what has come is stored first. */
  stop: AbortSignal;
  /** Breaks it off. */
  signal: AbortSignal;
  observe: SessionObserver;
}

export interface SessionObserver {
  streaming(place: { server: string; timeline: TimelineId; from: Lsn }): void;
  received(lsn: Lsn, serverEnd: Lsn): void;
  switched(from: TimelineId, to: TimelineId, at: Lsn): void;
}

/** How long a server that shuts down is kept waiting for a repository that does not answer. */
const SHUTDOWN_WAIT_MS = 5000;

/** Thrown where the WAL to go on with cannot be had any more. */
export class WalIsGone extends Error {
  override readonly name = 'WalIsGone';
  readonly place: StartPlace;

  constructor(place: StartPlace, cause: unknown) {
    super('the server no longer has the wal to go on with', { cause });
    this.place = place;
  }
}

/**
 * One connection's worth of receiving: finds out where to go on, streams one timeline after the other, and hands segments
 * to the publisher. Resolves when it was asked to end, or the server shuts down, after everything received is stored; rejects when the connection
 * or the publisher fails, after an attempt to store what has come.
 */
export async function receiveOnce(options: SessionOptions): Promise<void> {
  const begin = options.beginAt ?? (await findStart(options));
  delete options.beginAt;
  await assertNotAhead(options, begin);
  for (const repository of options.required) {
    await dropLeftTails(repository, options.identity, options.signal);
  }
  await options.spool.clear();
  try {
    await followTimelines(options, begin);
  } finally {
    await options.spool.close();
  }
}

async function followTimelines(options: SessionOptions, begin: StartPlace): Promise<void> {
  const { source, publisher } = options;
  for (let place = begin; ;) {
    await storeHistory(options, place.timeline);
    const stream: Stream = new Stream(options, place);
    let end;
    try {
      end = await stream.run(source.replication);
    } catch (error) {
      await stream.storeRest().catch(() => undefined);
      if (walStreamRefusal(error) === 'wal-removed') throw new WalIsGone(place, error);
      throw error;
    }
    await stream.storeRest();
    publisher.assertWorking();
    if (end.kind === 'stopped') return;
    options.observe.switched(place.timeline, end.nextTimeline, end.switchPoint);
    place = {
      timeline: end.nextTimeline,
      segment: segmentOfLsn(end.switchPoint, options.segmentSize),
    };
  }
}

async function findStart(options: SessionOptions): Promise<StartPlace> {
  const { source, required, identity, segmentSize, signal, onTimeline } = options;
  const { replication, timeline } = source;
  const history = timeline === 1 ? undefined : (await replication.timelineHistory(timeline)).history;
  const reaches = await Promise.all(
    required.map(async (repository) => {
      // An empty directory in its place would look as if nothing had ever been stored.
      await assertSameRepository(repository, signal);
      return readStoredReach(repository, identity, segmentSize, signal);
    }),
  );
  const relevant =
    onTimeline !== timeline ? reaches : reaches.map((reach) => withoutNewer(reach.next, timeline));
  const plan = planStart({ timeline, history, reaches: relevant, segmentSize });
  switch (plan.kind) {
    case 'resume':
      return plan.at;
    case 'begin':
      return firstPlace(options, history);
    case 'outdated':
      if (source.inRecovery) {
        throw new HoldfastError(
          'connection-failed',
          `${source.server} is a standby on timeline ${timeline}, but timeline ${plan.stored} is stored already: waiting until it follows, or its primary answers`,
        );
      }
      throw new HoldfastError(
        'wal-conflict',
        `${source.server} is on timeline ${timeline}, but timeline ${plan.stored} is stored already, which it does not come from: it is an old primary, or a copy`,
        {
          hint: `point the configuration at the present primary; if this one is to go on all the same: --timeline ${timeline}`,
          context: { server: source.server, timeline, storedTimeline: plan.stored },
        },
      );
  }
}

/** What is stored the server must have, too: a standby may still get it, a primary was set back. */
async function assertNotAhead(options: SessionOptions, place: StartPlace): Promise<void> {
  const { source } = options;
  if (place.timeline !== source.timeline) return;
  const stored = await storedEnd(options, place);
  if (stored <= source.position) return;
  const reach = `${source.server} has wal up to ${formatLsn(source.position)}, but ${formatLsn(stored)} on timeline ${place.timeline} is stored already`;
  if (source.inRecovery) {
    throw new HoldfastError('connection-failed', `${reach}: waiting until this standby has got so far`);
  }
  throw new HoldfastError('wal-conflict', `${reach}: this primary was set back to an earlier state`, {
    hint: 'what it writes now would contradict what is stored: promote a restored copy (it begins a new timeline) instead of going on with an old state',
    context: {
      server: source.server,
      position: formatLsn(source.position),
      stored: formatLsn(stored),
    },
  });
}

/** Up to where any of the repositories has the segment to begin with, by tails. */
async function storedEnd(
  { required, identity, segmentSize, signal }: SessionOptions,
  { timeline, segment }: StartPlace,
): Promise<Lsn> {
  const name = walSegmentName(timeline, segment, segmentSize);
  const chains = await Promise.all(
    required.map(async (repository) => findTailChain(repository, identity, name, signal)),
  );
  const end = Math.max(0, ...chains.map((chain) => chain?.end ?? 0));
  return lsnOf(segmentStart(segment, segmentSize) + BigInt(end));
}

function withoutNewer(
  next: ReadonlyMap<TimelineId, bigint>,
  timeline: TimelineId,
): { next: ReadonlyMap<TimelineId, bigint> } {
  return { next: new Map([...next].filter(([stored]) => stored <= timeline)) };
}

/** Nothing is stored yet: everything that the slot has held counts. */
async function firstPlace(
  { source, slot, segmentSize }: SessionOptions,
  history: TimelineHistory | undefined,
): Promise<StartPlace> {
  const held = (await source.replication.readSlot(slot))?.restartLsn ?? source.position;
  const segment = segmentOfLsn(held, segmentSize);
  const ancestor = history?.entries.find(({ end }) => segmentOfLsn(end, segmentSize) > segment);
  return { timeline: ancestor?.timeline ?? source.timeline, segment };
}

/**
 * Before anything of a timeline, what it comes from: without that, nobody could restore along it. Also where it is stored
 * already: another content would mean another timeline of that number, and it must be durable.
 */
async function storeHistory(options: SessionOptions, timeline: TimelineId): Promise<void> {
  if (timeline === 1) return;
  const { source, spool, publisher } = options;
  const name = historyFileName(timeline);
  const { bytes } = await source.replication.timelineHistory(timeline);
  const path = join(spool.directory, name);
  await mkdir(spool.directory, { recursive: true, mode: 0o700 });
  await writeFile(path, bytes, { mode: 0o600 });
  await publisher.history(name, path);
}

/** The stream of one timeline. */
class Stream {
  readonly #options: SessionOptions;
  readonly #place: StartPlace;
  readonly #pool = new PiecePool();
  #control: WalStreamControl | undefined;
  #segment: ReceivedSegment | undefined;
  /** Bytes that came while the next segment's file was being made are not lost: the sink waits for it. */
  #serverEnd: Lsn = lsnOf(0n);
  #received: Lsn;
  #isOver = false;
  #tailing = false;
  #tailWanted = false;
  #failed: ((error: unknown) => void) | undefined;
  #storedUpTo: Lsn;

  constructor(options: SessionOptions, place: StartPlace) {
    this.#options = options;
    this.#place = place;
    this.#received = segmentStart(place.segment, options.segmentSize);
    this.#storedUpTo = this.#received;
  }

  async run(replication: ReplicationConnection): ReturnType<ReplicationConnection['streamWal']> {
    const { slot, stop, signal, observe, tailIntervalMs, source, publisher } = this.#options;
    const { timeline } = this.#place;
    const start = this.#received;
    publisher.begin(start, () => this.#report());
    this.#segment = await this.#open(this.#place.segment);
    const broken = new AbortController();
    this.#failed = (error) => broken.abort(error);
    const onStop = (): void => this.#control?.stop();
    const timer = setInterval(() => this.#tick(), tailIntervalMs);
    let giveUp: NodeJS.Timeout | undefined;
    stop.addEventListener('abort', onStop, { once: true });
    try {
      return await replication.streamWal(
        { slot, timeline, start, signal: AbortSignal.any([signal, broken.signal]) },
        {
          started: (control) => {
            this.#control = control;
            observe.streaming({ server: source.server, timeline, from: start });
            this.#report();
            if (stop.aborted) control.stop();
          },
          write: (bytes) => this.#write(bytes),
          heard: (serverEnd, _time, replyRequested) => {
            this.#serverEnd = serverEnd;
            observe.received(this.#received, serverEnd);
            if (replyRequested) this.#report();
          },
          // It waits until we have confirmed everything: that must not take a whole interval, nor for ever.
          serverStops: () => {
            this.#tick();
            giveUp = setTimeout(() => this.#control?.stop(), SHUTDOWN_WAIT_MS);
          },
        },
      );
    } catch (error) {
      throw broken.signal.aborted ? broken.signal.reason : error;
    } finally {
      clearInterval(timer);
      clearTimeout(giveUp);
      stop.removeEventListener('abort', onStop);
      this.#failed = undefined;
    }
  }

  /** Stores what has come and is not stored; called when the stream has ended. */
  async storeRest(): Promise<void> {
    const { publisher } = this.#options;
    const segment = this.#segment;
    this.#segment = undefined;
    this.#isOver = true;
    // Whoever asks whether everything is stored must know of what came last.
    this.#options.observe.received(this.#received, this.#serverEnd);
    if (segment !== undefined && !segment.isComplete) {
      await publisher.tail(segment);
      await segment.discard();
    }
    await publisher.settle();
    this.#report();
  }

  async #open(segment: bigint): Promise<ReceivedSegment> {
    const { spool, segmentSize, identity, synchronous } = this.#options;
    const { timeline } = this.#place;
    const systemIdentifier = this.#options.source.systemIdentifier;
    if (systemIdentifier !== identity.systemIdentifier) {
      throw new HoldfastError('assertion', 'the server belongs to another cluster');
    }
    const behind = this.#serverEnd >= segmentStart(segment + 2n, segmentSize);
    const isBehind = behind && !synchronous && segment !== this.#place.segment;
    return receiveSegment(spool, this.#pool, { timeline, segment, segmentSize, systemIdentifier, isBehind });
  }

  #write(bytes: Buffer): Promise<void> | undefined {
    const segment = this.#segment;
    if (segment === undefined) throw new HoldfastError('assertion', 'wal came after the end of its stream');
    const taken = segment.append(bytes);
    this.#received = segment.received;
    if (!segment.isComplete) {
      if (this.#options.synchronous) this.#tick();
      return this.#pool.room();
    }
    return this.#nextSegment(segment, bytes.subarray(taken));
  }

  async #nextSegment(complete: ReceivedSegment, rest: Buffer): Promise<void> {
    const { publisher, segmentSize, until } = this.#options;
    publisher.complete(complete);
    await publisher.room();
    const next = await this.#open(segmentOfLsn(complete.end, segmentSize));
    if (this.#isOver) {
      // The connection was lost meanwhile.
      await next.discard();
      return;
    }
    this.#segment = next;
    if (until !== undefined && complete.end >= until) this.#control?.stop();
    if (rest.length > 0) await this.#write(rest);
  }

  /** Makes what has come so far durable; one at a time. */
  #tick(): void {
    this.#tailWanted = true;
    if (!this.#tailing) void this.#tailLoop();
  }

  async #tailLoop(): Promise<void> {
    const { publisher, synchronous, until } = this.#options;
    this.#tailing = true;
    try {
      while (this.#tailWanted) {
        this.#tailWanted = false;
        const segment = this.#segment;
        if (segment !== undefined && segment.received > this.#storedUpTo) {
          const reached = segment.received;
          await publisher.tail(segment);
          this.#storedUpTo = reached;
        }
        publisher.assertWorking();
        this.#report();
        if (until !== undefined && publisher.flushed >= until) this.#control?.stop();
        // Without a segment the stream is over, and what is left is stored behind it: nothing here would ever end this.
        if (synchronous && this.#segment !== undefined && this.#received > this.#storedUpTo) {
          this.#tailWanted = true;
        }
      }
    } catch (error) {
      this.#failed?.(error);
    } finally {
      this.#tailing = false;
    }
  }

  /** The server may remove what is flushed, so it is told no more than what is durable, nor more than it sent. */
  #report(): void {
    const { publisher, observe } = this.#options;
    const received = this.#received;
    this.#control?.report({ written: received, flushed: publisher.flushed });
    observe.received(received, this.#serverEnd);
  }
}

/** For messages. */
export function describePlace(place: StartPlace, segmentSize: number): string {
  return `${formatLsn(segmentStart(place.segment, segmentSize))} on timeline ${place.timeline}`;
}
