import { HoldfastError } from '../errors.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { LONG_HEADER_BYTES } from '../postgres/wal-page.ts';
import type { WalSegmentName } from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalFile, readWalHeader } from '../repository/wal-file.ts';
import {
  type WalTailChain,
  chainTails,
  findTailChain,
  listTails,
  readTail,
  tailsBySegment,
} from '../repository/wal-tail.ts';

/** How often WAL that is rewritten while it is read is looked for anew. */
const MAX_LOOKS = 10;

/**
 * The tails of segments that have no header, per timeline, in the order of the segments. What is shorter than a page
 * header holds no WAL and is left out. Memory: the chains of segments without a header, of which there are few.
 */
export async function listArchivedTails(
  repository: Repository,
  identity: ClusterIdentity,
  segmentSize: number,
  hasHeader: (segment: WalSegmentName) => boolean,
  signal?: AbortSignal,
): Promise<Map<TimelineId, WalTailChain[]>> {
  const found = new Map<TimelineId, WalTailChain[]>();
  for await (const tails of tailsBySegment(listTails(repository, identity, { ...(signal && { signal }) }))) {
    const { timeline, segment } = tails[0];
    if (hasHeader(segment)) continue;
    const chain = chainTails(tails.filter(({ to }) => to <= segmentSize));
    if (chain === undefined || chain.end < LONG_HEADER_BYTES) continue;
    const list = found.get(timeline) ?? [];
    list.push(chain);
    found.set(timeline, list);
  }
  return found;
}

/** What is left of a chain when only its first bytes can be used; undefined where that is no WAL. */
export function shortenedChain(chain: WalTailChain, end: number): WalTailChain | undefined {
  const shorter = chainTails(chain.tails.filter(({ to }) => to <= end));
  return shorter === undefined || shorter.end < LONG_HEADER_BYTES ? undefined : shorter;
}

/**
 * The bytes of a chain up to its end. Where its tails have meanwhile been replaced by longer ones or by the whole
 * segment, the rest comes from those: WAL that was stored once never changes. Each stretch is verified before it is
 * yielded, except for what comes from the whole segment, which is proven when the stream has ended.
 */
export async function* readArchivedTail(
  repository: Repository,
  identity: ClusterIdentity,
  listed: WalTailChain,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  let chain = listed;
  let at = 0;
  let looked = 0;
  while (at < listed.end) {
    const next = chain.tails.find(({ from, to }) => from <= at && to > at);
    try {
      if (next === undefined) throw gone(listed);
      const plain = await readTail(repository, next, signal);
      const wanted = plain.subarray(at - next.from, Math.min(next.to, listed.end) - next.from);
      at += wanted.length;
      yield wanted;
    } catch (error) {
      if (!isGone(error)) throw error;
      const header = await readWalHeader(repository, identity, listed.segment, signal);
      if (header !== undefined) {
        yield* stretch(readWalFile(repository, header, signal), at, listed.end);
        return;
      }
      const now = await findTailChain(repository, identity, listed.segment, signal);
      looked += 1;
      if (now === undefined || now.end < listed.end || looked > MAX_LOOKS) throw error;
      chain = now;
    }
  }
}

/** Reads a stream to its end, as only that proves it, and yields its bytes from one offset up to another. */
async function* stretch(source: AsyncIterable<Buffer>, from: number, to: number): AsyncGenerator<Buffer> {
  let position = 0;
  for await (const chunk of source) {
    const [begin, end] = [Math.max(0, from - position), Math.min(chunk.length, to - position)];
    if (begin < end) yield chunk.subarray(begin, end);
    position += chunk.length;
  }
}

function gone({ segment }: WalTailChain): HoldfastError {
  return new HoldfastError('object-missing', `a tail of wal segment ${segment} is gone`);
}

function isGone(error: unknown): boolean {
  return error instanceof HoldfastError && error.code === 'object-missing';
}
