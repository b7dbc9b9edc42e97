import { throwIfCancelled } from '../cancellation.ts';
import { errorText } from '../errors.ts';
import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import { type TimelineId, formatTimeline } from '../postgres/timeline.ts';
import {
  type WalSegmentName,
  isWalSegmentName,
  parseWalSegmentName,
  segmentStart,
  walSegmentName,
} from '../postgres/wal-segment.ts';
import { walDataPrefix } from '../repository/layout.ts';
import { readWalHeader } from '../repository/wal-file.ts';
import type { SegmentRange } from './coverage.ts';
import { type DigestCache, type DigestFolder, noDigestCache } from './digest-cache.ts';
import { type SegmentDigest, digestOf } from './segment-digest.ts';
import { type WalArchive, isDamage } from './wal-archive.ts';

/** Segments that are not usable although something of them is there, or was. */
export interface WalFault extends SegmentRange {
  timeline: TimelineId;
  kind: /** Its header is there and its data is not. */
    | 'data-lost'
    /** Its header cannot be read, or its data has another length than it was stored with. */
    | 'damaged'
    /** Data that no header names: what a push is at just now or left behind, or all that is left. */
    | 'uncommitted'
    /** Nothing is there, and this host once read its header. */
    | 'header-lost'
    /** The same, before everything of its timeline that is there now. */
    | 'expired';
  detail: string;
}

/** A place inside a segment that recovery from before it cannot pass. */
export interface WalBreak {
  timeline: TimelineId;
  segment: bigint;
  kind: 'damaged' | 'wal-level-minimal';
  at: Lsn;
  /** End of the last record before it, as far as the header tells. */
  endLsn: Lsn;
  detail: string;
}

/** What looking at every header, and at the names of all data, has shown. */
export interface WalAudit {
  faults: readonly WalFault[];
  breaks: readonly WalBreak[];
  /** What the header of a usable segment tells; undefined for every other segment. */
  digest(timeline: TimelineId, segment: bigint): Promise<SegmentDigest | undefined>;
  cost: { segments: number; headersRead: number };
}

export interface AuditOptions {
  cache?: DigestCache;
  now: () => Date;
  signal?: AbortSignal | undefined;
}

const HEADERS_IN_FLIGHT = 48;
/** A header is believed to be as it was for so long; then it is read again, in case its bytes rotted. */
const TRUST_MS = 24 * 3600 * 1000;
const FOLDERS_HELD = 64;
const DATA_NAME = /^([0-9A-F]{24})-[0-9a-f]{16}-[0-9a-f]{8}\.zst(?:\.[a-z]+)?$/;

/**
 * Compares the listing of an archive's segments with the listing of their data and with their headers, which are read or,
 * where the cache has them and their data lies where it should, remembered. Takes segments that turn out to be unusable
 * out of the archive (`exclude`). Memory: one folder of segments at a time, and what is wrong.
 */
export async function auditWal(archive: WalArchive, options: AuditOptions): Promise<WalAudit> {
  const audit = new Audit(archive, options);
  await audit.run();
  return audit;
}

interface Place {
  timeline: TimelineId;
  segment: bigint;
}

interface DataGroup extends Place {
  objects: Map<string, number>;
}

type Judged = Place & ({ digest: SegmentDigest } | { fault: WalFault['kind']; detail: string });

class Audit implements WalAudit {
  readonly faults: WalFault[] = [];
  readonly breaks: WalBreak[] = [];
  readonly cost = { segments: 0, headersRead: 0 };
  readonly #archive: WalArchive;
  readonly #cache: DigestCache;
  readonly #now: number;
  readonly #signal: AbortSignal | undefined;
  readonly #folders = new Map<string, Promise<DigestFolder>>();
  readonly #loaded = new Set<string>();
  readonly #changed = new Set<string>();
  /** As they were before anything was taken out of them. */
  readonly #listedRanges: ReadonlyMap<TimelineId, readonly SegmentRange[]>;
  readonly #newestListed: number;

