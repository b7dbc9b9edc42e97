import { HoldfastError } from '../../errors.ts';
import type { ClusterIdentity } from '../../repository/layout.ts';
import type { Repository } from '../../repository/repository.ts';
import { listGapNotes, storeGapNote, type WalGapNote } from '../../repository/wal-gap-note.ts';

/** Writes a gap down where it is not written down yet. Only an explanation, so a store that fails does not matter. */
export async function noteGap(
  repositories: readonly Repository[],
  identity: ClusterIdentity,
  note: WalGapNote,
  signal: AbortSignal,
): Promise<void> {
  for (const repository of repositories) {
    try {
      const known = await Array.fromAsync(listGapNotes(repository, identity, signal));
      const isKnown = known.some(
        ({ timeline, fromLsn, toLsn }) =>
          timeline === note.timeline && fromLsn <= note.fromLsn && toLsn >= note.toLsn,
      );
      if (!isKnown) await storeGapNote(repository, identity, note, signal);
    } catch (error) {
      if (!(error instanceof HoldfastError) || signal.aborted) throw error;
    }
  }
}
