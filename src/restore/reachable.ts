import { type Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../postgres/wal-segment.ts';
import { type Candidate, candidatesOn } from './choose-backup.ts';
import { type Coverage, coveredEnd, lastCovered } from './coverage.ts';
import type { Instant } from './instant.ts';
import { readNote } from './segment-note.ts';
import type { TimelinePath } from './timelines.ts';
import { type WalArchive, archivedFrom, isUnusable } from './wal-archive.ts';

/** A stretch of a path that can be restored: every point in it, from one backup or another. */
export interface ReachableRange {
  tip: TimelineId;
  from: { lsn: Lsn; time: Instant; backupId: string; timeline: TimelineId };
  /** `time`: of the last commit known in it; undefined where there was none behind the backup. */
  to: { lsn: Lsn; time: Instant | undefined; timeline: TimelineId };
  /** How many backups it can begin with. */
  backups: number;
  /** Why it does not go on: what is missing, and what is there behind that. */
  end: Pick<Coverage, 'missing' | 'resumes'>;
}

/** How many segments are looked at, backwards, for the last commit. */
const LOOK_BACK = 64n;

/**
 * What can be restored along a path, oldest first, without opening any WAL: a backup, and every segment behind it until
 * one is missing. Backups whose own WAL is not all there are left out.
 */
export async function reachableRanges(
  archive: WalArchive,
  path: TimelinePath,
  backups: readonly Candidate[],
): Promise<ReachableRange[]> {
  const size = archive.segmentSize;
  const ranges: ReachableRange[] = [];
  for (const candidate of candidatesOn(path, backups).toReversed()) {
    const coverage = archivedFrom(archive, path, segmentOfLsn(candidate.start, size));
    const last = lastCovered(coverage);
    if (last === undefined) continue;
    const end = coveredEnd(coverage, size);
    if (end === undefined || end < candidate.stop) continue;
    const open = ranges.at(-1);
    if (open !== undefined && candidate.stop <= open.to.lsn && end === open.to.lsn) {
      open.backups += 1;
      continue;
    }
    ranges.push({
      tip: path.at(-1)?.timeline ?? candidate.timeline,
      from: {
        lsn: candidate.stop,
        time: candidate.stoppedAt,
        backupId: candidate.record.id,
        timeline: candidate.timeline,
      },
      to: { lsn: end, time: await lastCommitTime(archive, coverage), timeline: last.timeline },
      backups: 1,
      end: { missing: coverage.missing, resumes: coverage.resumes },
    });
  }
  return ranges;
}

async function lastCommitTime(archive: WalArchive, coverage: Coverage): Promise<Instant | undefined> {
  let looked = 0n;
  for (const { timeline, first, last } of coverage.pieces.toReversed()) {
    for (let segment = last; segment >= first && looked < LOOK_BACK; segment -= 1n, looked += 1n) {
      const name = walSegmentName(timeline, segment, archive.segmentSize);
      const tail = archive.tails(timeline).find((one) => one.segment === name);
      if (tail?.lastCommitTime !== undefined) return tail.lastCommitTime;
      const facts = await archive.examine(timeline, segment);
      if (isUnusable(facts)) continue;
      const note = readNote(facts.wal);
      if (note?.lastCommitTime !== undefined) return note.lastCommitTime;
    }
  }
  return undefined;
}
