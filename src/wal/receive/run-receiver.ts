import { hostname } from 'node:os';
import { join } from 'node:path';

import type { Clock } from '../../clock.ts';
import { errorText, HoldfastError } from '../../errors.ts';
import { type Lsn, formatLsn } from '../../postgres/lsn.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { walStreamRefusal } from '../../postgres/wal-stream-refusal.ts';
import { isWalSegmentSize, segmentOfLsn, segmentStart } from '../../postgres/wal-segment.ts';
import { chooseCluster, listHistories } from '../../repository/choose-cluster.ts';
import { copyMissingWal } from '../../repository/copy-wal.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { raiseWalHighWater } from '../../repository/wal-high-water.ts';
import { openSource, type OpenSource, type SourceCandidate } from './choose-source.ts';
import { noteGap } from './note-gap.ts';
import { followRequired, type OptionalRepository } from './optional-repository.ts';
import { Publisher } from './publisher.ts';
import { takeReceiverLock } from './receiver-lock.ts';
import { describePlace, receiveOnce, WalIsGone } from './receive-session.ts';
import { salvageSpool } from './salvage.ts';
import { openSegmentSpool, type SegmentSpool } from './segment-spool.ts';
import { judgeSynchronous } from './synchronous.ts';
import { describeHolder, ensureSlot, recreateSlot, releaseElsewhere } from './slot.ts';
import { StatusKeeper } from './status-keeper.ts';

export interface ReceiverOptions {
  cluster: string;
  /** Of the cluster's servers, in any order. */
  urls: readonly string[];
  slot: string;
  tailIntervalMs: number;
  /** Every one of them has to confirm. */
  required: readonly Repository[];
  optional: readonly { name: string; open: () => Promise<Repository> }[];
  stateDirectory: string;
  /** Go on behind WAL that cannot be had any more. */
  acceptGap: boolean;
  onTimeline?: TimelineId;
  until?: Lsn;
  clock: Clock;
  /** Asks to end: what has come is stored first. */
  signal: AbortSignal;
  report: (event: ReceiverEvent) => void;
}

export type ReceiverEvent =
  | { event: 'streaming'; server: string; timeline: number; lsn: string; slot: string }
  | { event: 'switched'; from: number; to: number; lsn: string }
  | { event: 'stored'; segment: string }
  | { event: 'salvaged'; segment: string; sizeBytes: number }
  /** `repository`: trouble with that one, else with the server. `text` undefined: it is over. */
  | { event: 'problem'; repository?: string; text: string | undefined; hint?: string }
  | { event: 'warning'; text: string }
  | { event: 'note'; text: string };

const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 10_000;
const CONNECT_MS = 10_000;
const STALL_MS = 60_000;
/** What has been received is stored within this time when the receiver is asked to end. */
const GRACE_MS = 15_000;
/** A session of a receiver that died holds the slot until the server notices. */
const SLOT_WAIT_MS = 10_000;
const OWN_SLOT_WAIT_MS = 120_000;

/**
 * Receives a cluster's WAL until `signal` is aborted, or `until` is durable: from whichever configured server is the
 * primary, else a standby, through failovers, restarts and stores that are away. Resolves when everything received is
 * durable in every required repository. Throws what no waiting can mend: `receiver-running`, `wal-gap`, `wal-conflict`,
 * `cluster-mismatch`, `privilege-missing`, `server-setting`, key and repository errors.
 */