  constructor(archive: WalArchive, { cache = noDigestCache, now, signal }: AuditOptions) {
    this.#archive = archive;
    this.#cache = cache;
    this.#now = now().getTime();
    this.#signal = signal;
    this.#listedRanges = new Map(
      archive.tree.timelines.map((timeline) => [timeline, archive.ranges(timeline)] as const),
    );
    this.#newestListed = Math.max(
      0,
      ...[...this.#listedRanges].filter(([, ranges]) => ranges.length > 0).map(([timeline]) => timeline),
    );
  }

  async run(): Promise<void> {
    const unusable: Place[] = [];
    const queue: Promise<Judged>[] = [];
    const settle = async (): Promise<void> => {
      const judged = await queue.shift();
      if (judged === undefined) return;
      if ('digest' in judged) this.#noteBreak(judged, judged.digest);
      else {
        if (judged.fault !== 'uncommitted') unusable.push(judged);
        this.#noteFault(judged, judged.fault, judged.detail);
      }
    };
    for await (const [place, group] of this.#joined()) {
      throwIfCancelled(this.#signal);
      const judging = this.#judge(place, group);
      // It is awaited in its turn; if that never comes, nobody else looks at it.
      judging.catch(() => undefined);
      queue.push(judging);
      if (queue.length >= HEADERS_IN_FLIGHT) await settle();
    }
    while (queue.length > 0) await settle();
    for (const { timeline, segment } of unusable) this.#archive.exclude(timeline, segment);
    await this.#finish();
  }

  async digest(timeline: TimelineId, segment: bigint): Promise<SegmentDigest | undefined> {
    if (!isWithin(this.#archive.ranges(timeline), segment)) return undefined;
    const name = this.#name({ timeline, segment });
    const known = (await this.#folder(name)).get(name);
    if (known !== undefined) return known.digest;
    const header = await readWalHeader(this.#archive.repository, this.#archive.identity, name, this.#signal);
    return header && digestOf(header);
  }

  /** Every segment that has a header or data, in order. */
  async *#joined(): AsyncGenerator<[Place & { listed: boolean }, Map<string, number>]> {
    const listed = this.#listed();
    let next = listed.next();
    for await (const group of this.#data()) {
      while (next.done !== true && isBefore(next.value, group)) {
        yield [{ ...next.value, listed: true }, new Map()];
        next = listed.next();
      }
      const both = next.done !== true && !isBefore(group, next.value);
      yield [{ timeline: group.timeline, segment: group.segment, listed: both }, group.objects];
      if (both) next = listed.next();
    }
    for (; next.done !== true; next = listed.next()) yield [{ ...next.value, listed: true }, new Map()];
  }

  *#listed(): Generator<Place, undefined> {
    for (const [timeline, ranges] of this.#listedRanges) {
      for (const { first, last } of ranges) {
        for (let segment = first; segment <= last; segment += 1n) yield { timeline, segment };
      }
    }
    return undefined;
  }

  async *#data(): AsyncGenerator<DataGroup> {
    const { repository, identity, segmentSize } = this.#archive;
    let group: (DataGroup & { name: string }) | undefined;
    const listing = repository.storage.list(walDataPrefix(identity), {
      ...(this.#signal && { signal: this.#signal }),
    });
    for await (const { key, sizeBytes } of listing) {
      const name = DATA_NAME.exec(key.slice(key.lastIndexOf('/') + 1))?.[1];
      if (name === undefined || !isWalSegmentName(name)) continue;
      if (group?.name !== name) {
        if (group !== undefined) yield group;
        const place = placeOf(name, segmentSize);
        group = place && { name, ...place, objects: new Map() };
      }
      group?.objects.set(key, sizeBytes);
    }
    if (group !== undefined) yield group;
  }

  async #judge(place: Place & { listed: boolean }, objects: Map<string, number>): Promise<Judged> {
    const name = this.#name(place);
    const folder = await this.#folder(name);
    const known = folder.get(name);
    if (!place.listed) {
      return known !== undefined && this.#isWanted(place)
        ? { ...place, fault: 'header-lost', detail: 'its data is there, and this host saw its header' }
        : { ...place, fault: 'uncommitted', detail: 'its data is there and its header is not' };
    }
    this.cost.segments += 1;
    if (known !== undefined && this.#isTrusted(known.readAt)) {
      const { dataKey, storedBytes } = known.digest;
      if (objects.get(dataKey) === storedBytes) return { ...place, digest: known.digest };
    }
    return { ...place, ...(await this.#look(name, folder, objects)) };
  }

  /** Reads a header and compares it with the data that was listed. */
  async #look(
    name: WalSegmentName,
    folder: DigestFolder,
    objects: ReadonlyMap<string, number>,
  ): Promise<{ digest: SegmentDigest } | { fault: WalFault['kind']; detail: string }> {
    const { repository, identity } = this.#archive;
    this.cost.headersRead += 1;
    let digest: SegmentDigest;
    try {
      const header = await readWalHeader(repository, identity, name, this.#signal);
      if (header === undefined) return { fault: 'header-lost', detail: 'its header has just gone' };
      digest = digestOf(header);
    } catch (error) {
      if (!isDamage(error)) throw error;
      return { fault: 'damaged', detail: errorText(error) };
    }
    const { dataKey, storedBytes } = digest;
    // It may have been stored, or stored anew, since the listing passed its place.
    const bytes =
      objects.get(dataKey) ??
      (await repository.storage.head(dataKey, { ...(this.#signal && { signal: this.#signal }) }))?.sizeBytes;
    if (bytes === undefined) return { fault: 'data-lost', detail: `its data ${dataKey} is gone` };
    if (bytes !== storedBytes) {
      return {
        fault: 'damaged',
        detail: `its data ${dataKey} has ${bytes} bytes instead of ${storedBytes}`,
      };
    }
    folder.set(name, { digest, readAt: this.#now });
    this.#changed.add(name.slice(0, 16));
    return { digest };
  }

  #noteFault({ timeline, segment }: Place, kind: WalFault['kind'], detail: string): void {
    const last = this.faults.at(-1);
    if (last?.timeline === timeline && last.kind === kind && last.last === segment - 1n) {
      if (!last.detail.endsWith(MORE)) last.detail += MORE;
      last.last = segment;
      return;
    }
    this.faults.push({ timeline, first: segment, last: segment, kind, detail });
  }

  #noteBreak({ timeline, segment }: Place, { note, sizeBytes }: SegmentDigest): void {
    const size = this.#archive.segmentSize;
    const begin = segmentStart(segment, size);
    const found: Pick<WalBreak, 'kind' | 'at' | 'detail'>[] = [];
    if (note?.damage !== undefined) {
      found.push({ kind: 'damaged', at: note.damage.at, detail: note.damage.detail });
    } else if (sizeBytes !== size) {
      const at = lsnOf(begin + BigInt(Math.min(sizeBytes, size)));
      found.push({
        kind: 'damaged',
        at,
        detail: `it was stored with ${sizeBytes} bytes instead of ${size}`,
      });
    }
    if (note?.minimal !== undefined) {
      // Without the place, only what lies before the segment is certain.
      const detail = 'wal_level was minimal from here on';
      found.push({ kind: 'wal-level-minimal', at: note.minimal.at ?? begin, detail });
    }
    found.sort((a, b) => (a.at < b.at ? -1 : 1));
    for (const one of found) {
      const endLsn = note === undefined || note.endLsn > one.at ? one.at : note.endLsn;
      this.breaks.push({ timeline, segment, endLsn, ...one });
    }
  }

  /** Segments that this host once saw here and that are not listed any more. Before the first listed one they expired. */
  #noteForgotten(digests: DigestFolder): void {
    const { segmentSize } = this.#archive;
    for (const name of [...digests.keys()].sort()) {
      const place = placeOf(name, segmentSize);
      if (place === undefined) continue;
      const { timeline, segment } = place;
      if (isWithin(this.#listedRanges.get(timeline) ?? [], segment)) continue;
      if (this.faults.some((fault) => fault.timeline === timeline && isWithin([fault], segment))) continue;
      const kind = this.#isWanted(place) ? 'header-lost' : 'expired';
      this.#noteFault(place, kind, 'this host saw it stored here');
    }
  }

  /** What lies before the first listed segment of a timeline, or of all, was expired. */
  #isWanted({ timeline, segment }: Place): boolean {
    const start = this.#listedRanges.get(timeline)?.[0]?.first;
    return start === undefined ? timeline > this.#newestListed : segment >= start;
  }

  async #finish(): Promise<void> {
    for (const digests of this.#folders.values()) this.#noteForgotten(await digests);
    for (const folder of await this.#cache.folders()) {
      if (!this.#loaded.has(folder)) this.#noteForgotten(await this.#cache.load(folder));
    }
    this.faults.sort((a, b) =>
      a.timeline === b.timeline ? compare(a.first, b.first) : a.timeline - b.timeline,
    );
    for (const folder of this.#changed) {
      const digests = await this.#folders.get(folder);
      if (digests !== undefined) await this.#cache.store(folder, digests);
    }
    const { tree, segmentSize } = this.#archive;
    const oldest = new Map(
      tree.timelines.map((timeline) => {
        const first = this.#listedRanges.get(timeline)?.[0]?.first ?? 0n;
        return [formatTimeline(timeline), walSegmentName(timeline, first, segmentSize).slice(0, 16)] as const;
      }),
    );
    await this.#cache.prune((folder) => folder < (oldest.get(folder.slice(0, 8)) ?? ''));
  }

  async #folder(name: WalSegmentName): Promise<DigestFolder> {
    const folder = name.slice(0, 16);
    let digests = this.#folders.get(folder);
    if (digests === undefined) {
      digests = this.#cache.load(folder);
      this.#folders.set(folder, digests);
      this.#loaded.add(folder);
      await this.#shrink();
    }
    return await digests;
  }

  /** Of very long archives only some folders are held. */
  async #shrink(): Promise<void> {
    for (const [folder, digests] of this.#folders) {
      if (this.#folders.size <= FOLDERS_HELD) return;
      this.#folders.delete(folder);
      this.#noteForgotten(await digests);
      if (this.#changed.delete(folder)) await this.#cache.store(folder, await digests);
    }
  }

  #isTrusted(readAt: number): boolean {
    return readAt <= this.#now && this.#now - readAt < TRUST_MS;
  }

  #name({ timeline, segment }: Place): WalSegmentName {
    return walSegmentName(timeline, segment, this.#archive.segmentSize);
  }
}

const MORE = ' (and more)';

function isBefore(a: Place, b: Place): boolean {
  return a.timeline === b.timeline ? a.segment < b.segment : a.timeline < b.timeline;
}

function isWithin(ranges: readonly SegmentRange[], segment: bigint): boolean {
  return ranges.some(({ first, last }) => first <= segment && segment <= last);
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Undefined for a name that cannot occur with this segment size. */
function placeOf(name: string, segmentSize: number): Place | undefined {
  try {
    const { timeline, segmentNumber } = parseWalSegmentName(name, segmentSize);
    return { timeline, segment: segmentNumber };
  } catch {
    return undefined;
  }
}
