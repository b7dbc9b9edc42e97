import { HoldfastError } from '../errors.ts';

/** A moment in microseconds since 1970-01-01T00:00:00Z: the resolution of PostgreSQL's `timestamptz`. */
export type Instant = bigint;

const FORM =
  /^(\d{4,6})-(\d{2})-(\d{2})[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)? ?(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2}(?::?\d{2})?)?)?$/;
const RELATIVE = /^-((?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d|w))+)$/;
const RELATIVE_PART = /(\d+)(?:\.(\d+))?(ms|s|min|m|h|d|w)/g;
const UNIT_MICROS: Readonly<Record<string, bigint>> = {
  ms: 1000n,
  s: 1_000_000n,
  m: 60_000_000n,
  min: 60_000_000n,
  h: 3_600_000_000n,
  d: 86_400_000_000n,
  w: 604_800_000_000n,
};

/** Minutes that local time is ahead of UTC at a moment (milliseconds since 1970). */
export type LocalOffset = (utcMs: number) => number;

const machineOffset: LocalOffset = (utcMs) => -new Date(utcMs).getTimezoneOffset();

/**
 * Reads a time as users give it: `2025-12-28 14:30:00+01`, RFC 3339, or relative to `now` (`-15m`, `-1h30m`). Fractions
 * beyond microseconds are cut off. A time without an offset is `time-ambiguous`, with both readings; anything else that
 * is no time is `usage-invalid`.
 */
export function parseInstant(text: string, now: Instant, localOffset: LocalOffset = machineOffset): Instant {
  const trimmed = text.trim();
  const relative = RELATIVE.exec(trimmed);
  if (relative !== null) return now - relativeMicros(relative[1] ?? '');
  const match = FORM.exec(trimmed);
  if (match === null) throw notATime(text);
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map((part) => Number(part ?? 0)) as [
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  const utcMs = Date.UTC(year, month - 1, day, hour, minute, second);
  const back = new Date(utcMs);
  const real =
    back.getUTCFullYear() === year && back.getUTCMonth() === month - 1 && back.getUTCDate() === day;
  if (!real || hour > 23 || minute > 59 || second > 59) throw notATime(text);
  const wall = BigInt(utcMs) * 1000n + BigInt((match[7] ?? '').slice(0, 6).padEnd(6, '0'));
  const zone = match[8];
  if (zone === undefined) throw ambiguous(text, wall, localOffset);
  return wall - offsetMicros(zone, text);
}

function relativeMicros(text: string): bigint {
  let total = 0n;
  for (const [, whole = '0', fraction = '', unit = ''] of text.matchAll(RELATIVE_PART)) {
    const scale = 10n ** BigInt(fraction.length);
    total += (BigInt(whole + fraction) * (UNIT_MICROS[unit] ?? 0n)) / scale;
  }
  return total;
}

function offsetMicros(zone: string, text: string): bigint {
  if (/^[A-Za-z]/.test(zone)) return 0n;
  const digits = zone.slice(1).replaceAll(':', '').padEnd(6, '0');
  const [hours, minutes, seconds] = [0, 2, 4].map((at) => Number(digits.slice(at, at + 2))) as [
    number,
    number,
    number,
  ];
  if (hours > 15 || minutes > 59 || seconds > 59) throw notATime(text);
  const micros = BigInt(hours * 3600 + minutes * 60 + seconds) * 1_000_000n;
  return zone.startsWith('-') ? -micros : micros;
}

function notATime(text: string): HoldfastError {
  return new HoldfastError('usage-invalid', `"${text}" is not a time`, {
    hint: 'write a time with its offset, such as "2025-12-28 14:30:00+01", or one before now, such as -15m',
  });
}

function ambiguous(text: string, wall: Instant, localOffset: LocalOffset): HoldfastError {
  const wallMs = Number(wall / 1000n);
  // The offset in force at the local reading, not at the UTC one: the two differ around a change of clocks.
  const minutes = localOffset(wallMs - localOffset(wallMs) * 60_000);
  const sign = minutes < 0 ? '-' : '+';
  const clock = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60].map((part) =>
    String(part).padStart(2, '0'),
  );
  const bare = formatInstant(wall).slice(0, -1);
  const local = `${bare}${sign}${clock.join(':')}`;
  if (minutes === 0) {
    return new HoldfastError(
      'time-ambiguous',
      `"${text}" has no offset: is it ${bare}Z (UTC, which is local time here), or the time of another place`,
      {
        hint: `write "${bare}Z", or the offset that was meant: "${bare}+01:00"`,
        context: { utc: `${bare}Z`, local },
      },
    );
  }
  return new HoldfastError(
    'time-ambiguous',
    `"${text}" has no offset: it may mean ${bare}Z (UTC) or ${local} (local time here)`,
    { hint: `write "${bare}Z" or "${local}"`, context: { utc: `${bare}Z`, local } },
  );
}

/** RFC 3339 in UTC, with as many decimals as needed: `2025-12-28T13:30:00Z`, `…00.000001Z`. */
export function formatInstant(instant: Instant): string {
  const seconds = instant / 1_000_000n - (instant % 1_000_000n < 0n ? 1n : 0n);
  const micros = instant - seconds * 1_000_000n;
  const base = new Date(Number(seconds) * 1000).toISOString().replace(/\.\d{3}Z$/, '');
  const fraction = micros === 0n ? '' : `.${String(micros).padStart(6, '0').replace(/0+$/, '')}`;
  return `${base}${fraction}Z`;
}

/** For people: the UTC form followed by local time where that differs, `2025-12-28T13:30:00Z (14:30:00 here)`. */
export function describeInstant(instant: Instant, localOffset: LocalOffset = machineOffset): string {
  const minutes = localOffset(Number(instant / 1000n));
  const utc = formatInstant(instant);
  if (minutes === 0) return utc;
  const local = formatInstant(instant + BigInt(minutes) * 60_000_000n);
  const sameDay = local.slice(0, 10) === utc.slice(0, 10);
  return `${utc} (${(sameDay ? local.slice(11) : local.replace('T', ' ')).slice(0, -1)} here)`;
}

/** The instant of an RFC 3339 text that Holdfast wrote itself (records, headers). */
export function instantOfRecord(text: string): Instant {
  return parseInstant(text, 0n);
}
