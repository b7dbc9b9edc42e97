import type { Lsn } from '../postgres/lsn.ts';

/** A position of the WAL and when it was reached. */
export interface WalSample {
  lsn: Lsn;
  /** Microseconds since 1970; of one clock for all samples that are compared. */
  at: bigint;
}

export interface WalRate {
  bytesPerSecond: number;
  /** `now`: the server was asked twice. `stored`: from the commits of the last stored segments. */
  source: 'now' | 'stored';
}

/** A forecast beyond this is none: rates do not last. */
const HORIZON_MS = 366 * 86_400_000;

/** Bytes per second from the first to the last of the samples; undefined where they do not span any time or WAL. */
export function rateOf(samples: readonly WalSample[]): number | undefined {
  const [first, last] = [samples[0], samples.at(-1)];
  if (first === undefined || last === undefined || last.at <= first.at || last.lsn < first.lsn)
    return undefined;
  return (Number(last.lsn - first.lsn) * 1e6) / Number(last.at - first.at);
}

/** The rate to forecast with: the higher one, since a quiet second says little, and neither does a busy one in a night. */
export function chooseRate(now: number | undefined, stored: number | undefined): WalRate | undefined {
  if (now === undefined && stored === undefined) return undefined;
  return (now ?? -1) >= (stored ?? -1)
    ? { bytesPerSecond: now ?? 0, source: 'now' }
    : { bytesPerSecond: stored ?? 0, source: 'stored' };
}

/** How long some bytes last, in milliseconds; undefined where that is for ever, or for more than a year. */
export function timeUntil(bytes: bigint, bytesPerSecond: number | undefined): number | undefined {
  if (bytesPerSecond === undefined || !(bytesPerSecond > 0)) return undefined;
  const ms = (Math.max(0, Number(bytes)) * 1000) / bytesPerSecond;
  return ms > HORIZON_MS ? undefined : ms;
}

export interface WalForecast {
  /** Until the disk of `pg_wal` is full, if no WAL were archived or received from now on. */
  fullInMs: number | undefined;
  /** Until the slot is lost, if nothing were received from now on. */
  slotLostInMs: number | undefined;
}

/** What becomes of the disk and of the slot if WAL stops being taken away. Undefined: not known, or not within a year. */
export function forecastWal(facts: {
  freeBytes: bigint | undefined;
  safeWalSize: bigint | undefined;
  bytesPerSecond: number | undefined;
}): WalForecast {
  const { freeBytes, safeWalSize, bytesPerSecond } = facts;
  return {
    fullInMs: freeBytes === undefined ? undefined : timeUntil(freeBytes, bytesPerSecond),
    slotLostInMs: safeWalSize === undefined ? undefined : timeUntil(safeWalSize, bytesPerSecond),
  };
}

const MIB = 1024n ** 2n;
const GIB = 1024n ** 3n;

/**
 * A value for `max_slot_wal_keep_size`, in bytes: half of what the disk has for WAL, in whole GiB (in 64 MiB below one),
 * so that a receiver that is away can never fill it. The server then invalidates the slot, which costs a gap; a full
 * disk costs the server.
 */
export function proposeKeepSize(disk: { freeBytes: bigint; walDirectoryBytes: bigint }): bigint {
  const half = (disk.freeBytes + disk.walDirectoryBytes) / 2n;
  if (half >= GIB) return (half / GIB) * GIB;
  const step = 64n * MIB;
  return half < step ? step : (half / step) * step;
}

/** A size as PostgreSQL's settings take it: the largest unit that says it exactly, of whole MB. */
export function settingOfBytes(bytes: bigint): string {
  if (bytes % GIB === 0n) return `${bytes / GIB}GB`;
  return `${bytes / MIB}MB`;
}
