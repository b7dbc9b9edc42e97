import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { Lsn } from '../../src/postgres/lsn.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../../src/postgres/wal-segment.ts';
import type { TestCluster } from './cluster.ts';

/** What the files in `pg_wal` have of `[start, end)`. */
export async function walBytesOnDisk(
  cluster: TestCluster,
  { start, end }: { start: Lsn; end: Lsn },
  segmentSize: number,
  timeline = 1,
): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let number = segmentOfLsn(start, segmentSize); number * BigInt(segmentSize) < end; number += 1n) {
    const name = walSegmentName(timelineOf(timeline), number, segmentSize);
    parts.push(await readFile(join(cluster.dataDir, 'pg_wal', name)));
  }
  const skip = Number(start % BigInt(segmentSize));
  return Buffer.concat(parts).subarray(skip, skip + Number(end - start));
}
