/** At most so many segments lie ready or are on their way … */
const MAX_SEGMENTS = 16;
/** … of at most so many bytes together, but never less than one … */
const MAX_BYTES = 256 * 1024 * 1024;
/** … and of at most this share of what is free where they lie, which recovery itself needs. */
const SHARE_OF_FREE = 1 / 8;

export interface WindowFacts {
  /** The segment recovery asks for next, as far as known. Segments count from 0 at LSN 0/0. */
  position: bigint;
  /** Complete, not yet taken. */
  ready: ReadonlySet<bigint>;
  /** Being fetched. */
  inFlight: ReadonlySet<bigint>;
  /** The first segment that cannot be had; undefined while none was met. */
  end: bigint | undefined;
  /** How many segments may be ready or in flight together. */
  capacity: number;
  /** How many may be in flight. */
  parallel: number;
}

export interface WindowPlan {
  /** To be begun now, in this order. */
  fetch: bigint[];
  /** In flight, and of no use any more. */
  cancel: bigint[];
  /** Ready, and of no use any more. */
  drop: bigint[];
}

/** How many segments may lie ahead of recovery, with so much room left. */
export function windowCapacity(segmentSize: number, freeBytes: number): number {
  const bytes = Math.min(MAX_BYTES, freeBytes * SHARE_OF_FREE);
  return Math.max(1, Math.min(MAX_SEGMENTS, Math.floor(bytes / segmentSize)));
}

/**
 * What to do for the window that begins at `position`, has `capacity` segments and stops before `end`: nothing outside
 * of it is kept, what is missing is begun from the front. Pure.
 */
export function planWindow(facts: WindowFacts): WindowPlan {
  const { position, ready, inFlight, end } = facts;
  const full = position + BigInt(facts.capacity);
  const stop = end !== undefined && end < full ? end : full;
  const isWanted = (segment: bigint): boolean => segment >= position && segment < stop;
  const cancel = [...inFlight].filter((segment) => !isWanted(segment));
  const drop = [...ready].filter((segment) => !isWanted(segment));
  const fetch: bigint[] = [];
  let room = facts.parallel - (inFlight.size - cancel.length);
  for (let segment = position; segment < stop && room > 0; segment += 1n) {
    if (ready.has(segment) || inFlight.has(segment)) continue;
    fetch.push(segment);
    room -= 1;
  }
  return { fetch, cancel, drop };
}
