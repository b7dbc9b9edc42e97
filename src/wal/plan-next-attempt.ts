import type { Behind } from './behind.ts';

const FIRST_MS = 10_000;
const LONGEST_MS = 300_000;

/**
 * When a repository that is behind is to be tried again: after 10 s, then after as long again as it has been behind
 * (which doubles the time from attempt to attempt), at most 5 minutes later. A `since` in the future (the clock was set
 * back) counts as now. Pure.
 */
export function planNextAttempt(behind: Pick<Behind, 'since'> | undefined, now: Date): Date {
  const since = behind === undefined ? Number.NaN : Date.parse(behind.since);
  const elapsed = Number.isNaN(since) ? 0 : now.getTime() - since;
  return new Date(now.getTime() + Math.min(Math.max(elapsed, FIRST_MS), LONGEST_MS));
}

/** Whether a noted repository may be tried now. A time further ahead than any backoff (a clock set back) counts as due. */
export function isDue(behind: Pick<Behind, 'tryAgainAt'>, now: Date): boolean {
  const waitMs = Date.parse(behind.tryAgainAt) - now.getTime();
  return !(waitMs > 0 && waitMs <= LONGEST_MS);
}
