import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import { describeInstant } from '../../restore/instant.ts';
import type { RestorePlan } from '../../restore/plan.ts';
import type { Proof } from '../../restore/proof.ts';
import type { RecoveryRequest } from '../../restore/recovery-target.ts';
import type { RestoredFiles } from '../../restore/restore-files.ts';
import type { RestoreTarget } from '../../restore/target-directory.ts';
import { shellWord } from '../launcher-path.ts';

/** What to type next, where the server was not started. */
export function describeNext(
  plan: RestorePlan,
  request: RecoveryRequest,
  { directory, owner }: RestoreTarget,
  binDirectory: string | undefined,
): string {
  const control = binDirectory === undefined ? 'pg_ctl' : `${binDirectory}/pg_ctl`;
  const as = owner === undefined ? '' : `setpriv --reuid ${owner.uid} --regid ${owner.gid} --clear-groups `;
  const word = plain(directory);
  // The owner may not be allowed to write beside the directory.
  const log = owner === undefined ? `${word}.log` : plain(`${directory}/server.log`);
  const promised = formatLsn(plan.stop.lsn);
  const then =
    request.action === 'promote'
      ? 'When it accepts writes, recovery has ended'
      : request.action === undefined
        ? 'It follows the archive'
        : `It will ${request.action} at its target`;
  return [
    `Restored to ${directory}. Nothing is proven before PostgreSQL has replayed the WAL. Start it:`,
    `  ${as}${control} -D ${word} -l ${log} -w -t 86400 start`,
    `${then}; this must show ${promised}${request.action === undefined ? ' or more' : ''}:`,
    `  psql -Atc 'select pg_last_wal_replay_lsn()' postgres`,
    'Or let Holdfast start it and prove it: the same command with --delta --start.',
    `Archiving is ${archiving(plan)}.`,
  ].join('\n');
}

export interface ProvenRestore {
  plan: RestorePlan;
  proof: Proof;
  written: RestoredFiles;
  target: RestoreTarget;
  writeMs: number;
  totalMs: number;
}

/** What was restored, to where, how long it took, and how it was checked. */
export function describeProof({ plan, proof, written, target, writeMs, totalMs }: ProvenRestore): string {
  const { stop, backup } = plan;
  const phases = [
    `files ${formatDuration(writeMs)}`,
    `recovery ${formatDuration(proof.recoveryMs)}`,
    ...(proof.promotionMs === null ? [] : [`promotion ${formatDuration(proof.promotionMs)}`]),
  ];
  const commit =
    stop.lastCommit === undefined
      ? 'no commit behind the backup'
      : `last commit ${describeInstant(stop.lastCommit.time)}`;
  const lines: [string, string][] = [
    [
      'Restored',
      `${plan.identity.cluster} from backup ${backup.id} to ${target.directory} (${written.files} files, ${formatSize(backup.files.sizeBytes)})`,
    ],
    ['To', `${proof.reached.lsn} on timeline ${proof.reached.timeline}, ${commit}: ${stop.reason}`],
    ['State', stateText(proof)],
    ['Took', `${formatDuration(totalMs)}: ${phases.join(', ')}`],
    ['Checked', ['every block and every WAL segment against its hash', ...proof.checks].join('; ')],
    ...serverLines(proof, target),
    ['Archiving', archiving(plan)],
  ];
  return lines.map(([title, text]) => `${title.padEnd(10)} ${text}`).join('\n');
}

function stateText({ state, newTimeline }: Proof): string {
  switch (state) {
    case 'promoted':
      return `open for writing on the new timeline ${newTimeline ?? ''}`;
    case 'paused':
      return 'paused at its target, read-only; "select pg_wal_replay_resume()" ends the recovery and opens it';
    case 'shut down':
      return 'shut down at its target; the next start goes on from there';
    case 'following':
      return 'a standby that follows the archive';
    default:
      return state satisfies never;
  }
}

function serverLines(
  { server, binDirectory, logFile }: Proof,
  { directory, owner }: RestoreTarget,
): [string, string][] {
  if (server === undefined) return [['Server', `stopped; its log: ${logFile}`]];
  const as = owner === undefined ? '' : `setpriv --reuid ${owner.uid} --regid ${owner.gid} --clear-groups `;
  return [
    [
      'Connect',
      `psql -h ${plain(server.socketDirectory)} -p ${server.port} -U ${plain(server.role)} postgres`,
    ],
    ['Stop', `${as}${plain(`${binDirectory}/pg_ctl`)} -D ${plain(directory)} stop`],
  ];
}

function archiving(plan: RestorePlan): string {
  return `off in this copy, so that it cannot write into the archive of ${plan.identity.cluster}: postgresql.auto.conf says how to turn it on`;
}

function plain(path: string): string {
  return shellWord(path).replaceAll('%%', '%');
}
