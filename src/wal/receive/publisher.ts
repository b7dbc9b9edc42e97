import { throwIfCancelled } from '../../cancellation.ts';
import type { Clock } from '../../clock.ts';
import { HoldfastError, errorText } from '../../errors.ts';
import { type Lsn, lsnOf } from '../../postgres/lsn.ts';
import { formatMicroseconds } from '../../postgres/timestamp.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import { assertSameRepository, type Repository } from '../../repository/repository.ts';
import { storeWalFile, type WalFileToStore } from '../../repository/wal-file.ts';
import { openWalSource } from '../wal-source.ts';
import type { ReceivedSegment } from './received-segment.ts';
import { assertSameBytes, createTailWriter, dropTails, type TailWriter } from './tail-writer.ts';

export interface PublisherOptions {
  /** Every one of them has to confirm. */
  required: readonly Repository[];
  identity: ClusterIdentity;
  segmentSize: number;
  host: string;
  clock: Clock;
  signal: AbortSignal;
  /** A complete segment is durable in every required repository. */
  committed: (segment: ReceivedSegment) => void;
  /** So is the beginning of one. */
  tailed: () => void;
  /** The server's WAL is damaged: it was stored as it is. */
  damaged: (name: string, what: string) => void;
  /** A repository does not take what it is given (undefined: it does again). It is tried again and again. */
  problem: (repository: string, error: HoldfastError | undefined) => void;
}

/** Segments that are being stored at once: so many bytes (of which larger segments are streamed), two at least. */
const IN_FLIGHT_BYTES = 32 * 1024 * 1024;
const IN_FLIGHT_MOST = 8;
/** PostgreSQL's MAXALIGN: where a record's padding is missing, a restore could not name the record's end. */
const RECORD_ALIGNMENT = 8;
const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 10_000;

/**
 * Brings what was received into every required repository, in order: a file becomes visible only when everything before
 * it is, so that a crash at any moment leaves no hole. Trouble with a store is retried until it ends or `signal` is
 * aborted; what can never succeed (`wal-conflict`, `wal-invalid`, keys) fails every later call.
 */
export class Publisher {
  readonly #options: PublisherOptions;
  readonly #limit: number;
  /** Resolves when everything handed over so far is committed. */
  #last: Promise<void> = Promise.resolve();
  #inFlight = 0;
  #waiting: (() => void)[] = [];
  #failure: unknown;
  #commitTime: string | undefined;
  #flushed: Lsn = lsnOf(0n);
  /** Where the stream began: of that segment an earlier receiver may have stored tails. */
  #begin: Lsn = lsnOf(0n);
  #listener: (() => void) | undefined;
  #tails: { segment: ReceivedSegment; writer: TailWriter } | undefined;
  #tailRunning: Promise<void> = Promise.resolve();

  constructor(options: PublisherOptions) {
    this.#options = options;
    this.#limit = Math.min(IN_FLIGHT_MOST, Math.max(2, Math.floor(IN_FLIGHT_BYTES / options.segmentSize)));
  }

  /**
   * A stream begins: from here on `flushed` speaks of its timeline, and `listener` is called whenever it moves. Nothing of
   * an earlier stream may be under way.
   */
  begin(start: Lsn, listener: () => void): void {
    this.#flushed = start;
    this.#begin = start;
    this.#listener = listener;
  }

  /** Up to where the stream is durable in every required repository. */
  get flushed(): Lsn {
    return this.#flushed;
  }

  /** Of the newest commit that is durable, RFC 3339. */
  get lastCommitTime(): string | undefined {
    return this.#commitTime;
  }

