import type { Lsn } from '../postgres/lsn.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { walSegmentName } from '../postgres/wal-segment.ts';
import type { Candidate } from './choose-backup.ts';
import type { Coverage } from './coverage.ts';
import type { Instant } from './instant.ts';
import { reachedRanges } from './path-reach.ts';
import { readNote } from './segment-note.ts';
import type { TimelinePath } from './timelines.ts';
import { type WalArchive, isUnusable, segmentTails } from './wal-archive.ts';

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
 * What can be restored along a path, oldest first, by listings alone: for naming the points nearest to one that cannot be
 * reached. Accounting also knows what the headers tell.
 */
export async function reachableRanges(
  archive: WalArchive,
  path: TimelinePath,
  backups: readonly Candidate[],
): Promise<ReachableRange[]> {
  const wal = {
    segmentSize: archive.segmentSize,
    ranges: (timeline: TimelineId) => archive.ranges(timeline),
    tails: (timeline: TimelineId) => segmentTails(archive, timeline),
    breaks: [],
  };
  const ranges: ReachableRange[] = [];
  for (const { backups: own, bound, last, coverage } of reachedRanges(wal, path, backups)) {
    const [first] = own;
    ranges.push({
      tip: path.at(-1)?.timeline ?? first.timeline,
      from: { lsn: first.stop, time: first.stoppedAt, backupId: first.record.id, timeline: first.timeline },
      to: { lsn: bound, time: await lastCommitTime(archive, coverage), timeline: last.timeline },
      backups: own.length,
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
