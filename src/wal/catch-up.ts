import { errorText } from '../errors.ts';
import { copyMissingWal, copyTails } from '../repository/copy-wal.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { clearBehind, noteBehind, readBehind } from './behind.ts';
import { planNextAttempt } from './plan-next-attempt.ts';

export interface CatchUpOptions {
  identity: ClusterIdentity;
  /** Those that have what `to` may lack. */
  sources: readonly Repository[];
  /** The name and how to reach it: failing to is an outcome, not an error. */
  to: { name: string; open: () => Promise<Repository> };
  stateDirectory: string;
  now: () => Date;
  onCopied?: (name: string, storedBytes: number) => void;
  signal?: AbortSignal;
}

export interface CaughtUp {
  repository: string;
  copied: number;
  bytes: number;
  /** Whether it has everything the sources have. */
  complete: boolean;
  /** Why it is not complete. */
  reason: string | undefined;
  /** WAL files that no source could give, or that conflict; at most a hundred per source. */
  failed: { name: string; reason: string }[];
}

/**
 * Copies all WAL that a repository lacks, sealed as it lies, and clears this host's note that it is behind. Where it
 * cannot, the note is written or moved on instead; only cancellation is thrown. May be repeated.
 */
export async function catchUp(options: CatchUpOptions): Promise<CaughtUp> {
  const { identity, to, stateDirectory, signal } = options;
  const result: CaughtUp = {
    repository: to.name,
    copied: 0,
    bytes: 0,
    complete: false,
    reason: undefined,
    failed: [],
  };
  try {
    const repository = await to.open();
    while ((await copyOnce(repository, options, result)) > 0);
    if (result.failed.length === 0) {
      // In this order: a push that still saw the note stored its file before the last listing, or finds the note gone.
      await clearBehind(stateDirectory, identity.systemIdentifier, to.name);
      await copyOnce(repository, options, result);
    }
    result.complete = result.failed.length === 0;
    const [first] = result.failed;
    if (first !== undefined) result.reason = `${first.name}: ${first.reason}`;
  } catch (error) {
    if (signal?.aborted === true) throw error;
    result.reason = errorText(error);
  }
  if (result.reason !== undefined) await noteFailure(options, result.reason, result.failed[0]?.name);
  return result;
}

/** One pass over all sources; how many files it copied. */
async function copyOnce(
  repository: Repository,
  { identity, sources, onCopied, signal }: CatchUpOptions,
  result: CaughtUp,
): Promise<number> {
  let copied = 0;
  result.failed = [];
  for (const source of sources) {
    const done = await copyMissingWal(source, repository, identity, {
      onCopied: ({ name }, storedBytes) => {
        result.copied += 1;
        result.bytes += storedBytes;
        onCopied?.(name, storedBytes);
      },
      ...(signal && { signal }),
    });
    copied += done.copied;
    result.failed.push(...done.failed.map(({ name, error }) => ({ name, reason: errorText(error) })));
    result.bytes += (await copyTails(source, repository, identity, signal)).bytes;
  }
  return copied;
}

async function noteFailure(
  { identity, to, stateDirectory, now }: CatchUpOptions,
  reason: string,
  first: string | undefined,
): Promise<void> {
  const { systemIdentifier } = identity;
  const notes = await readBehind(stateDirectory, systemIdentifier);
  const note = notes.find(({ repository }) => repository === to.name);
  await noteBehind(stateDirectory, systemIdentifier, {
    repository: to.name,
    since: now().toISOString(),
    first: first ?? 'unknown',
    reason,
    tryAgainAt: planNextAttempt(note, now()).toISOString(),
  });
}
