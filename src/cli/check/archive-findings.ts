import { formatDuration } from '../../config/durations.ts';
import { parseWalSegmentName, isWalSegmentName } from '../../postgres/wal-segment.ts';
import type { Findings } from './finding.ts';
import type { ServerSight } from './see-server.ts';

/** What a repository holds of the segment the server archived last. */
export interface ArchivedIn {
  repository: string;
  present: boolean;
}

export interface ArchiveExpectation {
  /** What `archive_command` should be. */
  command: string;
}

/** More unarchived segments than this mean that archiving does not keep up. */
const BACKLOG_WARN = 4n;
/** A file that waits for longer is not being archived, whatever `failed_count` says. */
const STUCK_MS = 5 * 60_000;

/** What the archiving settings of a primary that pushes, and its archiver's own words, mean. Pure. */
export function judgeArchiving(
  sight: ServerSight,
  expected: ArchiveExpectation,
  stored: readonly ArchivedIn[],
  findings: Findings,
): void {
  const { facts } = sight;
  if (facts.archiveMode === 'off') {
    findings.fail(
      `${facts.server} has archive_mode = off`,
      `ALTER SYSTEM SET archive_mode = 'on'; and restart the server`,
    );
    return;
  }
  if (facts.archiveLibrary !== '') {
    findings.fail(
      `${facts.server} archives with archive_library = '${facts.archiveLibrary}', not with Holdfast`,
      "ALTER SYSTEM SET archive_library = ''; and reload",
    );
    return;
  }
  if (facts.archiveCommand === '' && !facts.canMonitor) {
    findings.warn(`${facts.server} does not show its archive_command`, 'GRANT pg_monitor to the role');
  } else if (/\bwal\s+push\b/.test(facts.archiveCommand)) {
    findings.ok(`${facts.server} archives with Holdfast`);
  } else {
    findings.fail(
      facts.archiveCommand === ''
        ? `${facts.server} has no archive_command`
        : `${facts.server} archives with another command: ${facts.archiveCommand}`,
      `ALTER SYSTEM SET archive_command = '${expected.command.replaceAll("'", "''")}'; SELECT pg_reload_conf();`,
    );
    return;
  }
  judgeArrival(sight, stored, findings);
}

function judgeArrival(sight: ServerSight, stored: readonly ArchivedIn[], findings: Findings): void {
  const { facts, archiver } = sight;
  if (archiver === undefined) return;
  // The server's clock, since the archiver's times are of that one.
  const now = new Date(Number(sight.wal.facts.now / 1000n));
  const { lastArchived, lastArchivedAt, lastFailed, lastFailedAt } = archiver;
  const failing =
    lastFailedAt !== undefined && (lastArchivedAt === undefined || lastFailedAt > lastArchivedAt);
  if (failing) {
    findings.fail(
      `archiving of ${lastFailed ?? 'WAL'} fails on ${facts.server} (${archiver.failedCount} times, last ${ago(lastFailedAt, now)})`,
      "the server's log has what the archive command said",
    );
  }
  const stuck = stuckMs(sight, now);
  if (stuck !== undefined && !failing) {
    findings.fail(
      `WAL of ${facts.server} waits to be archived for ${formatDuration(stuck)}, and failed_count does not rise`,
      'the archive command hangs, or is ended by a signal or a status above 125, which is not counted: see the log of the server',
    );
  }
  if (lastArchived === undefined) {
    if (!failing && stuck === undefined) {
      findings.warn(
        `${facts.server} has archived nothing yet`,
        'SELECT pg_switch_wal(); and run this check again: it then shows whether WAL arrives',
      );
    }
    return;
  }
  for (const { repository, present } of stored) {
    if (present) {
      findings.ok(
        `WAL arrives in ${repository}: ${lastArchived}${lastArchivedAt === undefined ? '' : `, ${ago(lastArchivedAt, now)}`}`,
      );
    } else {
      findings.fail(
        `${facts.server} says that ${lastArchived} is archived, and repository ${repository} does not have it`,
        'SELECT pg_switch_wal(); and check again; if it stays, archive_command writes to another repository or configuration, and a new base backup is needed',
      );
    }
  }
  const behind = backlog(lastArchived, archiver.current, facts.walSegmentSize);
  if (behind !== undefined && behind > BACKLOG_WARN && stuck === undefined) {
    findings.warn(
      `${behind} segments are written on ${facts.server} and not yet archived`,
      "see whether the archive command is slow or waiting: the server's log and pg_stat_archiver",
    );
  }
}

/**
 * For how long nothing has been archived though something waits: by the oldest file that waits where the role may list
 * them, else by the segments written since the last one that was archived.
 */
function stuckMs({ facts, archiver, wal }: ServerSight, now: Date): number | undefined {
  if (archiver === undefined) return undefined;
  const behind =
    archiver.lastArchived === undefined
      ? undefined
      : backlog(archiver.lastArchived, archiver.current, facts.walSegmentSize);
  const since =
    wal.facts.readyFiles !== undefined
      ? wal.oldestReadyAt === undefined
        ? undefined
        : Number(wal.oldestReadyAt / 1000n)
      : behind !== undefined && behind > BACKLOG_WARN
        ? archiver.lastArchivedAt?.getTime()
        : undefined;
  const ms = since === undefined ? 0 : now.getTime() - since;
  return ms > STUCK_MS ? ms : undefined;
}

/** Full segments between the last archived one and the current one; undefined across timelines and other names. */
function backlog(archived: string, current: string | undefined, segmentSize: number): bigint | undefined {
  if (current === undefined || !isWalSegmentName(archived) || !isWalSegmentName(current)) return undefined;
  const last = parseWalSegmentName(archived, segmentSize);
  const now = parseWalSegmentName(current, segmentSize);
  if (last.timeline !== now.timeline) return undefined;
  const count = now.segmentNumber - last.segmentNumber - 1n;
  return count < 0n ? 0n : count;
}

function ago(time: Date, now: Date): string {
  return `${formatDuration(Math.max(0, now.getTime() - time.getTime()))} ago`;
}
