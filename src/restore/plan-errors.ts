import { HoldfastError } from '../errors.ts';
import { type Lsn, formatLsn } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';
import type { Candidate } from './choose-backup.ts';
import { describeInstant, formatInstant } from './instant.ts';
import type { PathOutcome, PlanOptions } from './plan.ts';
import { type ReachableRange, reachableRanges } from './reachable.ts';
import { describeTarget } from './recovery-target.ts';
import { describePath, describeTimeline } from './timelines.ts';

/** One target, several branches: the user must say which. */
export function ambiguous(target: RecoveryTarget, branches: readonly PathOutcome[]): HoldfastError {
  const lines = branches.map(({ tip, path, reached }) => {
    const ends = reached === undefined ? 'does not reach it' : `stops at ${formatLsn(reached.stop.lsn)}`;
    return `${describeTimeline(tip)} (${describePath(path)}) ${ends}`;
  });
  return new HoldfastError(
    'target-ambiguous',
    `${describeTarget(target)} means different things on different branches: ${lines.join('; ')}`,
    {
      hint: `say which branch: ${branches.map(({ tip }) => `--target-timeline ${tip}`).join(' or ')}`,
      context: { timelines: branches.map(({ tip }) => tip).join(',') },
    },
  );
}

/** Why a target cannot be reached, and the nearest points that can. */
export async function unreachable(
  options: PlanOptions,
  outcomes: readonly PathOutcome[],
  candidates: readonly Candidate[],
): Promise<HoldfastError> {
  const { archive, target } = options;
  const ranges: ReachableRange[] = [];
  for (const { path } of outcomes) ranges.push(...(await reachableRanges(archive, path, candidates)));
  const tried = outcomes.flatMap((one) => one.tried);
  const gap = tried.find(({ outcome }) => outcome.kind === 'short' && outcome.gap)?.outcome;
  const reason = whyNot(options, outcomes, tried);
  const { before, after } = nearest(target, ranges);
  const points = [before && `before it: ${before}`, after && `behind it: ${after}`].filter(
    (one) => one !== undefined,
  );
  const nearby = points.length === 0 ? '' : ` (nearest ${points.join('; nearest ')})`;
  const context: Record<string, string | null> = { before: before ?? null, after: after ?? null };
  if (target.kind === 'latest' && gap?.kind === 'short') {
    const end = gap.end?.record.lsn;
    return new HoldfastError('wal-gap', `not everything can be restored: ${gap.reason}`, {
      hint:
        end === undefined
          ? 'use another repository'
          : `use another repository, or accept the loss: --target-lsn ${formatLsn(end)}`,
      context,
    });
  }
  return new HoldfastError(
    'target-unreachable',
    `${describeTarget(target)} cannot be reached: ${reason}${nearby}`,
    {
      hint: hintFor(target, archive.identity.cluster, ranges),
      context,
    },
  );
}

function whyNot(
  { archive, target, backupId, timeline }: PlanOptions,
  outcomes: readonly PathOutcome[],
  tried: readonly PathOutcome['tried'][number][],
): string {
  if (outcomes.length === 0 || tried.length === 0) {
    return typeof timeline === 'number'
      ? `no usable backup leads to ${describeTimeline(timeline)}`
      : `no usable backup leads anywhere in repository ${archive.repository.name}${archive.problems[0] === undefined ? '' : `: ${archive.problems[0]}`}`;
  }
  for (const { outcome } of tried.toReversed()) {
    if (outcome.kind === 'short') return outcome.reason;
    if (outcome.kind === 'not-found') {
      const what =
        target.kind === 'xid' ? 'no such transaction ended' : 'there is no restore point of that name';
      return `${what} in the archive behind the oldest backup; ${outcome.reason}`;
    }
  }
  const oldest = tried.at(-1);
  if (oldest?.outcome.kind === 'unusable')
    return `backup ${oldest.candidate.record.id}: ${oldest.outcome.reason}`;
  const which = backupId === undefined ? 'the oldest usable backup' : `backup ${backupId}`;
  if (oldest?.outcome.kind === 'too-new' && oldest.outcome.reason !== undefined) {
    return `${which} is not old enough: ${oldest.outcome.reason}`;
  }
  const { stop, stoppedAt } = oldest?.candidate ?? { stop: 0n as Lsn, stoppedAt: 0n };
  return `${which} is only consistent from ${formatLsn(stop)}, ${describeInstant(stoppedAt)}`;
}

function nearest(
  target: RecoveryTarget,
  ranges: readonly ReachableRange[],
): { before: string | undefined; after: string | undefined } {
  if (target.kind !== 'lsn' && target.kind !== 'time') return { before: undefined, after: undefined };
  let before: ReachableRange['to'] | undefined;
  let after: ReachableRange['from'] | undefined;
  const key = (point: { lsn: Lsn; time: bigint | undefined }): bigint | undefined =>
    target.kind === 'lsn' ? point.lsn : point.time;
  const goal = target.kind === 'lsn' ? target.lsn : target.time;
  for (const { from, to } of ranges) {
    const end = key(to) ?? key(from);
    const begin = key(from);
    if (end !== undefined && end <= goal && (before === undefined || end > (key(before) ?? -1n))) before = to;
    if (begin !== undefined && begin > goal && (after === undefined || begin < (key(after) ?? begin + 1n)))
      after = from;
  }
  return { before: before && describePoint(before), after: after && describePoint(after) };
}

function describePoint({
  lsn,
  time,
  timeline,
}: {
  lsn: Lsn;
  time: bigint | undefined;
  timeline: number;
}): string {
  return `${formatLsn(lsn)} on timeline ${timeline}${time === undefined ? '' : `, ${describeInstant(time)}`}`;
}

function hintFor(target: RecoveryTarget, cluster: string, ranges: readonly ReachableRange[]): string {
  const last = ranges.at(-1)?.to.time;
  if (target.kind === 'time' && last !== undefined && target.time > last) {
    return `for everything there is (the last commit is of ${formatInstant(last)}) give --target latest`;
  }
  return `see what can be restored: holdfast window ${cluster}`;
}
