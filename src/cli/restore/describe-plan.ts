import { formatSize } from '../../config/sizes.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import { describeInstant, formatInstant, instantOfRecord } from '../../restore/instant.ts';
import type { RestorePlan } from '../../restore/plan.ts';
import { describeTarget } from '../../restore/recovery-target.ts';
import { describePath } from '../../restore/timelines.ts';

/** The plan for `--json`. */
export function planJson(plan: RestorePlan): Record<string, unknown> {
  const { stop, backup } = plan;
  return {
    cluster: plan.identity.cluster,
    systemIdentifier: plan.identity.systemIdentifier,
    repository: plan.repository.name,
    backup: backup.id,
    backupStoppedAt: backup.stoppedAt,
    target: describeTarget(plan.target),
    timelines: plan.path.map(({ timeline, begin }) => ({ timeline, begin: formatLsn(begin) })),
    segments: plan.segments,
    tail: plan.tail === undefined ? null : { ...plan.tail, endLsn: formatLsn(plan.tail.endLsn) },
    bytes: plan.bytes,
    promised: {
      lsn: formatLsn(stop.lsn),
      timeline: stop.timeline,
      lastCommitTime: stop.lastCommit === undefined ? null : formatInstant(stop.lastCommit.time),
      lastCommitXid: stop.lastCommit?.xid ?? null,
    },
    stop: { how: stop.how, reason: stop.reason },
    missing: [],
    notes: plan.notes,
  };
}

/** The plan for people. */
export function planText(plan: RestorePlan): string {
  const { stop, backup, segments, bytes } = plan;
  const commit = stop.lastCommit;
  const unfinished =
    plan.tail === undefined ? '' : `, the last not complete but stored up to ${formatLsn(plan.tail.endLsn)}`;
  const lines = [
    ['Target', describeTarget(plan.target)],
    [
      'Backup',
      `${backup.id}, consistent from ${backup.stopLsn} (${describeInstant(instantOfRecord(backup.stoppedAt))})`,
    ],
    [
      'Repository',
      `${plan.repository.name}, cluster ${plan.identity.cluster} (system identifier ${plan.identity.systemIdentifier})`,
    ],
    ['Timelines', describePath(plan.path)],
    [
      'WAL',
      `${segments.first} to ${segments.last}: ${segments.count === 1 ? '1 segment' : `${segments.count} segments`}, all there${unfinished}`,
    ],
    ['Stops at', `${formatLsn(stop.lsn)} on timeline ${stop.timeline}: ${stop.reason}`],
    [
      'Last commit',
      commit === undefined
        ? 'none behind the backup'
        : `${describeInstant(commit.time)}${commit.xid === undefined ? '' : `, transaction ${commit.xid}`}`,
    ],
    ['Writes', formatSize(bytes.write)],
    [
      'Reads',
      `${formatSize(bytes.readBackup)} of backup, ${formatSize(bytes.readWal)} of WAL (stored sizes)`,
    ],
    ...plan.notes.map((note): [string, string] => ['Note', note]),
  ];
  return lines.map(([title = '', text = '']) => `${title.padEnd(12)} ${text}`).join('\n');
}
