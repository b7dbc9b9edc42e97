import { cancellation, throwIfCancelled } from './cancellation.ts';
import { assert } from './errors.ts';

/** Time as a dependency, so that tests can own it. */
export interface Clock {
  /** Wall time. May jump; never for measuring how long something took. */
  now(): Date;
  /** Milliseconds from an arbitrary start that never jump back. May stand still while the machine is suspended. */
  monotonicMs(): number;
  /**
   * Waits `ms` milliseconds (any length; `Infinity` waits for the signal). Throws `cancelled`, or the signal's reason
   * where that is a `HoldfastError`, as soon as `signal` is aborted.
   */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

/** Node fires a timer of more than 2^31-1 ms at once, so longer waits are cut in pieces. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => new Date(),
  monotonicMs: () => performance.now(),
  sleep: async (ms, signal) => {
    assert(!Number.isNaN(ms), 'a duration is not a number');
    throwIfCancelled(signal);
    const end = performance.now() + ms;
    for (let left = ms; left > 0; left = end - performance.now()) await timer(timerDelay(left), signal);
  },
};

/** The delay to give a timer for one piece of a wait: at least 1 ms (a shorter wait would spin), never too long. */
export function timerDelay(leftMs: number): number {
  return Math.min(Math.max(Math.ceil(leftMs), 1), TIMER_MAX_MS);
}

async function timer(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const onAbort = (): void => {
      clearTimeout(handle);
      if (signal !== undefined) reject(cancellation(signal));
    };
    const handle = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, delayMs);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}
