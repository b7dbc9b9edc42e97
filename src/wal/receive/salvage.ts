import { type FileHandle, open } from 'node:fs/promises';

import { HoldfastError } from '../../errors.ts';
import { LONG_HEADER_BYTES, readWalLongHeader } from '../../postgres/wal-page.ts';
import { parseLsn } from '../../postgres/lsn.ts';
import { parseWalSegmentName, segmentStart, type WalSegmentName } from '../../postgres/wal-segment.ts';
import { createWalSummarizer } from '../../postgres/wal-summary.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHeader, storeWalFile } from '../../repository/wal-file.ts';
import { findTailChain, prepareTail, storeTail, TAIL_PIECE_BYTES } from '../../repository/wal-tail.ts';
import { openWalSource } from '../wal-source.ts';
import type { SegmentSpool } from './segment-spool.ts';
import { assertSameBytes, dropTails } from './tail-writer.ts';

export interface SalvageOptions {
  spool: SegmentSpool;
  required: readonly Repository[];
  identity: ClusterIdentity;
  host: string;
  now: () => Date;
  signal: AbortSignal;
  /** Something was stored that would have been lost had the server not come back. */
  salvaged: (name: string, sizeBytes: number) => void;
}

/** PostgreSQL's MAXALIGN on every 64-bit machine. */
const RECORD_ALIGNMENT = 8;

/** What of a left-over file can be trusted: whole records with right checksums. */
interface SoundPart {
  sizeBytes: number;
  isWhole: boolean;
  lastCommitTime: bigint | undefined;
}

/**
 * Stores what a receiver that was killed had received and not yet stored: its server may never come back. What is stored
 * already, contradicts what is stored, or belongs to another cluster, is left out. Removes nothing; may be repeated.
 */
export async function salvageSpool(options: SalvageOptions): Promise<void> {
  for (const { name, path } of await options.spool.leftOver()) {
    const handle = await open(path, 'r');
    try {
      const sound = await soundPart(handle, name, options.identity);
      if (sound === undefined) return;
      for (const repository of options.required) {
        if (!(await isSame(repository, handle, name, sound, options))) continue;
        const stored = sound.isWhole
          ? await storeWhole(repository, path, name, options)
          : await storeBeginning(repository, handle, name, sound, options);
        if (stored > 0) options.salvaged(name, stored);
        if (sound.isWhole) await dropTails(repository, options.identity, name, options.signal);
      }
      // What follows on a hole could not be restored.
      if (!sound.isWhole) return;
    } finally {
      await handle.close();
    }
  }
}

/** Whether what is stored of the segment is the beginning of this file: two servers may have written it. */
async function isSame(
  repository: Repository,
  handle: FileHandle,
  name: WalSegmentName,
  { sizeBytes }: SoundPart,
  { identity, signal }: SalvageOptions,
): Promise<boolean> {
  const file = { read: async (from: number, to: number) => readPart(handle, from, to) };
  try {
    await assertSameBytes(repository, identity, name, file, sizeBytes, signal);
    return true;
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'wal-conflict') return false;
    throw error;
  }
}

/** Undefined where it is no WAL of this cluster, or nothing of it can be trusted. */
async function soundPart(
  handle: FileHandle,
  name: WalSegmentName,
  identity: ClusterIdentity,
): Promise<SoundPart | undefined> {
  const { size } = await handle.stat();
  if (size < LONG_HEADER_BYTES) return undefined;
  const segmentSize = segmentSizeOf(await readPart(handle, 0, LONG_HEADER_BYTES), name, identity);
  if (segmentSize === undefined) return undefined;
  const start = segmentStart(parseWalSegmentName(name, segmentSize).segmentNumber, segmentSize);
  const summarizer = createWalSummarizer({ start, segmentSize, partial: size < segmentSize });
  for (let at = 0; at < size; at += TAIL_PIECE_BYTES) {
    summarizer.push(await readPart(handle, at, Math.min(size, at + TAIL_PIECE_BYTES)));
  }
  const { endLsn, damage } = summarizer.finish();
  const isWhole = size === segmentSize && damage === undefined;
  const sizeBytes = isWhole ? size : Number(parseLsn(endLsn) - start);
  return sizeBytes <= 0 ? undefined : { sizeBytes, isWhole, lastCommitTime: summarizer.lastCommitTime() };
}

function segmentSizeOf(page: Buffer, name: WalSegmentName, identity: ClusterIdentity): number | undefined {
  try {
    const { segmentSize, systemIdentifier, pageAddress } = readWalLongHeader(page);
    const { segmentNumber } = parseWalSegmentName(name, segmentSize);
    const fits =
      systemIdentifier === identity.systemIdentifier &&
      pageAddress === segmentStart(segmentNumber, segmentSize);
    return fits ? segmentSize : undefined;
  } catch (error) {
    if (error instanceof HoldfastError) return undefined;
    throw error;
  }
}

async function storeWhole(
  repository: Repository,
  path: string,
  name: WalSegmentName,
  { identity, host, now, signal }: SalvageOptions,
): Promise<number> {
  if ((await readWalHeader(repository, identity, name, signal)) !== undefined) return 0;
  await using source = await openWalSource(path);
  const { sizeBytes, modifiedAt } = source;
  const file = { name, sizeBytes, modifiedAt, hash: await source.hash(), frames: () => source.frames() };
  await storeWalFile(repository, identity, file, { host, now, signal });
  return sizeBytes;
}

async function storeBeginning(
  repository: Repository,
  handle: FileHandle,
  name: WalSegmentName,
  sound: SoundPart,
  { identity, signal }: SalvageOptions,
): Promise<number> {
  if ((await readWalHeader(repository, identity, name, signal)) !== undefined) return 0;
  const already = (await findTailChain(repository, identity, name, signal))?.end ?? 0;
  for (let from = already; from < sound.sizeBytes; from += TAIL_PIECE_BYTES) {
    const to = Math.min(sound.sizeBytes, from + TAIL_PIECE_BYTES);
    const bytes = await readPart(handle, from, to);
    await storeTail(repository, identity, await prepareTail(name, from, bytes, sound.lastCommitTime), signal);
  }
  return Math.max(0, sound.sizeBytes - already);
}

/** A record's end is aligned, and the file may end right behind the record: what is missing of the padding is zeros. */
async function readPart(handle: FileHandle, from: number, to: number): Promise<Buffer> {
  const buffer = Buffer.alloc(to - from);
  for (let filled = 0; filled < buffer.length;) {
    const { bytesRead } = await handle.read(buffer, filled, buffer.length - filled, from + filled);
    if (bytesRead === 0) {
      if (buffer.length - filled < RECORD_ALIGNMENT) return buffer;
      throw new HoldfastError('assertion', 'a file of the spool shrank while it was read');
    }
    filled += bytesRead;
  }
  return buffer;
}
