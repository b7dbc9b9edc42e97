/** Where RFC 3339 ends: the last microsecond of year 9999, and the first of year 0. */
const LATEST = 253_402_300_799_999_999n;
const EARLIEST = -62_167_219_200_000_000n;

/**
 * RFC 3339 in UTC with microseconds, PostgreSQL's full precision: `2026-01-01T10:00:00.000001Z`. Takes microseconds since
 * 1970; values outside the years 0 to 9999 become the nearest one inside.
 */
export function formatMicroseconds(time: bigint): string {
  const clamped = time > LATEST ? LATEST : time < EARLIEST ? EARLIEST : time;
  const micros = ((clamped % 1_000_000n) + 1_000_000n) % 1_000_000n;
  const whole = new Date(Number((clamped - micros) / 1000n)).toISOString().slice(0, 19);
  return `${whole}.${micros.toString().padStart(6, '0')}Z`;
}
