/** Random archives for tests of accounting: a tree of timelines, backups, holes; and, by brute force, what is restorable. */
import { formatLsn, type Lsn, lsnOf } from '../src/postgres/lsn.ts';
import { formatTimeline, timelineOf } from '../src/postgres/timeline.ts';
import { walSegmentName } from '../src/postgres/wal-segment.ts';
import type { BackupRecord } from '../src/repository/backup-record.ts';
import { encodeClearObject } from '../src/repository/clear-object.ts';
import { walDataKey, walHeaderKey } from '../src/repository/layout.ts';
import type { Repository } from '../src/repository/repository.ts';
import { storeTail } from '../src/repository/wal-tail.ts';
import { formatInstant } from '../src/restore/instant.ts';
import { EPOCH, IDENTITY, backupRecord, storeHistory } from './restore-lab.ts';
import { seededRandom } from './seeded-random.ts';
import { SEGMENT_SIZE } from './wal-lab.ts';

const SIZE = BigInt(SEGMENT_SIZE);

/** What became of a segment that was stored once. */
export type Fate =
  | 'whole'
  | 'header-deleted'
  | 'data-deleted'
  | 'both-deleted'
  | 'truncated'
  | 'header-corrupt'
  | 'minimal'
  | 'damaged';

export interface WorldSegment {
  fate: Fate;
  /** Where it breaks off, for `minimal` and `damaged`. */
  at: bigint;
}

export interface WorldTimeline {
  id: number;
  parent: number | undefined;
  begin: bigint;
  /** End of what was written. */
  end: bigint;
  /** Complete segments that were stored, by number. */
  segments: Map<bigint, WorldSegment>;
  /** The beginning of the last segment, as tails. */
  tail: { segment: bigint; end: bigint } | undefined;
  historyMissing: boolean;
}

export interface WorldBackup {
  id: string;
  timeline: number;
  start: bigint;
  stop: bigint;
}

export interface World {
  timelines: Map<number, WorldTimeline>;
  backups: WorldBackup[];
}

const FATES: readonly Fate[] = [
  'header-deleted',
  'data-deleted',
  'both-deleted',
  'truncated',
  'header-corrupt',
  'minimal',
  'damaged',
];

/** A commit in the middle of every segment, at a time that follows from the segment. */
export function commitTime(segment: bigint): bigint {
  return EPOCH + segment * 60_000_000n;
}

