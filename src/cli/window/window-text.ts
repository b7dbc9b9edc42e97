import { formatDuration } from '../../config/durations.ts';
import { describeInstant, instantOfRecord } from '../../restore/instant.ts';
import type { GapJson, RangeJson, RepositoryJson, TimelineJson, WindowJson } from './window-json.ts';

/** What `window` says, for somebody who was woken up by it. */
export function windowText(window: WindowJson): string {
  return [summaryText(window), ...window.repositories.map((one) => repositoryText(one))].join('\n\n');
}

function summaryText({ cluster, present }: WindowJson): string {
  if (present === null) return `Nothing of cluster ${cluster} can be restored.`;
  const point = present.recoveryPoint;
  const lines: string[] = [];
  if (present.state === 'reachable') {
    lines.push(
      `Cluster ${cluster} can be restored up to the newest WAL that is stored (${present.repositories.join(', ')}).`,
    );
  } else if (present.state === 'unknown') {
    lines.push(
      `Nobody can tell from here whether cluster ${cluster} can be restored up to now: the history file of timeline ${present.timeline} cannot be read without a key, and no base backup was taken on that timeline.`,
      `  → ask where the identity is, or take one: holdfast backup base ${cluster}`,
    );
  } else {
    lines.push(
      `Cluster ${cluster} CANNOT be restored up to now: ${presentProblem(present.state, present.timeline)}.`,
    );
    if (present.state !== 'orphan') lines.push(`  → holdfast backup base ${cluster}`);
  }
  if (point !== null) {
    const what =
      point.time === null
        ? 'no commit behind the backup'
        : `${shown(point.time)}${point.ageSeconds === null ? '' : `, ${age(point.ageSeconds)} ago`}`;
    lines.push(`Newest commit that can be restored: ${what}`);
    lines.push(`  up to ${point.lsn} on timeline ${point.timeline}, from ${point.repository}`);
  }
  return lines.join('\n');
}

function presentProblem(state: string, timeline: number): string {
  switch (state) {
    case 'orphan':
      return `the history file of timeline ${timeline} is missing`;
    case 'no-backup':
      return `no base backup leads to timeline ${timeline}`;
    default:
      return 'WAL is missing behind the last base backup';
  }
}

function repositoryText(repository: RepositoryJson): string {
  const { branches, gaps, timelines, problems } = repository;
  const lines = [`Repository ${repository.repository}`];
  for (const { path, ranges } of branches) {
    lines.push(`  timeline ${path}`);
    for (const range of ranges) lines.push(...rangeText(range));
    if (ranges.length === 0) lines.push('    nothing: no backup has all of its WAL');
  }
  if (branches.length === 0) lines.push('  nothing can be restored');
  if (timelines.length > 1) lines.push('  timelines, and where each left its parent', ...treeText(timelines));
  for (const gap of gaps) lines.push(...gapText(gap));
  for (const problem of problems) lines.push(`  problem: ${problem}`);
  return lines.join('\n');
}

function rangeText({ from, to, backups, gap, broken }: RangeJson): string[] {
  const many = backups === 1 ? `backup ${from.backup}` : `${backups} backups, the first ${from.backup}`;
  const last = to.time === null ? 'no commit behind the backup' : `${shown(to.time)}, the last commit`;
  const lines = [
    `    from ${from.lsn}  ${shown(from.time)}  (${many})`,
    `    to   ${to.lsn}  ${last}${to.inTail ? ' (its segment is not full yet)' : ''}`,
  ];
  if (broken !== null) lines.push(`    then it breaks off at ${broken.lsn}: ${broken.detail}`);
  else if (gap !== null) {
    const names =
      gap.firstMissing === gap.lastMissing ? gap.firstMissing : `${gap.firstMissing} to ${gap.lastMissing}`;
    lines.push(`    then a gap: ${names} missing, the archive goes on with ${gap.resumesAt}`);
  }
  return lines;
}

const CAUSES: Readonly<Record<string, string>> = {
  'never-archived': 'never archived',
  deleted: 'deleted',
  damaged: 'damaged',
  'wal-level-minimal': 'wal_level was minimal',
  'slot-lost': 'the replication slot was lost',
  'removed-by-server': 'removed by the server before it was stored',
};

function gapText(gap: GapJson): string[] {
  const names =
    gap.firstMissing === gap.lastMissing ? gap.firstMissing : `${gap.firstMissing} to ${gap.lastMissing}`;
  const count = gap.segments === 1 ? '1 segment' : `${gap.segments} segments`;
  const after = gap.lastCommitBefore === null ? undefined : `after ${shown(gap.lastCommitBefore)}`;
  const before = gap.firstCommitAfter === null ? undefined : `before ${shown(gap.firstCommitAfter)}`;
  const when = [after, before].filter((one) => one !== undefined).join(', ');
  const has = gap.filledBy.length === 0 ? '' : ` (${gap.filledBy.join(', ')} has it)`;
  const next = gap.fix ?? 'nothing to do: what is stored behind it begins with a backup of its own';
  return [
    `  gap on timeline ${gap.timeline}: ${gap.fromLsn} to ${gap.toLsn}, ${count}, ${names}`,
    ...(when === '' ? [] : [`    ${when}`]),
    `    ${CAUSES[gap.cause] ?? gap.cause}: ${gap.detail}`,
    `    → ${next}${has}`,
  ];
}

/** Children below their parents. */
function treeText(timelines: readonly TimelineJson[]): string[] {
  const lines: string[] = [];
  const add = (one: TimelineJson, depth: number): void => {
    const where =
      one.switchLsn === null
        ? one.orphan
          ? '  its history file is missing'
          : one.sealed
            ? '  its history file cannot be read without a key'
            : ''
        : `  from ${one.switchLsn}`;
    const to = one.to === null ? '  nothing stored yet' : `  stored up to ${one.to}`;
    lines.push(`    ${'   '.repeat(depth)}${depth === 0 ? '' : '└─ '}${one.timeline}${where}${to}`);
    for (const child of timelines) if (child.parent === one.timeline) add(child, depth + 1);
  };
  for (const one of timelines) if (one.parent === null) add(one, 0);
  return lines;
}

function age(seconds: number): string {
  return formatDuration(Math.round(seconds) * 1000);
}

function shown(time: string | null): string {
  return time === null ? '' : describeInstant(instantOfRecord(time));
}
