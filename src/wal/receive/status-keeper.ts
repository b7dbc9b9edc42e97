import { hostname } from 'node:os';

import type { Clock } from '../../clock.ts';
import type { HoldfastError } from '../../errors.ts';
import { type Lsn, formatLsn } from '../../postgres/lsn.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { type ReceiverStatus, writeReceiverStatus } from '../receiver-status.ts';

export interface StatusKeeperOptions {
  cluster: string;
  slot: string;
  stateDirectory: string;
  required: readonly string[];
  optional: readonly { name: string }[];
  clock: Clock;
}

const WRITE_EVERY_MS = 1000;

/** Keeps the status file of a receiver, written about once a second while anything changes. Trouble with it is ignored. */
export class StatusKeeper {
  readonly #directory: string;
  readonly #clock: Clock;
  readonly #status: ReceiverStatus;
  readonly #timer: NodeJS.Timeout;
  #isDirty = true;
  #unstoredBytes = 0n;
  #writing: Promise<void> = Promise.resolve();

  constructor(options: StatusKeeperOptions) {
    const { cluster, slot, stateDirectory, required, optional, clock } = options;
    const now = clock.now().toISOString();
    const repository = (name: string, isRequired: boolean): ReceiverStatus['repositories'][number] => ({
      name,
      required: isRequired,
      durableLsn: null,
      problem: null,
      behindSince: null,
    });
    this.#directory = stateDirectory;
    this.#clock = clock;
    this.#status = {
      pid: process.pid,
      host: hostname(),
      cluster,
      systemIdentifier: null,
      startedAt: now,
      updatedAt: now,
      state: 'connecting',
      problem: null,
      server: null,
      slot,
      timeline: null,
      receivedLsn: null,
      flushedLsn: null,
      serverLsn: null,
      lastCommitTime: null,
      repositories: [
        ...required.map((name) => repository(name, true)),
        ...optional.map(({ name }) => repository(name, false)),
      ],
    };
    this.#timer = setInterval(() => this.#write(), WRITE_EVERY_MS).unref();
    this.#write();
  }

  connecting(): void {
    if (this.#status.state !== 'waiting') this.#status.state = 'connecting';
    this.#isDirty = true;
  }

  identified(systemIdentifier: string): void {
    this.#status.systemIdentifier = systemIdentifier;
    this.#isDirty = true;
  }

  streaming(server: string, timeline: TimelineId): void {
    Object.assign(this.#status, { state: 'streaming', problem: null, server, timeline });
    this.#isDirty = true;
  }

  progress(received: Lsn, serverEnd: Lsn, flushed: Lsn, lastCommitTime: string | undefined): void {
    this.#unstoredBytes = received - flushed;
    this.#status.receivedLsn = formatLsn(received);
    this.#status.serverLsn = formatLsn(serverEnd);
    this.#status.flushedLsn = formatLsn(flushed);
    this.#status.lastCommitTime = lastCommitTime ?? this.#status.lastCommitTime;
    for (const repository of this.#status.repositories) {
      if (repository.required) repository.durableLsn = this.#status.flushedLsn;
    }
    this.#isDirty = true;
  }

  /** The server: nothing comes until it is over. */
  problem(error: HoldfastError): void {
    this.#status.state = 'waiting';
    this.#status.problem = error.message;
    this.#isDirty = true;
  }

  repositoryProblem(name: string, error: HoldfastError | undefined): void {
    for (const repository of this.#status.repositories) {
      if (repository.name !== name) continue;
      repository.problem = error?.message ?? null;
      repository.behindSince =
        error === undefined ? null : (repository.behindSince ?? this.#clock.now().toISOString());
    }
    this.#isDirty = true;
  }

  /** Whether everything that came is durable in every required repository. */
  get isEverythingStored(): boolean {
    return this.#unstoredBytes <= 0n;
  }

  /** Why something that was received is not stored, if that is so. */
  unstored(): string | undefined {
    return (
      this.#status.repositories.find(({ required, problem }) => required && problem !== null)?.problem ??
      undefined
    );
  }

  async end(): Promise<void> {
    clearInterval(this.#timer);
    this.#status.state = 'stopped';
    this.#isDirty = true;
    this.#write();
    await this.#writing;
  }

  #write(): void {
    if (!this.#isDirty) return;
    this.#isDirty = false;
    this.#status.updatedAt = this.#clock.now().toISOString();
    const status = structuredClone(this.#status);
    this.#writing = this.#writing
      .then(async () => writeReceiverStatus(this.#directory, status))
      .catch(() => undefined);
  }
}