export function createWorld(seed: number): World {
  const random = seededRandom(seed);
  const upTo = (n: number): number => Math.floor(random() * n);
  const timelines = new Map<number, WorldTimeline>();
  const holes = random() < 0.15 ? 0 : random() * 0.3;
  const count = 1 + upTo(5);
  for (let id = 1; id <= count; id += 1) {
    const parent = id === 1 ? undefined : timelines.get(1 + upTo(id - 1));
    let begin = 0n;
    if (parent !== undefined) {
      const from = parent.parent === undefined ? 2n * SIZE : parent.begin;
      const room = parent.end - from;
      begin = from + BigInt(Math.floor(random() * Number(room / 8n))) * 8n + 8n;
      if (random() < 0.15) begin = (begin / SIZE) * SIZE;
      if (random() < 0.3) begin = parent.end;
      if (begin <= from || begin > parent.end) begin = parent.end;
    }
    const start = parent === undefined ? 2n * SIZE : begin;
    let end = start + 64n + BigInt(Math.floor((random() * 7 * SEGMENT_SIZE) / 8)) * 8n;
    if (random() < 0.2) end = (end / SIZE + 1n) * SIZE;
    const timeline: WorldTimeline = {
      id,
      parent: parent?.id,
      begin,
      end,
      segments: new Map(),
      tail: undefined,
      historyMissing: id > 1 && random() < 0.06,
    };
    for (let segment = start / SIZE; (segment + 1n) * SIZE <= end; segment += 1n) {
      const fate = random() < holes ? (FATES[upTo(FATES.length)] ?? 'whole') : 'whole';
      const lowest = segment * SIZE > start ? segment * SIZE : start;
      const at = lowest + BigInt(Math.floor((random() * Number((segment + 1n) * SIZE - lowest)) / 8)) * 8n;
      timeline.segments.set(segment, { fate, at: at + 8n });
    }
    // Where a timeline began, its parent's copy of the segment matters.
    const firstOwn = timeline.segments.get(begin / SIZE);
    if (parent !== undefined && firstOwn !== undefined && random() < 0.3) {
      firstOwn.fate = 'header-deleted';
      const copy = parent.segments.get(begin / SIZE);
      if (copy !== undefined && begin % SIZE < SIZE - 64n && random() < 0.4) {
        copy.fate = random() < 0.5 ? 'minimal' : 'damaged';
        copy.at = begin + 16n;
      }
    }
    if (end % SIZE !== 0n && random() < 0.6) {
      const own = end - (end / SIZE) * SIZE;
      timeline.tail = {
        segment: end / SIZE,
        end:
          random() < 0.7 ? end : (end / SIZE) * SIZE + 1n + BigInt(Math.floor(random() * Number(own - 1n))),
      };
    }
    // A server sends a timeline's first segment only from where it has more than its parent's.
    if (timeline.tail?.segment === begin / SIZE && timeline.tail.end < begin) timeline.tail.end = end;
    // What is shorter than a page header holds no WAL.
    if (timeline.tail !== undefined && timeline.tail.end % SIZE < 40n) timeline.tail = undefined;
    timelines.set(id, timeline);
  }
  const backups: WorldBackup[] = [];
  for (let n = upTo(5); n > 0; n -= 1) {
    const timeline = timelines.get(1 + upTo(count));
    if (timeline === undefined) continue;
    const from = timeline.parent === undefined ? 2n * SIZE : timeline.begin;
    const room = timeline.end - from - 48n;
    if (room < 64n) continue;
    const start = from + 8n + BigInt(Math.floor(random() * Number(room / 8n - 4n))) * 8n;
    const left = timeline.end - start;
    const length = BigInt(Math.floor((random() * Math.min(Number(left), 1.5 * SEGMENT_SIZE)) / 8)) * 8n + 16n;
    let stop = start + length > timeline.end ? timeline.end : start + length;
    const ends = [timeline.tail?.end, (start / SIZE + 1n) * SIZE].filter(
      (end) => end !== undefined && end > start && end <= timeline.end,
    );
    if (random() < 0.25) stop = ends[upTo(ends.length)] ?? stop;
    backups.push({ id: `b${backups.length}`, timeline: timeline.id, start, stop });
  }
  return { timelines, backups };
}

/** Stores a world as it was before anything was lost, or with its holes. */
export async function storeWorld(
  repository: Repository,
  world: World,
  state: 'before' | 'after',
): Promise<void> {
  for (const timeline of world.timelines.values()) {
    if (timeline.id > 1 && !timeline.historyMissing) {
      await storeHistory(repository, timeline.id, ...ancestorsOf(world, timeline));
    }
    for (const [segment, { fate, at }] of timeline.segments) {
      await storeSegment(repository, timeline, segment, state === 'before' ? 'whole' : fate, at);
    }
    if (timeline.tail !== undefined) {
      const { segment, end } = timeline.tail;
      const name = walSegmentName(timelineOf(timeline.id), segment, SEGMENT_SIZE);
      const to = Number(end - segment * SIZE);
      const cuts = to > 1000 ? [0, 500, to] : [0, to];
      for (const [index, from] of cuts.slice(0, -1).entries()) {
        await storeTail(repository, IDENTITY, {
          segment: name,
          from,
          to: cuts[index + 1] ?? to,
          lastCommitTime: commitTime(segment),
          hash: '0'.repeat(32),
          frame: Buffer.from('not read'),
        });
      }
    }
  }
}

