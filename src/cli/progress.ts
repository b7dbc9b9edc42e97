import { formatDuration } from '../config/durations.ts';
import { formatSize } from '../config/sizes.ts';

export interface ProgressState {
  doneBytes: number;
  /** Left out while it is unknown. */
  totalBytes?: number;
  /** A few words: the file, the phase. */
  detail?: string;
}

/** Keeps the last ten seconds of a count, so that the rate is neither jumpy nor stale. */
export class RateWindow {
  readonly #samples: { atMs: number; bytes: number }[] = [];

  add(atMs: number, bytes: number): void {
    const last = this.#samples.at(-1);
    // A second pass counts from zero again.
    if (last !== undefined && bytes < last.bytes) this.#samples.length = 0;
    this.#samples.push({ atMs, bytes });
    while (this.#samples.length > 2 && atMs - (this.#samples[0]?.atMs ?? atMs) > 10_000)
      this.#samples.shift();
  }

  /** Bytes per second; undefined until there is something to measure. */
  rate(): number | undefined {
    const [first] = this.#samples;
    const last = this.#samples.at(-1);
    if (first === undefined || last === undefined || last.atMs <= first.atMs) return undefined;
    return ((last.bytes - first.bytes) * 1000) / (last.atMs - first.atMs);
  }
}

/** `base backup  1.2 GiB of 4.0 GiB (30%)  210 MiB/s  14 s left  base/16384/2619`, without what is not known. */
export function progressLine(title: string, state: ProgressState, rate: number | undefined): string {
  const { doneBytes, totalBytes, detail } = state;
  const parts = [title];
  if (totalBytes === undefined || totalBytes === 0) parts.push(formatSize(doneBytes));
  else {
    const percent = Math.min(100, Math.floor((doneBytes / totalBytes) * 100));
    parts.push(`${formatSize(doneBytes)} of ${formatSize(totalBytes)} (${percent}%)`);
  }
  if (rate !== undefined) parts.push(`${formatSize(rate)}/s`);
  const left = timeLeftMs(state, rate);
  if (left !== undefined) parts.push(`${formatDuration(left)} left`);
  if (detail !== undefined && detail !== '') parts.push(detail);
  return parts.join('  ');
}

/** Undefined while the total or the rate is unknown. */
export function timeLeftMs(state: ProgressState, rate: number | undefined): number | undefined {
  if (state.totalBytes === undefined || rate === undefined || rate <= 0) return undefined;
  return (Math.max(0, state.totalBytes - state.doneBytes) / rate) * 1000;
}

/** Cuts to the width of a terminal, one column spared so that nothing wraps. Control characters never reach it. */
export function fitLine(line: string, columns: number): string {
  // eslint-disable-next-line no-control-regex
  const clean = line.replaceAll(/[\u0000-\u001F\u007F-\u009F]/g, '?');
  const room = Math.max(10, columns - 1);
  return clean.length <= room ? clean : `${clean.slice(0, room - 1)}…`;
}
