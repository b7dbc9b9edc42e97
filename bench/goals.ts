import type { ManyFilesResult } from './many-files.ts';
import type { Results, Step, StepResult } from './rounds.ts';
import { median, size } from './statistics.ts';
import type { WalResults } from './wal.ts';

export type GoalId =
  | 'first-wall'
  | 'same-wall'
  | 'same-bytes'
  | 'changed-wall'
  | 'changed-bytes'
  | 'restore-wall'
  | 'memory'
  | 'memory-many-files'
  | 'wal-push'
  | 'wal-fetch';

export interface Verdict {
  id: GoalId;
  what: string;
  goal: string;
  measured: string;
  met: boolean;
}

export interface Everything {
  results: Results;
  wal: WalResults;
  /** Peak memory of every other command of Holdfast that ran. */
  otherCommands: { name: string; peakBytes: number }[];
  manyFiles: ManyFilesResult | undefined;
}

const MEMORY_LIMIT = 256 * 1024 * 1024;
const WAL_LIMIT_MS = 250;

/** Every goal with what came of it. Ratios are of medians. */
export function judge({ results, wal, otherCommands, manyFiles }: Everything): Verdict[] {
  const ratio = (
    id: GoalId,
    what: string,
    limit: number,
    [ours, theirs]: readonly [Step, Step],
    value: (result: StepResult) => number,
  ): Verdict => {
    const found = median(results[ours].map(value)) / median(results[theirs].map(value));
    const shown = found < 0.01 ? found.toFixed(4) : found.toFixed(2);
    return { id, what, goal: `≤ ${limit} ×`, measured: `${shown} ×`, met: found <= limit };
  };
  const wall = (result: StepResult): number => result.wallMs;
  const bytes = (result: StepResult): number => result.backupBytes;
  const same = ['sameHoldfast', 'sameFull'] as const;
  const changed = ['changedHoldfast', 'changedIncremental'] as const;
  const memory = (id: GoalId, what: string, peaks: number[]): Verdict => {
    const found = Math.max(...peaks);
    return { id, what, goal: '≤ 256 MiB', measured: size(found), met: found <= MEMORY_LIMIT };
  };
  const walTime = (id: GoalId, what: string, found: number): Verdict => ({
    id,
    what,
    goal: `≤ ${WAL_LIMIT_MS} ms`,
    measured: `${found.toFixed(0)} ms`,
    met: found <= WAL_LIMIT_MS,
  });
  const ourSteps = (['firstHoldfast', 'sameHoldfast', 'changedHoldfast', 'restoreHoldfast'] as const).flatMap(
    (step) => results[step].map(({ peakBytes }) => peakBytes),
  );
  return [
    ratio(
      'first-wall',
      'first backup, wall, of pgBackRest full',
      0.75,
      ['firstHoldfast', 'firstPgbackrest'],
      wall,
    ),
    ratio('same-wall', 'nothing changed, wall, of pgBackRest full', 0.3, same, wall),
    ratio('same-bytes', 'nothing changed, bytes, of pgBackRest full', 0.005, same, bytes),
    ratio('changed-wall', '20,000 transactions, wall, of pgBackRest incremental', 0.4, changed, wall),
    ratio('changed-bytes', '20,000 transactions, bytes, of pgBackRest incremental', 0.5, changed, bytes),
    ratio(
      'restore-wall',
      'restore, wall, of pgBackRest restore',
      0.9,
      ['restoreHoldfast', 'restorePgbackrest'],
      wall,
    ),
    memory('memory', 'peak memory of any command', [
      ...ourSteps,
      ...otherCommands.map(({ peakBytes }) => peakBytes),
    ]),
    ...(manyFiles === undefined
      ? []
      : [
          memory(
            'memory-many-files',
            `the same with ${manyFiles.files.toLocaleString('en')} files`,
            manyFiles.commands.map(({ measured }) => measured.peakBytes),
          ),
        ]),
    walTime('wal-push', '`wal push` of one 16 MiB segment, whole process', median(wal.push.holdfast)),
    walTime('wal-fetch', '`wal fetch` of one 16 MiB segment, whole process', median(wal.fetch.holdfast)),
  ];
}