function ancestorsOf(world: World, timeline: WorldTimeline): [number, Lsn][] {
  const found: [number, Lsn][] = [];
  for (let one = timeline; one.parent !== undefined;) {
    const parent = world.timelines.get(one.parent);
    if (parent === undefined) break;
    found.unshift([parent.id, lsnOf(one.begin)]);
    one = parent;
  }
  return found;
}

async function storeSegment(
  repository: Repository,
  timeline: WorldTimeline,
  segment: bigint,
  fate: Fate,
  at: bigint,
): Promise<void> {
  const name = walSegmentName(timelineOf(timeline.id), segment, SEGMENT_SIZE);
  const hash = segment.toString(16).padStart(64, '0');
  const key = walDataKey(IDENTITY, name, hash, '00000000');
  const data = Buffer.from('sealed data');
  const begin = segment * SIZE;
  const header = encodeClearObject({
    format: 1,
    kind: 'segment',
    name,
    ...IDENTITY,
    timeline: timeline.id,
    sizeBytes: SEGMENT_SIZE,
    hash,
    frames: [{ storedBytes: data.length, sizeBytes: SEGMENT_SIZE }],
    stored: { key, sizeBytes: data.length, hash },
    seal: 'none',
    storedAt: '2026-01-01T00:00:00.000Z',
    host: 'test',
    wal: {
      startLsn: formatLsn(lsnOf(begin)),
      endLsn: formatLsn(lsnOf(fate === 'damaged' ? at : begin + SIZE)),
      commits: 1,
      aborts: 0,
      firstCommitTime: formatInstant(commitTime(segment)),
      lastCommitTime: formatInstant(commitTime(segment)),
      lastCommitLsn: formatLsn(lsnOf(begin + 16n)),
      restorePoints: [],
      endsInPartialRecord: false,
      switched: false,
      walLevelMinimal: fate === 'minimal',
      ...(fate === 'minimal' && { walLevelMinimalAt: formatLsn(lsnOf(at)) }),
      ...(fate === 'damaged' && { damagedAt: formatLsn(lsnOf(at)), damage: 'a bad record' }),
    },
  });
  const { storage } = repository;
  if (fate !== 'both-deleted' && fate !== 'data-deleted') {
    await storage.put(key, fate === 'truncated' ? data.subarray(1) : data);
  } else await storage.delete(key);
  const headerKey = walHeaderKey(IDENTITY, name);
  if (fate === 'both-deleted' || fate === 'header-deleted') await storage.delete(headerKey);
  else await storage.put(headerKey, fate === 'header-corrupt' ? Buffer.from(header).fill('x', 5, 9) : header);
}

export function recordsOf(world: World): BackupRecord[] {
  return world.backups.map(({ id, timeline, start, stop }) =>
    backupRecord(
      id,
      { start: lsnOf(start), stop: lsnOf(stop), checkpointTime: commitTime(start / SIZE) },
      { timeline },
    ),
  );
}

/** The model: everything by looking at one segment after another. */
export class Model {
  readonly world: World;
  readonly #remembered: boolean;

  /** `remembered`: whoever accounts saw everything before it was lost. */
  constructor(world: World, remembered: boolean) {
    this.world = world;
    this.#remembered = remembered;
  }

  timeline(id: number): WorldTimeline {
    const found = this.world.timelines.get(id);
    if (found === undefined) throw new Error(`no timeline ${id}`);
    return found;
  }

  /** Oldest first; undefined where no history file tells the way. */
  path(id: number): WorldTimeline[] | undefined {
    const path = [this.timeline(id)];
    for (let one = path[0]; one?.parent !== undefined; one = path[0]) {
      const known = [...this.world.timelines.values()].some(
        (other) => !other.historyMissing && this.#descends(other.id, one.id),
      );
      if (!known) return undefined;
      path.unshift(this.timeline(one.parent));
    }
    return path;
  }

