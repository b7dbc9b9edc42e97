import type { Lsn } from '../postgres/lsn.ts';
import { type TimelineId, timelineOf } from '../postgres/timeline.ts';
import { segmentOfLsn, segmentStart } from '../postgres/wal-segment.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { type WalGapNote, listGapNotes } from '../repository/wal-gap-note.ts';
import type { WalHighWaterMark } from '../repository/wal-high-water.ts';
import { type Account, type AccountGap, planAccount } from './accounting.ts';
import { candidateOf } from './choose-backup.ts';
import type { DigestCache } from './digest-cache.ts';
import type { Instant } from './instant.ts';
import type { ReachedRange } from './path-reach.ts';
import { branchesOf } from './plan.ts';
import { sealedHistories, withoutOrigin } from './sealed-histories.ts';
import type { TimelinePath } from './timelines.ts';
import { type WalArchive, segmentTails } from './wal-archive.ts';
import { type WalAudit, auditWal } from './wal-audit.ts';

/** A commit as headers and tails tell of it: of a tail only its time is known. */
export interface KnownCommit {
  time: Instant;
  lsn: Lsn | undefined;
}

/** A range with what only its segments' headers tell. */
export interface RangeEnd {
  /** End of the last record in it; of a tail, the end of its last byte. */
  lsn: Lsn;
  timeline: TimelineId;
  lastCommit: KnownCommit | undefined;
}

export interface GapTimes {
  lastCommitBefore: KnownCommit | undefined;
  firstCommitAfter: KnownCommit | undefined;
}

/** Everything about what one repository can give back of one history. */
export interface ArchiveAccount {
  archive: WalArchive;
  backups: readonly BackupRecord[];
  account: Account;
  ends: ReadonlyMap<ReachedRange, RangeEnd>;
  times: ReadonlyMap<AccountGap, GapTimes>;
  cost: WalAudit['cost'];
}

export interface AccountOptions {
  cache?: DigestCache;
  /** Read before the archive was: it then says nothing of WAL that came later. */
  highWater: WalHighWaterMark | undefined;
  now: () => Date;
  signal?: AbortSignal | undefined;
}

/** How many segments are looked at, one way, for the nearest commit. */
const LOOK = 4096;

/**
 * Accounts for an archive: looks at every header and at the names of all data, and says what can be restored and what not.
 * Takes unusable segments out of the archive. Opens no WAL and needs no key, but for history files.
 */
export async function accountArchive(
  opened: WalArchive,
  backups: readonly BackupRecord[],
  options: AccountOptions,
): Promise<ArchiveAccount> {
  const { highWater, signal } = options;
  const sealed = await sealedHistories(opened, signal);
  const archive = { ...opened, tree: withoutOrigin(opened.tree, sealed) };
  const audit = await auditWal(archive, options);
  const notes: WalGapNote[] = await Array.fromAsync(
    listGapNotes(archive.repository, archive.identity, signal),
  );
  const candidates = backups.map((record) => candidateOf(record));
  const tails = new Map(archive.tree.timelines.map((one) => [one, segmentTails(archive, one)] as const));
  const account = planAccount({
    segmentSize: archive.segmentSize,
    tree: archive.tree,
    sealed,
    ranges: (timeline) => archive.ranges(timeline),
    tails: (timeline) => tails.get(timeline) ?? [],
    breaks: audit.breaks,
    faults: audit.faults,
    notes,
    candidates,
    tips: await branchesOf(archive, candidates),
    confirmed:
      highWater?.repositories.includes(archive.repository.name) === true
        ? { timeline: timelineOf(highWater.timeline), endLsn: highWater.endLsn }
        : undefined,
  });
  const lookup = new Lookup(archive, audit);
  const ends = new Map<ReachedRange, RangeEnd>();
  for (const { path, ranges } of [...account.branches, ...presentBranch(account, archive)]) {
    for (const range of ranges) ends.set(range, await lookup.endOf(path, range));
  }
  const times = new Map<AccountGap, GapTimes>();
  for (const gap of account.gaps) times.set(gap, await lookup.timesOf(gap, account.present?.timeline));
  return { archive, backups, account, ends, times, cost: audit.cost };
}

/** The present end's own range is another object than the branch's. */
function presentBranch(
  { present }: Account,
  { tree }: WalArchive,
): { path: TimelinePath; ranges: readonly ReachedRange[] }[] {
  if (present?.range === undefined) return [];
  return [{ path: tree.path(present.timeline), ranges: [present.range] }];
}

interface Place {
  timeline: TimelineId;
  segment: bigint;
}

class Lookup {
  readonly #archive: WalArchive;
  readonly #audit: WalAudit;

  constructor(archive: WalArchive, audit: WalAudit) {
    this.#archive = archive;
    this.#audit = audit;
  }

