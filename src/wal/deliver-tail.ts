import { HoldfastError } from '../errors.ts';
import { parseSystemIdentifier } from '../postgres/system-identifier.ts';
import { checkWalSegment, LONG_HEADER_BYTES } from '../postgres/wal-page.ts';
import type { WalSegmentName } from '../postgres/wal-segment.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalHeader } from '../repository/wal-file.ts';
import { chainTails, listTails, readTail, type WalTail, type WalTailChain } from '../repository/wal-tail.ts';
import { placeFile } from './place-file.ts';

/** The tails that one repository has of a segment without a header. */
export interface FoundTail {
  repository: Repository;
  identity: ClusterIdentity;
  segment: WalSegmentName;
  segmentSize: number;
  /** Every tail of the segment, as listed. */
  tails: readonly WalTail[];
  chain: WalTailChain;
  /** How many bytes suffice for what recovery has to reach; undefined: everything there is. */
  enough: number | undefined;
}

export type TailDelivery =
  | { kind: 'delivered'; end: number; warnings: HoldfastError[] }
  /** While it was read, more was stored, or the whole segment: it has to be looked for again. */
  | { kind: 'changed' };

const ZEROS_BYTES = 256 * 1024;

/**
 * Hands the stored part of a segment to recovery, padded with zeros to the segment's size, as PostgreSQL makes its own
 * segments. Every tail is verified before any of its bytes is used. A damaged one is done without where the others reach
 * as far as they have to, with a warning; else its error is thrown. Where `enough` is left out, nothing longer was there
 * when the last byte had been read. The destination is touched only by `delivered`.
 */
export async function deliverTail(
  found: FoundTail,
  destination: string,
  signal?: AbortSignal,
): Promise<TailDelivery> {
  const needed = found.enough ?? found.chain.end;
  const warnings: HoldfastError[] = [];
  const damaged = new Set<WalTail>();
  for (;;) {
    const chain = chainTails(found.tails.filter((tail) => !damaged.has(tail)));
    const [first] = warnings;
    if (chain === undefined || chain.end < needed) throw first ?? tooShort(found);
    let reading: WalTail | undefined;
    async function* source(): AsyncGenerator<Buffer> {
      const { segment, segmentSize, repository } = found;
      const expected = {
        name: segment,
        sizeBytes: segmentSize,
        systemIdentifier: parseSystemIdentifier(found.identity.systemIdentifier),
      };
      let head: Buffer | undefined = Buffer.alloc(0);
      let at = 0;
      for (const tail of chain?.tails ?? []) {
        reading = tail;
        const plain = (await readTail(repository, tail, signal)).subarray(at - tail.from);
        reading = undefined;
        at = tail.to;
        if (head === undefined) yield plain;
        else {
          head = Buffer.concat([head, plain]);
          if (head.length < LONG_HEADER_BYTES) continue;
          checkWalSegment(head, expected);
          yield head;
          head = undefined;
        }
      }
      if (found.enough === undefined && !(await isUnchanged(found, signal))) throw new TailChanged();
      for (; at < segmentSize; at += ZEROS_BYTES) yield Buffer.alloc(Math.min(ZEROS_BYTES, segmentSize - at));
    }
    try {
      await placeFile(destination, source());
      return { kind: 'delivered', end: chain.end, warnings };
    } catch (error) {
      if (error instanceof TailChanged) return { kind: 'changed' };
      if (!(error instanceof HoldfastError) || reading === undefined) throw error;
      if (error.code === 'object-missing') return { kind: 'changed' };
      if (error.code !== 'object-damaged') throw error;
      damaged.add(reading);
      warnings.push(error);
    }
  }
}

class TailChanged extends Error {
  override readonly name = 'TailChanged';
}

/**
 * A listing is no snapshot: of tails that are being merged it may show neither the old nor the new. Two that show the same
 * missed nothing.
 */
async function isUnchanged(found: FoundTail, signal: AbortSignal | undefined): Promise<boolean> {
  const { repository, identity, segment, tails } = found;
  if ((await readWalHeader(repository, identity, segment, signal)) !== undefined) return false;
  const now = new Set<string>();
  for await (const { key } of listTails(repository, identity, { segment, ...(signal && { signal }) }))
    now.add(key);
  return now.size === tails.length && tails.every(({ key }) => now.has(key));
}

function tooShort({ segment, repository }: FoundTail): HoldfastError {
  return new HoldfastError('wal-gap', `repository ${repository.name} does not have enough of ${segment}`, {
    context: { name: segment, repository: repository.name },
  });
}
