import { HoldfastError } from '../../errors.ts';
import { type Lsn, lsnOf } from '../../postgres/lsn.ts';
import type { SystemIdentifier } from '../../postgres/system-identifier.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { segmentStart, walSegmentName, type WalSegmentName } from '../../postgres/wal-segment.ts';
import { createWalSummarizer, type WalSummary } from '../../postgres/wal-summary.ts';
import type { SegmentSpool, SpoolFile } from './segment-spool.ts';

export interface SegmentPlace {
  timeline: TimelineId;
  segment: bigint;
  segmentSize: number;
  systemIdentifier: SystemIdentifier;
}

/** One segment as it comes in: its bytes in the spool, and what is found in them on the way. */
export interface ReceivedSegment {
  readonly name: WalSegmentName;
  readonly timeline: TimelineId;
  readonly start: Lsn;
  readonly end: Lsn;
  readonly file: SpoolFile;
  /** Up to where bytes have come. */
  readonly received: Lsn;
  readonly isComplete: boolean;
  /** Takes bytes that follow on those before; returns how many of them belong to this segment. */
  append(bytes: Buffer): number;
  /** Microseconds since 1970; undefined where no commit came in this segment yet. */
  lastCommitTime(): bigint | undefined;
  /** Of a complete segment. */
  summary(): WalSummary;
}

export async function receiveSegment(spool: SegmentSpool, place: SegmentPlace): Promise<ReceivedSegment> {
  const { timeline, segment, segmentSize, systemIdentifier } = place;
  const name = walSegmentName(timeline, segment, segmentSize);
  const start = segmentStart(segment, segmentSize);
  const file = await spool.create(name);
  const summarizer = createWalSummarizer({ start, segmentSize, timeline, systemIdentifier });
  let summary: WalSummary | undefined;
  return {
    name,
    timeline,
    start,
    end: lsnOf(start + BigInt(segmentSize)),
    file,
    get received() {
      return lsnOf(start + BigInt(file.sizeBytes));
    },
    get isComplete() {
      return file.sizeBytes === segmentSize;
    },
    append(bytes) {
      const taken = Math.min(bytes.length, segmentSize - file.sizeBytes);
      const own = taken === bytes.length ? bytes : bytes.subarray(0, taken);
      file.append(own);
      summarizer.push(own);
      return taken;
    },
    lastCommitTime: () => summarizer.lastCommitTime(),
    summary() {
      if (file.sizeBytes !== segmentSize) throw new HoldfastError('assertion', `${name} is not complete`);
      return (summary ??= summarizer.finish());
    },
  };
}
