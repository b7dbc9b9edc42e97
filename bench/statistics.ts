import assert from 'node:assert/strict';

/** The middle value; of an even number the mean of the middle two. */
export function median(values: readonly number[]): number {
  assert.ok(values.length > 0, 'there is no median of nothing');
  const sorted = [...values].sort((a, b) => a - b);
  const upper = sorted[sorted.length >> 1] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[(sorted.length >> 1) - 1] ?? 0)) / 2;
}

/** `1.23 s (1.10–1.40)`: median, lowest and highest. */
export function seconds(valuesMs: readonly number[]): string {
  return spread(valuesMs, (ms) => (ms / 1000).toFixed(2), ' s');
}

export function milliseconds(valuesMs: readonly number[]): string {
  return spread(valuesMs, (ms) => ms.toFixed(0), ' ms');
}

/** In MiB; small amounts in KiB. */
export function size(bytes: number): string {
  if (Math.abs(bytes) < 1024 * 1024) return `${(bytes / 1024).toFixed(0)} KiB`;
  return `${(bytes / 1024 / 1024).toFixed(bytes < 10 * 1024 * 1024 ? 2 : 1)} MiB`;
}

export function sizes(values: readonly number[]): string {
  return size(median(values));
}

function spread(values: readonly number[], format: (value: number) => string, unit: string): string {
  const middle = format(median(values)) + unit;
  if (values.length === 1) return middle;
  return `${middle} (${format(Math.min(...values))}–${format(Math.max(...values))})`;
}

/** The slope of the straight line that fits best (least squares). */
export function slopeOf(points: readonly (readonly [number, number])[]): number {
  const mean = (at: 0 | 1): number => points.reduce((sum, point) => sum + point[at], 0) / points.length;
  const [meanX, meanY] = [mean(0), mean(1)];
  const together = points.reduce((sum, [x, y]) => sum + (x - meanX) * (y - meanY), 0);
  return together / points.reduce((sum, [x]) => sum + (x - meanX) ** 2, 0);
}

/** The value that `share` (0 to 1) of the values do not exceed. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}