  /** Throws where nothing can be stored any more. */
  assertWorking(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Stores a timeline history file. Resolves when it is durable everywhere. */
  async history(name: string, path: string): Promise<void> {
    await this.settle();
    await this.#storeFile(path, name, undefined, Promise.resolve());
  }

  /** Takes over a complete segment. Its spool file is removed when it is stored. */
  complete(segment: ReceivedSegment): void {
    const previous = this.#last;
    // A tail of this very segment may be on its way: its file must stay until then, and it must not outlive the others.
    const lastTail = this.#tailRunning;
    this.#inFlight += 1;
    this.#last = this.#store(segment, previous, lastTail);
    this.#last.catch((error: unknown) => {
      this.#failure ??= error;
    });
    void this.#last.catch(() => undefined).then(() => this.#release());
  }

  /** Resolves when another segment may be received; undefined where it may at once. */
  room(): Promise<void> | undefined {
    if (this.#failure !== undefined) return Promise.reject(this.#asError());
    if (this.#inFlight < this.#limit) return undefined;
    return new Promise((resolve, reject) => {
      this.#waiting.push(() => (this.#failure === undefined ? resolve() : reject(this.#asError())));
    });
  }

  /** Stores what a segment has so far. When it resolves, that much is durable here and in every required repository. */
  async tail(segment: ReceivedSegment): Promise<void> {
    // A tail in front of a segment that is not there yet would be a hole after a crash.
    const previous = this.#last;
    const running = this.#tailRunning.then(async () => this.#storeTail(segment, previous));
    this.#tailRunning = running.catch(() => undefined);
    await running;
  }

  /** Resolves when everything handed over is committed. */
  async settle(): Promise<void> {
    await this.#tailRunning;
    await this.#last;
  }

  #asError(): Error {
    return this.#failure instanceof Error ? this.#failure : new Error(errorText(this.#failure));
  }

  #release(): void {
    this.#inFlight -= 1;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  async #store(segment: ReceivedSegment, previous: Promise<void>, lastTail: Promise<void>): Promise<void> {
    const { name, file } = segment;
    const summary = segment.summary();
    if (summary.damage !== undefined) this.#options.damaged(name, summary.damage);
    if (segment.start === this.#begin) await this.#compareTails(segment);
    const content = segment.content();
    const wal = { ...summary };
    if (content === undefined) {
      // Not from a file whose earlier part could not be written.
      await file.sync();
      await this.#storeFile(file.path, name, wal, previous);
    } else await this.#storeContent({ ...content, modifiedAt: this.#options.clock.now(), wal }, previous);
    await lastTail;
    await Promise.all(
      this.#options.required.map(async (repository) =>
        dropTails(repository, this.#options.identity, segment.name, this.#options.signal),
      ),
    );
    await segment.discard();
    this.#commitTime = summary.lastCommitTime ?? this.#commitTime;
    this.#options.committed(segment);
    this.#raise(segment.end);
  }

  async #compareTails({ name, file }: ReceivedSegment): Promise<void> {
    const { required, identity, segmentSize, signal } = this.#options;
    await Promise.all(
      required.map(async (repository) =>
        this.#persist(repository, async () =>
          assertSameBytes(repository, identity, name, file, segmentSize, signal),
        ),
      ),
    );
  }

  #raise(lsn: Lsn): void {
    if (lsn <= this.#flushed) return;
    this.#flushed = lsn;
    this.#listener?.();
  }

  async #storeFile(
    path: string,
    name: string,
    wal: WalFileToStore['wal'],
    previous: Promise<void>,
  ): Promise<void> {
    await using source = await openWalSource(path);
    source.prepare();
    const { sizeBytes, modifiedAt } = source;
    const file: WalFileToStore = {
      name,
      sizeBytes,
      modifiedAt,
      hash: await source.hash(),
      frames: () => source.frames(),
      ...(wal && { wal }),
    };
    await this.#storeContent(file, previous);
  }

  async #storeContent(file: WalFileToStore, previous: Promise<void>): Promise<void> {
    const { required, identity, host, clock, signal } = this.#options;
    await Promise.all(
      required.map(async (repository) =>
        this.#persist(repository, async () =>
          storeWalFile(repository, identity, file, {
            host,
            now: () => clock.now(),
            commitAfter: previous,
            signal,
          }),
        ),
      ),
    );
    // Also where a repository had it already.
    await previous;
  }

  async #storeTail(segment: ReceivedSegment, previous: Promise<void>): Promise<void> {
    await previous;
    this.assertWorking();
    // It was completed meanwhile: the whole segment is stored, or will be.
    if (segment.isComplete) return;
    if (this.#tails?.segment !== segment) {
      this.#tails = { segment, writer: createTailWriter(segment.name, this.#options.identity) };
    }
    const { writer } = this.#tails;
    // Ends of records are aligned; a slice of the stream may end anywhere.
    const reached = segment.file.sizeBytes - (segment.file.sizeBytes % RECORD_ALIGNMENT);
    const commit = segment.lastCommitTime();
    if (reached === 0) return;
    await segment.file.sync();
    const { required, signal } = this.#options;
    try {
      await Promise.all(
        required.map(async (repository) =>
          this.#persist(repository, async () =>
            writer.write(repository, segment.file, { end: reached, lastCommitTime: commit }, signal),
          ),
        ),
      );
    } catch (error) {
      this.#failure ??= error;
      throw error;
    }
    if (commit !== undefined) this.#commitTime = formatMicroseconds(commit);
    this.#options.tailed();
    this.#raise(lsnOf(segment.start + BigInt(reached)));
  }

  /** Tries until it works. Only what no waiting can mend is thrown. */
  async #persist(repository: Repository, work: () => Promise<unknown>): Promise<void> {
    const { clock, signal, problem } = this.#options;
    for (let pauseMs = FIRST_PAUSE_MS, failed = false; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      throwIfCancelled(signal);
      try {
        await assertSameRepository(repository, signal);
        await work();
        // It may have gone in between.
        await assertSameRepository(repository, signal);
        if (failed) problem(repository.name, undefined);
        return;
      } catch (error) {
        throwIfCancelled(signal);
        if (!isStoreTrouble(error)) throw error;
        failed = true;
        problem(repository.name, error);
      }
      await clock.sleep(pauseMs, signal);
    }
  }
}

/** A store that is away, full, read-only or not mounted: somebody mends it sooner or later. */
function isStoreTrouble(error: unknown): error is HoldfastError {
  if (!(error instanceof HoldfastError)) return false;
  if (error.retryable) return true;
  return [
    'storage-full',
    'storage-denied',
    'object-missing',
    'repository-missing',
    'repository-mismatch',
  ].includes(error.code);
}