export async function runReceiver(options: ReceiverOptions): Promise<void> {
  const { cluster, stateDirectory, clock, signal } = options;
  const directory = join(stateDirectory, 'wal', 'receive');
  await using _lock = await takeReceiverLock(join(directory, `${cluster}.lock`), cluster);
  const hard = new AbortController();
  const stopHard = (): void => void setTimeout(() => hard.abort(), GRACE_MS).unref();
  signal.addEventListener('abort', stopHard, { once: true });
  const status = new StatusKeeper({ ...options, required: options.required.map(({ name }) => name) });
  const receiver = new Receiver(options, directory, status, hard.signal);
  try {
    await receiver.salvage();
    let pauseMs = FIRST_PAUSE_MS;
    for (;;) {
      if (signal.aborted) return;
      try {
        const startedMs = clock.monotonicMs();
        try {
          await receiver.session();
        } finally {
          if (clock.monotonicMs() - startedMs > LONGEST_PAUSE_MS) pauseMs = FIRST_PAUSE_MS;
        }
        return;
      } catch (error) {
        if (isAborted(signal)) {
          const isOver = status.isEverythingStored && (isWorthWaiting(error) || isCancelled(error));
          if (isOver) return;
          throw endedEarly(error, status);
        }
        if (!isWorthWaiting(error)) throw error;
        status.problem(error);
        options.report({
          event: 'problem',
          text: error.message,
          ...(error.hint !== undefined && { hint: error.hint }),
        });
      }
      await clock.sleep(pauseMs, signal).catch(() => undefined);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  } finally {
    signal.removeEventListener('abort', stopHard);
    hard.abort();
    await receiver.end();
    await status.end();
  }
}

class Receiver {
  readonly #options: ReceiverOptions;
  readonly #directory: string;
  readonly #status: StatusKeeper;
  readonly #hard: AbortSignal;
  readonly #ending = new AbortController();
  #optional: OptionalRepository[] = [];
  readonly #told = new Map<string, string | undefined>();
  #identity: ClusterIdentity | undefined;
  #marking: Promise<void> = Promise.resolve();
  #streamed = false;
  /** Since when somebody else has streamed from the slot. */
  #heldSinceMs: number | undefined;

  constructor(options: ReceiverOptions, directory: string, status: StatusKeeper, hard: AbortSignal) {
    this.#options = options;
    this.#directory = directory;
    this.#status = status;
    this.#hard = hard;
  }

  /** What an earlier receiver left comes first, whether or not a server answers. */
  async salvage(): Promise<void> {
    const { cluster, required, clock, report } = this.#options;
    const [first] = required;
    if (first === undefined) throw new HoldfastError('assertion', 'a receiver needs a required repository');
    for await (const identity of listHistories(first, this.#hard)) {
      if (identity.cluster !== cluster) continue;
      await salvageSpool({
        spool: await this.#spoolOf(identity),
        required,
        identity,
        host: hostname(),
        now: () => clock.now(),
        signal: this.#hard,
        salvaged: (segment, sizeBytes) => report({ event: 'salvaged', segment, sizeBytes }),
      });
    }
  }

  async session(): Promise<void> {
    const { urls, slot, clock, signal, report, tailIntervalMs, required, until, onTimeline } = this.#options;
    this.#status.connecting();
    const { source, others } = await openSource({
      urls,
      applicationName: slot,
      deadlineMs: CONNECT_MS,
      stallMs: STALL_MS,
      signal: this.#hard,
    });
    try {
      const identity = await this.#identify(source);
      const segmentSize = segmentSizeOf(await source.replication.show('wal_segment_size'));
      const synchronous = judgeSynchronous(
        await source.replication.show('synchronous_standby_names'),
        slot,
        source.server,
      );
      await ensureSlot(source, slot, (text) => report({ event: 'warning', text }));
      await this.#evenOut(identity);
      const spool = await this.#spoolOf(identity);
      const publisher = this.#publisher(identity, segmentSize);
      const watch = this.#watchOthers(source, others);
      try {
        await this.#receive(source, {
          source,
          identity,
          slot,
          segmentSize,
          required,
          spool,
          publisher,
          tailIntervalMs,
          synchronous,
          onTimeline,
          until,
          clock,
          stop: AbortSignal.any([signal, watch.signal]),
          signal: this.#hard,
          observe: {
            streaming: ({ server, timeline, from }) => {
              this.#streamed = true;
              this.#heldSinceMs = undefined;
              this.#status.streaming(server, timeline);
              report({ event: 'streaming', server, timeline, lsn: formatLsn(from), slot });
            },
            received: (lsn, serverEnd) => {
              this.#status.progress(lsn, serverEnd, publisher.flushed, publisher.lastCommitTime);
            },
            switched: (from, to, at) => {
              report({ event: 'switched', from, to, lsn: formatLsn(at) });
            },
          },
        });
      } finally {
        watch.end();
      }
      if (signal.aborted || (until !== undefined && publisher.flushed >= until)) return;
      const why = watch.signal.aborted ? 'is a standby, and its primary answers again' : 'shut down';
      throw new HoldfastError('connection-lost', `${source.server} ${why}`);
    } finally {
      await source.replication.close();
    }
  }

  async end(): Promise<void> {
    this.#ending.abort();
    await Promise.all(this.#optional.map(async ({ ended }) => ended));
    await this.#marking;
  }

  async #receive(source: OpenSource, session: Parameters<typeof receiveOnce>[0]): Promise<void> {
    const { slot, report } = this.#options;
    for (;;) {
      try {
        await receiveOnce(session);
        return;
      } catch (error) {
        if (error instanceof WalIsGone) {
          await this.#gap(source, session, error);
          continue;
        }
        const refusal = walStreamRefusal(error);
        if (refusal === 'slot-active') await this.#slotIsHeld(source, error);
        else if (refusal === 'slot-missing' || refusal === 'slot-lost') {
          await recreateSlot(source, slot, (text) => report({ event: 'warning', text }));
        } else throw error;
      }
    }
  }

  /** The history WAL of this server belongs to; the first server seen decides for the life of this receiver. */
  async #identify(source: OpenSource): Promise<ClusterIdentity> {
    const { cluster, required } = this.#options;
    const { systemIdentifier } = source;
    if (this.#identity !== undefined && this.#identity.systemIdentifier !== systemIdentifier) {
      throw new HoldfastError(
        'cluster-mismatch',
        `${source.server} now has system identifier ${systemIdentifier}; it was ${this.#identity.systemIdentifier} before`,
        { hint: 'check where the address leads: another cluster may have taken it over' },
      );
    }
    this.#identity ??= await chooseCluster(
      required,
      systemIdentifier,
      { configured: [cluster], named: cluster },
      this.#hard,
    );
    this.#status.identified(systemIdentifier);
    return this.#identity;
  }

  /** What one required repository has another gets from it: the server may no longer have it. */
  async #evenOut(identity: ClusterIdentity): Promise<void> {
    const { required } = this.#options;
    for (const to of required) {
      for (const from of required) {
        if (from !== to) await copyMissingWal(from, to, identity, { signal: this.#hard });
      }
    }
  }

  async #spoolOf({ cluster, systemIdentifier }: ClusterIdentity): Promise<SegmentSpool> {
    return openSegmentSpool(join(this.#directory, `${cluster}.spool`, systemIdentifier));
  }

  #publisher(identity: ClusterIdentity, segmentSize: number): Publisher {
    const { required, clock, report, stateDirectory } = this.#options;
    this.#followOptional(identity);
    const publisher: Publisher = new Publisher({
      required,
      identity,
      segmentSize,
      host: hostname(),
      clock,
      signal: this.#hard,
      committed: ({ name, timeline, end }) => {
        report({ event: 'stored', segment: name });
        for (const one of this.#optional) one.wake(name);
        const mark = {
          timeline,
          name,
          endLsn: end,
          lastCommitTime: publisher.lastCommitTime ?? null,
          repositories: required.map((repository) => repository.name),
        };
        // One after the other: they write the same file.
        this.#marking = this.#marking.then(async () =>
          raiseWalHighWater(stateDirectory, identity.systemIdentifier, mark),
        );
      },
      tailed: () => {
        for (const one of this.#optional) one.wake();
      },
      damaged: (name, what) => {
        report({
          event: 'warning',
          text: `the server's own WAL is damaged in ${name}: ${what}; it is stored as it is, and cannot be replayed beyond that: take a new base backup`,
        });
      },
      problem: (repository, error) => {
        this.#status.repositoryProblem(repository, error);
        // It is tried every few seconds, and may be away for hours.
        if (this.#told.get(repository) === error?.message) return;
        this.#told.set(repository, error?.message);
        report({
          event: 'problem',
          repository,
          text: error?.message,
          ...(error?.hint !== undefined && { hint: error.hint }),
        });
      },
    });
    return publisher;
  }

  #followOptional(identity: ClusterIdentity): void {
    const { optional, required, stateDirectory, clock, report } = this.#options;
    const [from] = required;
    if (this.#optional.length > 0 || from === undefined) return;
    this.#optional = optional.map(({ name, open }) => {
      let last = '';
      return followRequired({
        name,
        open,
        from,
        identity,
        stateDirectory,
        clock,
        signal: this.#ending.signal,
        problem: (error) => {
          this.#status.repositoryProblem(name, error);
          if (error?.message === last) return;
          last = error?.message ?? '';
          report({ event: 'problem', repository: name, text: error?.message });
        },
      });
    });
  }

  /** Throws unless the user accepts the gap; then the slot begins anew and the gap is written down. */
  async #gap(
    source: OpenSource,
    session: Parameters<typeof receiveOnce>[0],
    error: WalIsGone,
  ): Promise<void> {
    const { acceptGap, slot, required, clock, report, cluster } = this.#options;
    const { segmentSize, identity } = session;
    const { timeline, segment } = error.place;
    const from = segmentStart(segment, segmentSize);
    const what = `${source.server} no longer has the wal from ${describePlace(error.place, segmentSize)} on, which is not stored either`;
    const gap = { timeline, fromLsn: from, noticedAt: clock.now().toISOString(), host: hostname() };
    if (!acceptGap) {
      const toLsn = segmentStart(segment + 1n, segmentSize);
      await noteGap(
        required,
        identity,
        { ...gap, toLsn, cause: 'removed-by-server', detail: what },
        this.#hard,
      );
      throw new HoldfastError('wal-gap', `${what}: it is lost, and nothing was skipped`, {
        hint: `"holdfast wal receive ${cluster} --accept-gap" goes on behind it; then take a new base backup: holdfast backup base ${cluster}`,
        context: { server: source.server, timeline, lsn: formatLsn(from) },
        cause: error,
      });
    }
    const restart = await recreateSlot(source, slot, () => undefined);
    const begin = segmentOfLsn(restart, segmentSize);
    if (begin <= segment) {
      throw new HoldfastError('wal-gap', `${what}, and a new slot does not help`, { cause: error });
    }
    const toLsn = segmentStart(begin, segmentSize);
    await noteGap(required, identity, { ...gap, toLsn, cause: 'slot-lost', detail: what }, this.#hard);
    report({
      event: 'warning',
      text: `WAL from ${formatLsn(from)} to ${formatLsn(toLsn)} on timeline ${timeline} is lost; take a new base backup now: holdfast backup base ${cluster}`,
    });
    session.beginAt = { timeline: source.timeline, segment: begin };
  }

  /** The session of a receiver that was killed may be there for a moment longer; another receiver stays. */
  async #slotIsHeld(source: OpenSource, error: unknown): Promise<void> {
    const { clock, signal, slot, cluster } = this.#options;
    const now = clock.monotonicMs();
    this.#heldSinceMs ??= now;
    // Our own connection that was lost may be there until the server's wal_sender_timeout is over.
    const waitMs = this.#streamed ? OWN_SLOT_WAIT_MS : SLOT_WAIT_MS;
    if (now - this.#heldSinceMs < waitMs) {
      await clock.sleep(500, signal);
      return;
    }
    throw new HoldfastError(
      'receiver-running',
      `the replication slot ${slot} on ${source.server} is in use by ${await describeHolder(source.url, slot, signal)}`,
      {
        hint: `one receiver for each cluster is enough; stop that one, or give this one a slot of its own (clusters.${cluster}.wal.slot)`,
        context: { slot, server: source.server },
        cause: error,
      },
    );
  }

  /** While a standby is streamed from: looks for the primary. Also drops slots of ours that nobody will use. */
  #watchOthers(
    source: OpenSource,
    others: readonly SourceCandidate[],
  ): { signal: AbortSignal; end: () => void } {
    const { slot, report, urls } = this.#options;
    const found = new AbortController();
    const ending = new AbortController();
    const signal = AbortSignal.any([ending.signal, this.#hard]);
    void releaseElsewhere({ source, others, slot, signal, say: (text) => report({ event: 'note', text }) });
    if (source.inRecovery && urls.length > 1) {
      void this.#lookForPrimary(source, signal).then((isThere) => {
        if (isThere) found.abort();
      });
    }
    return { signal: found.signal, end: () => ending.abort() };
  }

  async #lookForPrimary(source: OpenSource, signal: AbortSignal): Promise<boolean> {
    const { clock, urls, slot } = this.#options;
    const others = urls.filter((url) => url !== source.url);
    for (;;) {
      try {
        await clock.sleep(LONGEST_PAUSE_MS, signal);
        const answer = await openSource({
          urls: others,
          applicationName: `${slot}_probe`,
          deadlineMs: CONNECT_MS,
          stallMs: CONNECT_MS,
          signal,
        });
        await answer.source.replication.close();
        if (!answer.source.inRecovery && answer.source.timeline >= source.timeline) return true;
      } catch {
        if (isAborted(signal)) return false;
      }
    }
  }
}

