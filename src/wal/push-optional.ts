import { setTimeout as sleep } from 'node:timers/promises';

import { errorText, HoldfastError } from '../errors.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { type Behind, noteBehind, readBehind } from './behind.ts';
import { isCatchingUp } from './catch-up-lock.ts';
import { isDue, planNextAttempt } from './plan-next-attempt.ts';

/** Noted by a push that left a repository out which was just then caught up: the repository itself is well. */
const MISSED_MEANWHILE = 'one more file was archived while it was being caught up';

/** How long optional repositories may hold a push up in all, after the required ones confirmed. */
const GRACE_MS = 2000;

/** A repository that a push tries and does not wait for. */
export interface OptionalRepository {
  name: string;
  /** Called when it is first needed; may fail. */
  open: (signal: AbortSignal) => Promise<Repository>;
}

export interface OptionalOptions {
  repositories: readonly OptionalRepository[];
  /** Where this host notes what did not get there. */
  stateDirectory: string;
  now: () => Date;
  /** Starts a process that catches up, and does not wait for it. Called at most once per repository. */
  startCatchUp: (repository: string, identity: ClusterIdentity) => void;
  /** Default 2 s. */
  graceMs?: number;
}

type Store = (
  repository: Repository,
  how: { commitAfter?: Promise<unknown>; signal?: AbortSignal },
) => Promise<unknown>;

/** What one file's way into the optional repositories comes to. Disposing ends what is still under way. */
export interface OptionalAttempt extends AsyncDisposable {
  /** The required repositories have confirmed: waits for the others as long as the grace lasts. Never throws. */
  settle(): Promise<void>;
}

/** One repository during one push. */
interface Lane {
  repository: OptionalRepository;
  controller: AbortController;
  opened: Promise<Repository> | undefined;
  /** What was sent before: headers become visible in order here too. */
  before: Promise<unknown>;
  graceLeftMs: number;
  /** From an earlier run. */
  noted: Behind | undefined;
  /** As the note says that it cannot be reached. */
  leftOut: boolean;
  failure: { first: string; reason: string } | undefined;
}

/**
 * The optional repositories of one run of `wal push`, which may store several files. Each gets the files at the same time
 * as the required ones; one that fails, or is not done when the grace is over, is left alone from then on, noted as
 * behind on this host, and not tried by later pushes before its time: a separate process makes up for what it lacks.
 */
export class PushToOptional {
  readonly #options: OptionalOptions;
  #lanes: Promise<Lane[]> | undefined;
  #identity: ClusterIdentity | undefined;
  #first = '';

  constructor(options: OptionalOptions) {
    this.#options = options;
  }

  /** Begins to store one file. Never throws: what fails is kept for `finish`. */
  async attempt(
    identity: ClusterIdentity,
    name: string,
    store: Store,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<OptionalAttempt> {
    this.#identity ??= identity;
    this.#first ||= name;
    const lanes = await (this.#lanes ??= this.#makeLanes(identity));
    const ended = new AbortController();
    const going = lanes
      .filter((lane) => !lane.leftOut && lane.failure === undefined)
      .map((lane) => {
        const signals = [lane.controller.signal, ended.signal, ...(signal === undefined ? [] : [signal])];
        const storing = storeIn(lane, store, AbortSignal.any(signals));
        storing.catch(() => undefined);
        lane.before = storing;
        return { lane, storing };
      });
    return {
      settle: async () => {
        await Promise.all(going.map(async ({ lane, storing }) => settleOne(lane, storing, name)));
      },
      async [Symbol.asyncDispose]() {
        ended.abort();
      },
    };
  }

  /** Notes what is behind and has catching up started where it is due. Never throws. */
  async finish(): Promise<void> {
    const identity = this.#identity;
    if (identity === undefined || this.#lanes === undefined) return;
    const { systemIdentifier } = identity;
    const { stateDirectory, now, startCatchUp } = this.#options;
    const lanes = await this.#lanes;
    if (lanes.every((lane) => lane.noted === undefined && lane.failure === undefined)) return;
    const notes = await readBehind(stateDirectory, systemIdentifier);
    for (const { repository, noted, leftOut, failure } of lanes) {
      const at = now();
      const note = notes.find((one) => one.repository === repository.name);
      const next = { repository: repository.name, since: at.toISOString(), first: this.#first };
      const noteAs = async (reason: string, tryAgainAt: Date, first = this.#first): Promise<void> =>
        noteBehind(stateDirectory, systemIdentifier, {
          ...next,
          first,
          reason,
          tryAgainAt: tryAgainAt.toISOString(),
        });
      if (failure !== undefined) {
        await noteAs(failure.reason, planNextAttempt(note, at), failure.first);
      } else if (note === undefined && leftOut) {
        // Whoever caught up may have looked before this file was stored, and is done.
        await noteAs(MISSED_MEANWHILE, at);
      } else if (note !== undefined && noted !== undefined && isDue(note, at)) {
        if (await isCatchingUp(stateDirectory, systemIdentifier, repository.name)) continue;
        await noteAs(note.reason, planNextAttempt(note, at));
        startCatchUp(repository.name, identity);
      }
    }
  }

  async #makeLanes({ systemIdentifier }: ClusterIdentity): Promise<Lane[]> {
    const { repositories, stateDirectory, graceMs = GRACE_MS } = this.#options;
    const notes = await readBehind(stateDirectory, systemIdentifier);
    return repositories.map((repository) => {
      const noted = notes.find((one) => one.repository === repository.name);
      return {
        repository,
        controller: new AbortController(),
        opened: undefined,
        before: Promise.resolve(),
        graceLeftMs: graceMs,
        noted,
        leftOut: noted !== undefined && noted.reason !== MISSED_MEANWHILE,
        failure: undefined,
      };
    });
  }
}

async function storeIn(lane: Lane, store: Store, signal: AbortSignal): Promise<void> {
  const commitAfter = lane.before;
  lane.opened ??= lane.repository.open(lane.controller.signal);
  await store(await lane.opened, { commitAfter, signal });
}

/** All waiting together never exceeds the grace of this repository, however many files there are. */
async function settleOne(lane: Lane, storing: Promise<void>, name: string): Promise<void> {
  const began = performance.now();
  const done = new AbortController();
  try {
    const late = sleep(lane.graceLeftMs, undefined, { signal: done.signal }).then(() => {
      throw new HoldfastError('storage-unavailable', 'it was too slow to be waited for');
    });
    late.catch(() => undefined);
    await Promise.race([storing, late]);
  } catch (error) {
    lane.controller.abort();
    const first = lane.failure === undefined || name < lane.failure.first ? name : lane.failure.first;
    lane.failure = { first, reason: lane.failure?.reason ?? errorText(error) };
  } finally {
    done.abort();
    lane.graceLeftMs = Math.max(0, lane.graceLeftMs - (performance.now() - began));
  }
}
