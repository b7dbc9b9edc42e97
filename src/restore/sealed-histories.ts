import { HoldfastError } from '../errors.ts';
import { lsnOf } from '../postgres/lsn.ts';
import { type TimelineId, historyFileName } from '../postgres/timeline.ts';
import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import type { TimelineTree } from './timelines.ts';
import { type WalArchive, isDamage, isKeyProblem } from './wal-archive.ts';

const HISTORY_MAX_BYTES = 1024 * 1024;

/**
 * The timelines whose history file is there and cannot be read for want of a key: where they come from is known, but not
 * to this host.
 */
export async function sealedHistories(
  archive: WalArchive,
  signal?: AbortSignal,
): Promise<ReadonlySet<TimelineId>> {
  const { repository, identity, tree } = archive;
  const sealed = new Set<TimelineId>();
  for (const timeline of tree.timelines) {
    if (hasWay(tree, timeline)) continue;
    try {
      const header = await readWalHeader(repository, identity, historyFileName(timeline), signal);
      if (header !== undefined) await readWholeWalFile(repository, header, HISTORY_MAX_BYTES, signal);
    } catch (error) {
      if (isKeyProblem(error)) sealed.add(timeline);
      else if (!isDamage(error)) throw error;
    }
  }
  return sealed;
}

/** The same tree where each of these timelines begins by itself: what was backed up on it can be followed. Pure. */
export function withoutOrigin(tree: TimelineTree, sealed: ReadonlySet<TimelineId>): TimelineTree {
  if (sealed.size === 0) return tree;
  return {
    ...tree,
    path: (timeline) =>
      sealed.has(timeline) ? [{ timeline, begin: lsnOf(0n), end: undefined }] : tree.path(timeline),
  };
}

function hasWay(tree: TimelineTree, timeline: TimelineId): boolean {
  try {
    tree.path(timeline);
    return true;
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'target-unreachable') return false;
    throw error;
  }
}