function segmentSizeOf(text: string): number {
  const [, number = '', unit = ''] = /^(\d+)(MB|GB|kB|B)?$/.exec(text) ?? [];
  const scale = { B: 1, kB: 1024, MB: 1024 ** 2, GB: 1024 ** 3 }[unit] ?? 1;
  const size = Number(number) * scale;
  if (!isWalSegmentSize(size)) throw new HoldfastError('server-error', `"${text}" is not a wal segment size`);
  return size;
}

const STORE_AWAY: ReadonlySet<string> = new Set([
  'storage-full',
  'storage-denied',
  'repository-missing',
  'repository-mismatch',
]);

/** Servers and stores come back; what is wrong for good does not. */
function isWorthWaiting(error: unknown): error is HoldfastError {
  if (!(error instanceof HoldfastError)) return false;
  return error.retryable || STORE_AWAY.has(error.code);
}

/** It was asked to end, and could not store everything that had come: the server still has it. */
function endedEarly(error: unknown, status: StatusKeeper): unknown {
  if (status.isEverythingStored || !(isWorthWaiting(error) || isCancelled(error))) return error;
  const problem = status.unstored() ?? errorText(error);
  return new HoldfastError('storage-unavailable', `ended before everything received was stored: ${problem}`, {
    hint: 'the server keeps it for the next receiver',
    cause: error,
  });
}

function isCancelled(error: unknown): boolean {
  return error instanceof HoldfastError && error.code === 'cancelled';
}

function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}
