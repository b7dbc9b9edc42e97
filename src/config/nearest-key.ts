/**
 * The known key somebody most likely meant, or undefined where none is near: at most one slip per three letters, a swap
 * of neighbours counting once, case and separators (`max_lag`, `max-lag`) not at all.
 */
export function nearestKey(given: string, known: Iterable<string>): string | undefined {
  const wanted = plain(given);
  let best: { key: string; distance: number } | undefined;
  for (const key of known) {
    const candidate = plain(key);
    const distance = slips(wanted, candidate);
    const allowed = Math.max(1, Math.floor(Math.max(wanted.length, candidate.length) / 3));
    if (distance <= allowed && (best === undefined || distance < best.distance)) best = { key, distance };
  }
  return best?.key;
}

function plain(key: string): string {
  return key.toLowerCase().replaceAll(/[-_ ]/g, '');
}

/** Optimal string alignment distance. */
function slips(left: string, right: string): number {
  let before: number[] = [];
  let previous = Array.from({ length: right.length + 1 }, (_, column) => column);
  for (let row = 1; row <= left.length; row += 1) {
    const current = [row];
    for (let column = 1; column <= right.length; column += 1) {
      const cost = left[row - 1] === right[column - 1] ? 0 : 1;
      let value = Math.min(
        (previous[column] ?? 0) + 1,
        (current[column - 1] ?? 0) + 1,
        (previous[column - 1] ?? 0) + cost,
      );
      const swapped = left[row - 1] === right[column - 2] && left[row - 2] === right[column - 1];
      if (swapped && row > 1 && column > 1) value = Math.min(value, (before[column - 2] ?? 0) + 1);
      current.push(value);
    }
    before = previous;
    previous = current;
  }
  return previous[right.length] ?? 0;
}
