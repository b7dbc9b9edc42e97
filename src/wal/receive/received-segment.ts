import { join } from 'node:path';

import { HoldfastError } from '../../errors.ts';
import { type Lsn, lsnOf } from '../../postgres/lsn.ts';
import type { SystemIdentifier } from '../../postgres/system-identifier.ts';
import type { TimelineId } from '../../postgres/timeline.ts';
import { segmentStart, walSegmentName, type WalSegmentName } from '../../postgres/wal-segment.ts';
import { createWalSummarizer, type WalSummary } from '../../postgres/wal-summary.ts';
import { checkWalSegment, LONG_HEADER_BYTES } from '../../postgres/wal-page.ts';
import type { WalFileToStore } from '../../repository/wal-file.ts';
import { deferSpoolFile } from './deferred-file.ts';
import { type PiecePool, SegmentFrames } from './segment-frames.ts';
import type { SegmentSpool, SpoolFile } from './segment-spool.ts';

/** Larger segments are compressed from their spool file when they are complete, not held in memory. */
const IN_MEMORY_BYTES = 64 * 1024 * 1024;

export interface SegmentPlace {
  timeline: TimelineId;
  segment: bigint;
  segmentSize: number;
  systemIdentifier: SystemIdentifier;
  /** The server has all of it already: its file is made only if something is to be read from it. */
  isBehind?: boolean;
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
  /** A complete segment ready to be stored; undefined where it has to be read from its file. */
  content(): Omit<WalFileToStore, 'modifiedAt' | 'wal'> | undefined;
  /** Nothing more will come and nothing is to be stored: closes and removes what there is. */
  discard(): Promise<void>;
}

/** Begins a segment. `append` throws `wal-invalid` or `cluster-mismatch` where its first page is not what it must be. */
export async function receiveSegment(
  spool: SegmentSpool,
  pool: PiecePool,
  place: SegmentPlace,
): Promise<ReceivedSegment> {
  const { timeline, segment, segmentSize, systemIdentifier } = place;
  const name = walSegmentName(timeline, segment, segmentSize);
  const start = segmentStart(segment, segmentSize);
  const summarizer = createWalSummarizer({ start, segmentSize, timeline, systemIdentifier });
  let summary: WalSummary | undefined;
  const frames = segmentSize <= IN_MEMORY_BYTES ? new SegmentFrames(pool) : undefined;
  const create = async (): Promise<SpoolFile> => spool.create(name);
  const file =
    frames !== undefined && place.isBehind === true
      ? deferSpoolFile({ name, path: join(spool.directory, name) }, create, frames)
      : await create();
  let isChecked = false;
  const checkFirstPage = (own: Buffer): void => {
    // A server sends pages whole; where it does not, replay would still notice.
    isChecked = true;
    if (own.length >= LONG_HEADER_BYTES) {
      checkWalSegment(own, { name, sizeBytes: segmentSize, segmentSize, systemIdentifier });
    }
  };
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
      if (!isChecked) checkFirstPage(own);
      summarizer.push(own);
      frames?.append(own);
      file.append(own);
      return taken;
    },
    lastCommitTime: () => summarizer.lastCommitTime(),
    summary() {
      if (file.sizeBytes !== segmentSize) throw new HoldfastError('assertion', `${name} is not complete`);
      return (summary ??= summarizer.finish());
    },
    content() {
      if (frames === undefined) return undefined;
      return { name, sizeBytes: segmentSize, hash: frames.finish(), frames: () => frames.frames() };
    },
    async discard() {
      // In this order: the file may be made out of the frames just now.
      await file.discard();
      await frames?.release();
    },
  };
}