  /** Whether a timeline is, or comes from, another: then its history file lists that one's parent. */
  #descends(id: number, from: number): boolean {
    for (let at: number | undefined = id; at !== undefined; at = this.timeline(at).parent) {
      if (at === from) return true;
    }
    return false;
  }

  whole({ segments }: WorldTimeline, segment: bigint): WorldSegment | undefined {
    const found = segments.get(segment);
    return found !== undefined && ['whole', 'minimal', 'damaged'].includes(found.fate) ? found : undefined;
  }

  /** Where recovery from a backup along a path must end; undefined where it does not lead along it or lacks its own WAL. */
  reach(path: readonly WorldTimeline[], backup: WorldBackup): bigint | undefined {
    const at = path.findIndex(({ id }) => id === backup.timeline);
    if (at < 0) return undefined;
    const part = path[at];
    const end = path[at + 1]?.begin;
    if (part === undefined || backup.stop <= part.begin || (end !== undefined && backup.stop > end))
      return undefined;
    const reached = this.#walk(path, backup.start);
    return reached < backup.stop ? undefined : reached;
  }

  #walk(path: readonly WorldTimeline[], from: bigint): bigint {
    for (let segment = from / SIZE; ; segment += 1n) {
      const begin = segment * SIZE;
      // The youngest that has begun in or before the segment, and before it those it shares the segment with.
      const holders = path.filter((one, index) => {
        const next = path[index + 1];
        return one.begin < begin + SIZE && (next === undefined || next.begin > begin);
      });
      const youngest = holders.at(-1);
      if (youngest === undefined) return begin;
      const own = this.whole(youngest, segment);
      if (own !== undefined) {
        if (own.fate !== 'whole' && own.at >= from) return own.at;
        continue;
      }
      let best = begin;
      let broken = false;
      for (const [index, holder] of holders.entries()) {
        const limit = holders[index + 1]?.begin ?? begin + SIZE;
        const copy = index === holders.length - 1 ? undefined : this.whole(holder, segment);
        const tail =
          holder.tail?.segment === segment && !this.hasHeader(holder, segment) ? holder.tail.end : undefined;
        let end = copy !== undefined ? limit : tail === undefined ? begin : tail < limit ? tail : limit;
        let cut = false;
        if (copy !== undefined && copy.fate !== 'whole' && copy.at >= from && copy.at < end) {
          end = copy.at;
          cut = true;
        }
        if (end >= best) [best, broken] = [end, cut];
      }
      if (broken || best < begin + SIZE) return best;
    }
  }

  hasHeader({ segments }: WorldTimeline, segment: bigint): boolean {
    const fate = segments.get(segment)?.fate;
    return fate !== undefined && fate !== 'header-deleted' && fate !== 'both-deleted';
  }

  /** The end of what anything tells of. */
  knownEnd(timeline: WorldTimeline): bigint | undefined {
    let end: bigint | undefined;
    const take = (lsn: bigint): void => {
      if (end === undefined || lsn > end) end = lsn;
    };
    for (const segment of timeline.segments.keys()) {
      if (this.hasHeader(timeline, segment) || this.#remembers(timeline, segment))
        take((segment + 1n) * SIZE);
    }
    if (timeline.tail !== undefined) take(timeline.tail.end);
    for (const backup of this.world.backups) if (backup.timeline === timeline.id) take(backup.stop);
    return end;
  }

  /** What was lost before the first header that is left is taken for expired. */
  #remembers(timeline: WorldTimeline, segment: bigint): boolean {
    if (!this.#remembered) return false;
    const listed = [...timeline.segments.keys()].filter((one) => this.hasHeader(timeline, one));
    const first = listed[0];
    if (first !== undefined) return segment > first;
    const newest = Math.max(
      0,
      ...[...this.world.timelines.values()]
        .filter((one) => [...one.segments.keys()].some((at) => this.hasHeader(one, at)))
        .map(({ id }) => id),
    );
    return timeline.id > newest;
  }

  firstKnown(timeline: WorldTimeline): bigint | undefined {
    let first: bigint | undefined;
    const take = (segment: bigint): void => {
      if (first === undefined || segment < first) first = segment;
    };
    for (const segment of timeline.segments.keys()) {
      if (this.hasHeader(timeline, segment) || this.#remembers(timeline, segment)) take(segment);
    }
    if (timeline.tail !== undefined) take(timeline.tail.segment);
    for (const { timeline: id, start } of this.world.backups) if (id === timeline.id) take(start / SIZE);
    return first;
  }

  /** Segments of a timeline that are wanted and not there, by number, with the cause where it can be known. */
  missing(timeline: WorldTimeline): Map<bigint, string> {
    const found = new Map<bigint, string>();
    const path = this.path(timeline.id);
    const begun =
      path !== undefined &&
      path.length > 1 &&
      path.some((one) => {
        const first = this.firstKnown(one);
        return first !== undefined && first * SIZE < timeline.begin;
      });
    const first = begun ? timeline.begin / SIZE : this.firstKnown(timeline);
    const end = this.knownEnd(timeline);
    const children = [...this.world.timelines.values()].filter(
      ({ id, parent }) => parent === timeline.id && this.path(id) !== undefined,
    );
    const last = [
      ...(end === undefined ? [] : [(end - 1n) / SIZE]),
      ...children.map(({ begin }) => begin / SIZE - 1n),
    ].reduce<bigint | undefined>((most, one) => (most === undefined || one > most ? one : most), undefined);
    if (first === undefined || last === undefined) return found;
    for (let segment = first; segment <= last; segment += 1n) {
      if (this.whole(timeline, segment) !== undefined) continue;
      const tail = timeline.tail;
      if (tail?.segment === segment) {
        const more = (end ?? 0n) > tail.end || children.some(({ begin }) => begin / SIZE > segment);
        if (!more) continue;
      }
      found.set(segment, this.#cause(timeline, segment));
    }
    return found;
  }

  /** Whether anybody would read on behind the place a stored segment breaks off at. `isTip`: a branch ends on it. */
  isWantedBehind(timeline: WorldTimeline, segment: bigint, at: bigint, isTip: boolean): boolean {
    const children = [...this.world.timelines.values()].filter(
      ({ id, parent }) => parent === timeline.id && this.path(id) !== undefined,
    );
    if (isTip || children.length === 0) return true;
    return children.some(
      (child) =>
        child.begin / SIZE > segment ||
        (child.begin / SIZE === segment && child.begin > at && this.whole(child, segment) === undefined),
    );
  }

  #cause({ segments }: WorldTimeline, segment: bigint): string {
    const fate = segments.get(segment)?.fate;
    if (fate === 'header-deleted' || fate === 'data-deleted') return 'deleted';
    if (fate === 'both-deleted' && this.#remembered) return 'deleted';
    return fate === 'truncated' || fate === 'header-corrupt' ? 'damaged' : 'never-archived';
  }

  describe(): string {
    const lines = [...this.world.timelines.values()].map((one) => {
      const history = one.historyMissing ? ', history missing' : '';
      const tail = one.tail === undefined ? '' : `, tail ${one.tail.segment} to ${hex(one.tail.end)}`;
      const segments = [...one.segments]
        .map(([segment, { fate, at }]) => `${segment}${fate === 'whole' ? '' : `:${fate}@${hex(at)}`}`)
        .join(' ');
      return `${formatTimeline(timelineOf(one.id))} from ${one.parent ?? '-'} at ${hex(one.begin)} to ${hex(one.end)}: ${segments}${tail}${history}`;
    });
    const backups = this.world.backups.map(
      ({ id, timeline, start, stop }) => `${id} on ${timeline}: ${hex(start)} to ${hex(stop)}`,
    );
    return [...lines, ...backups].join('\n');
  }
}

export function hex(lsn: bigint): string {
  return formatLsn(lsnOf(lsn));
}
