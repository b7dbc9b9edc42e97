import type { Clock } from '../../clock.ts';
import { HoldfastError, errorText } from '../../errors.ts';
import { copyMissingWal, copyTails } from '../../repository/copy-wal.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import { assertSameRepository, type Repository } from '../../repository/repository.ts';
import { listTails } from '../../repository/wal-tail.ts';
import { clearBehind, noteBehind } from '../behind.ts';

export interface OptionalRepositoryOptions {
  name: string;
  /** Opens it; it may be away. */
  open: () => Promise<Repository>;
  /** A required repository, which has everything. */
  from: Repository;
  identity: ClusterIdentity;
  stateDirectory: string;
  clock: Clock;
  signal: AbortSignal;
  /** Why it is behind; undefined when it has caught up. */
  problem: (error: HoldfastError | undefined) => void;
}

/** Follows the required repositories without anybody waiting for it. */
export interface OptionalRepository {
  /** There is more to copy; `name`: the newest file, undefined for a tail. */
  wake(name?: string): void;
  /** Resolves when it has ended, which it does when the signal is aborted. Never rejects. */
  readonly ended: Promise<void>;
}

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60_000;

/**
 * Copies what a required repository has to one that nothing waits for: sealed objects as they are, in order. Away or full,
 * it is noted as behind in the state directory, tried again, and copied to from where it stopped when it is back.
 */
export function followRequired(options: OptionalRepositoryOptions): OptionalRepository {
  const { clock, signal } = options;
  let wakeUp: (() => void) | undefined;
  let awake = true;
  let newest = '';
  const idle = async (): Promise<void> => {
    if (awake || signal.aborted) return;
    await new Promise<void>((resolve) => {
      wakeUp = () => {
        signal.removeEventListener('abort', resume);
        resolve();
      };
      const resume = wakeUp;
      signal.addEventListener('abort', resume, { once: true });
    });
  };
  const run = async (): Promise<void> => {
    let repository: Repository | undefined;
    let pauseMs = FIRST_PAUSE_MS;
    let behind = false;
    let after: string | undefined;
    while (!signal.aborted) {
      await idle();
      if (signal.aborted) return;
      awake = false;
      try {
        repository ??= await options.open();
        await assertSameRepository(repository, signal);
        const { failed } = await copyMissingWal(options.from, repository, options.identity, {
          ...(after !== undefined && { after }),
          onCopied: ({ kind, name }) => {
            if (kind === 'segment') after = name;
          },
          signal,
        });
        await copyTails(options.from, repository, options.identity, signal);
        await dropOldTails(options.from, repository, options.identity, signal);
        // Everything else has been copied all the same.
        const [first] = failed;
        if (first !== undefined) throw first.error;
        if (behind) {
          await clearBehind(options.stateDirectory, options.identity.systemIdentifier, options.name);
          options.problem(undefined);
        }
        behind = false;
        pauseMs = FIRST_PAUSE_MS;
      } catch (error) {
        if (isAborted(signal)) return;
        behind = true;
        // What was there may not be there any more: look at everything again.
        after = undefined;
        repository = undefined;
        awake = true;
        const problem = asHoldfastError(error);
        options.problem(problem);
        const now = clock.now();
        await noteBehind(options.stateDirectory, options.identity.systemIdentifier, {
          repository: options.name,
          since: now.toISOString(),
          first: newest,
          reason: problem.message,
          tryAgainAt: new Date(now.getTime() + pauseMs).toISOString(),
        });
        await clock.sleep(pauseMs, signal).catch(() => undefined);
        pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
      }
    }
  };
  return {
    wake(name) {
      if (name !== undefined) newest = name;
      awake = true;
      wakeUp?.();
    },
    ended: run().catch((error: unknown) => {
      options.problem(asHoldfastError(error));
    }),
  };
}

/** Tails that the other repository has replaced by longer ones, or by the whole segment. */
async function dropOldTails(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  signal: AbortSignal,
): Promise<void> {
  const kept = new Set<string>();
  for await (const { key } of listTails(from, identity, { signal })) kept.add(key);
  for await (const { key } of listTails(to, identity, { signal })) {
    if (!kept.has(key)) await to.storage.delete(key, { signal });
  }
}

function isAborted(signal: AbortSignal): boolean {
  return signal.aborted;
}

function asHoldfastError(error: unknown): HoldfastError {
  return error instanceof HoldfastError
    ? error
    : new HoldfastError('assertion', errorText(error), { cause: error });
}
