import { HoldfastError } from '../errors.ts';

const UNITS: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1000,
  m: 60_000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};

/**
 * Milliseconds of `5s`, `5m`, `1h30m`, `7d`, `2w`. A bare number is refused: PostgreSQL's settings disagree among
 * themselves about what it would mean. Throws `config-invalid`.
 */
export function parseDuration(text: string): number {
  const trimmed = text.trim();
  let total = 0;
  let rest = trimmed;
  while (rest !== '') {
    const match = /^(\d+(?:\.\d+)?)\s*([a-z]+)\s*/.exec(rest);
    const unit = match === null ? undefined : UNITS[match[2] ?? ''];
    if (match === null || unit === undefined) break;
    total += Number(match[1]) * unit;
    rest = rest.slice(match[0].length);
  }
  if (trimmed === '' || rest !== '' || !Number.isSafeInteger(total)) {
    throw new HoldfastError('config-invalid', `'${text}' is not a duration`, {
      hint: 'write a number with a unit, for example 500ms, 5s, 10m, 12h, 7d or 1h30m',
    });
  }
  return total;
}

/** `340 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`: the two largest units, for people. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return pair(Math.floor(seconds / 60), 'min', seconds % 60, 's');
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return pair(Math.floor(minutes / 60), 'h', minutes % 60, 'min');
  const hours = Math.round(minutes / 60);
  return pair(Math.floor(hours / 24), 'd', hours % 24, 'h');
}

function pair(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}
