import type { GoalId } from './goals.ts';

/** Why a goal was missed, and what would change that: printed below the verdicts for as long as it is missed. */
export const notes: Partial<Record<GoalId, string>> = {};
