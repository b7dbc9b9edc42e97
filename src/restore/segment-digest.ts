import { type Lsn, formatLsn, parseLsn } from '../postgres/lsn.ts';
import type { WalHeader } from '../repository/wal-file.ts';
import type { Instant } from './instant.ts';
import { readNote } from './segment-note.ts';

/** What accounting wants to know of a stored segment: a small part of its header, which never changes. */
export interface SegmentDigest {
  dataKey: string;
  /** As the data lies in the store. */
  storedBytes: number;
  /** Of the plain segment. */
  sizeBytes: number;
  /** Undefined where the header tells nothing of what is in the segment. */
  note: DigestNote | undefined;
}

export interface DigestNote {
  /** Of the last whole record; the segment's start where it has none. */
  endLsn: Lsn;
  endsInPartialRecord: boolean;
  firstCommitTime: Instant | undefined;
  lastCommitTime: Instant | undefined;
  lastCommitLsn: Lsn | undefined;
  damage: { at: Lsn; detail: string } | undefined;
  minimal: { at: Lsn | undefined } | undefined;
}

export function digestOf(header: WalHeader): SegmentDigest {
  const note = readNote(header.wal);
  return {
    dataKey: header.stored.key,
    storedBytes: header.stored.sizeBytes,
    sizeBytes: header.sizeBytes,
    note: note && {
      endLsn: note.endLsn,
      endsInPartialRecord: note.endsInPartialRecord,
      firstCommitTime: note.firstCommitTime,
      lastCommitTime: note.lastCommitTime,
      lastCommitLsn: note.lastCommitLsn,
      damage: note.damage,
      minimal: note.minimal,
    },
  };
}

/** A digest as it lies in a cache file. */
export function encodeDigest({ dataKey, storedBytes, sizeBytes, note }: SegmentDigest): unknown[] {
  if (note === undefined) return [dataKey, storedBytes, sizeBytes];
  const { damage, minimal } = note;
  return [
    dataKey,
    storedBytes,
    sizeBytes,
    formatLsn(note.endLsn),
    note.endsInPartialRecord ? 1 : 0,
    note.firstCommitTime?.toString() ?? null,
    note.lastCommitTime?.toString() ?? null,
    note.lastCommitLsn === undefined ? null : formatLsn(note.lastCommitLsn),
    damage === undefined ? null : [formatLsn(damage.at), damage.detail],
    minimal === undefined ? null : [minimal.at === undefined ? null : formatLsn(minimal.at)],
  ];
}

/** Undoes `encodeDigest`; undefined for anything else. */
export function decodeDigest(value: unknown): SegmentDigest | undefined {
  if (!Array.isArray(value)) return undefined;
  const [dataKey, storedBytes, sizeBytes, endLsn, partial, first, last, lastLsn, damage, minimal] =
    value as unknown[];
  if (typeof dataKey !== 'string' || !Number.isSafeInteger(storedBytes) || !Number.isSafeInteger(sizeBytes)) {
    return undefined;
  }
  const digest = { dataKey, storedBytes: Number(storedBytes), sizeBytes: Number(sizeBytes) };
  if (endLsn === undefined) return { ...digest, note: undefined };
  if (typeof endLsn !== 'string') return undefined;
  try {
    return {
      ...digest,
      note: {
        endLsn: parseLsn(endLsn),
        endsInPartialRecord: partial === 1,
        firstCommitTime: typeof first === 'string' ? BigInt(first) : undefined,
        lastCommitTime: typeof last === 'string' ? BigInt(last) : undefined,
        lastCommitLsn: typeof lastLsn === 'string' ? parseLsn(lastLsn) : undefined,
        damage: Array.isArray(damage)
          ? { at: parseLsn(String(damage[0])), detail: String(damage[1]) }
          : undefined,
        minimal: Array.isArray(minimal)
          ? { at: typeof minimal[0] === 'string' ? parseLsn(minimal[0]) : undefined }
          : undefined,
      },
    };
  } catch {
    return undefined;
  }
}
