import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { forecastWal } from '../../wal/forecast.ts';
import type { Findings } from './finding.ts';
import type { ServerSight } from './see-server.ts';

const FAIL_SHARE = 0.05;
const WARN_SHARE = 0.15;
/** A server needs some segments to go on at all. */
const FAIL_SEGMENTS = 8n;

/** Whether the disk under `pg_wal` has room: a server that cannot write WAL stops, and does not start again. Pure. */
export function judgeWalSpace(
  { facts, wal }: ServerSight,
  bytesPerSecond: number | undefined,
  findings: Findings,
): void {
  const { disk } = wal;
  if (disk?.problem !== undefined || disk === undefined) return;
  const { freeBytes, totalBytes, path } = disk;
  const { fullInMs } = forecastWal({ freeBytes, safeWalSize: undefined, bytesPerSecond });
  const used = wal.facts.walDirectoryBytes;
  const text =
    `${formatSize(Number(freeBytes))} of ${formatSize(Number(totalBytes))} are free where pg_wal of ${facts.server} lies (${path}${used === undefined ? '' : `, ${formatSize(Number(used))} now`})` +
    (fullInMs === undefined ? '' : `: full in ${formatDuration(fullInMs)} if no WAL were taken away`);
  const share = Number(freeBytes) / Number(totalBytes);
  const fix =
    'make room there; then see why WAL stays: holdfast wal status. Never delete files in pg_wal by hand';
  if (share < FAIL_SHARE || freeBytes < FAIL_SEGMENTS * BigInt(facts.walSegmentSize))
    findings.fail(text, fix);
  else if (share < WARN_SHARE) findings.warn(text, fix);
  else findings.ok(text);
}