  async endOf(path: TimelinePath, range: ReachedRange): Promise<RangeEnd> {
    const { coverage, last, cut, bound } = range;
    const first = segmentOfLsn(range.backups[0].start, this.#archive.segmentSize);
    const commit = this.#commitInTail(range) ?? (await this.#commitBefore(path, last.segment, first, bound));
    // A switch point is the end of a record; where a tail ends, or the record that is refused begins, is in no header.
    const isEnd = cut === undefined ? coverage.limit !== undefined : cut.kind === 'wal-level-minimal';
    const lsn = isEnd ? bound : await this.#lastRecordEnd(path, last.segment, first, bound);
    return { lsn, timeline: last.timeline, lastCommit: commit };
  }

  #commitInTail({ coverage, last, bound }: ReachedRange): KnownCommit | undefined {
    if (!coverage.endsInTail) return undefined;
    const at = segmentTails(this.#archive, last.timeline).findIndex(
      ({ segment }) => segment === last.segment,
    );
    const [tail, chain] = [
      segmentTails(this.#archive, last.timeline)[at],
      this.#archive.tails(last.timeline)[at],
    ];
    // Cut off by a switch point it may have lost its last commit.
    if (chain?.lastCommitTime === undefined || tail?.end !== bound) return undefined;
    return { time: chain.lastCommitTime, lsn: undefined };
  }

  async timesOf(gap: AccountGap, newest: TimelineId | undefined): Promise<GapTimes> {
    const path = this.#pathOver(gap.timeline, newest);
    if (path === undefined) return { lastCommitBefore: undefined, firstCommitAfter: undefined };
    return {
      lastCommitBefore: await this.#commitBefore(path, gap.first, 0n, gap.fromLsn),
      firstCommitAfter: await this.#commitAfter(path, gap.first, gap.toLsn),
    };
  }

  /** The way to the present where it leads over a timeline, else the way to that timeline. */
  #pathOver(timeline: TimelineId, newest: TimelineId | undefined): TimelinePath | undefined {
    for (const tip of newest === undefined ? [timeline] : [newest, timeline]) {
      try {
        const path = this.#archive.tree.path(tip);
        if (path.some((part) => part.timeline === timeline)) return path;
      } catch {
        // An orphan: there is no way that is known.
      }
    }
    return undefined;
  }

  /** The end of the last whole record before `bound`; records over a border are in no header, so it may be a little less. */
  async #lastRecordEnd(path: TimelinePath, from: bigint, first: bigint, bound: Lsn): Promise<Lsn> {
    for (const place of this.#backwards(path, from, first)) {
      const note = (await this.#audit.digest(place.timeline, place.segment))?.note;
      if (note === undefined) return bound;
      const start = segmentStart(place.segment, this.#archive.segmentSize);
      if (note.endLsn > start) return note.endLsn < bound ? note.endLsn : bound;
    }
    return bound;
  }

  async #commitBefore(
    path: TimelinePath,
    from: bigint,
    first: bigint,
    bound: Lsn,
  ): Promise<KnownCommit | undefined> {
    for (const place of this.#backwards(path, from, first)) {
      const note = (await this.#audit.digest(place.timeline, place.segment))?.note;
      if (note?.lastCommitTime === undefined) continue;
      // Of a segment whose last commit lies behind the bound it is not known which one is the last before it.
      if (note.lastCommitLsn === undefined || note.lastCommitLsn < bound) {
        return { time: note.lastCommitTime, lsn: note.lastCommitLsn };
      }
    }
    return undefined;
  }

  async #commitAfter(path: TimelinePath, from: bigint, bound: Lsn): Promise<KnownCommit | undefined> {
    for (const place of this.#forwards(path, from)) {
      const size = this.#archive.segmentSize;
      if (segmentStart(place.segment + 1n, size) <= bound) continue;
      const note = (await this.#audit.digest(place.timeline, place.segment))?.note;
      if (note?.firstCommitTime === undefined) continue;
      if (note.lastCommitLsn !== undefined && note.lastCommitLsn < bound) continue;
      return { time: note.firstCommitTime, lsn: undefined };
    }
    return undefined;
  }

  /** The segments along a path that are there, from one back to another. */
  *#backwards(path: TimelinePath, from: bigint, to: bigint): Generator<Place> {
    let left = LOOK;
    for (const [index, part] of [...path.entries()].toReversed()) {
      const next = path[index + 1];
      const size = this.#archive.segmentSize;
      // The parent's copy of a child's first segment is the one to look at where the child has none.
      const end = next === undefined ? from : segmentOfLsn(next.begin, size);
      const newest = end < from ? end : from;
      const oldest = [segmentOfLsn(part.begin, size), to].reduce((a, b) => (a > b ? a : b));
      for (const { first, last } of this.#archive.ranges(part.timeline).toReversed()) {
        const stop = first > oldest ? first : oldest;
        for (let segment = last < newest ? last : newest; segment >= stop && left > 0; segment -= 1n) {
          left -= 1;
          yield { timeline: part.timeline, segment };
        }
      }
    }
  }

  *#forwards(path: TimelinePath, from: bigint): Generator<Place> {
    let left = LOOK;
    const size = this.#archive.segmentSize;
    for (const [index, part] of path.entries()) {
      const next = path[index + 1];
      const begin = segmentOfLsn(part.begin, size);
      for (const range of this.#archive.ranges(part.timeline)) {
        const start = [range.first, begin, from].reduce((a, b) => (a > b ? a : b));
        for (let segment = start; segment <= range.last && left > 0; segment += 1n) {
          if (next !== undefined && segment >= segmentOfLsn(next.begin, size)) break;
          left -= 1;
          yield { timeline: part.timeline, segment };
        }
      }
    }
  }
}
