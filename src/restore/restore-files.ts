import { rm } from 'node:fs/promises';
import { join } from 'node:path';

import { configureRecovery } from './configure-recovery.ts';
import { commitDataDirectory } from './data-tree.ts';
import type { RestorePlan } from './plan.ts';
import type { FetchCommand } from './recovery-settings.ts';
import type { RecoveryRequest } from './recovery-target.ts';
import { type RestoreTarget, closeTarget, openTarget } from './target-directory.ts';
import { type WrittenFiles, writeBackupFiles } from './write-files.ts';

export interface RestoreOptions {
  plan: RestorePlan;
  target: RestoreTarget;
  request: RecoveryRequest;
  fetch: FetchCommand;
  /** For sorting; needs some room. */
  scratchDirectory: string;
  signal?: AbortSignal;
  progress?: (doneBytes: number, totalBytes: number) => void;
}

export interface RestoredFiles extends WrittenFiles {
  /** What the user should know of. */
  notes: string[];
}

/**
 * Writes a planned restore: files, recovery settings, and `pg_control` last, which makes it a data directory. Everything
 * is durable when it resolves. Where it fails or is cut off, what is there cannot be started and can be continued with
 * `delta`.
 */
export async function restoreFiles(options: RestoreOptions): Promise<RestoredFiles> {
  const { plan, target, request, signal } = options;
  const { directory, owner } = target;
  await openTarget(target, plan.backup);
  const written = await writeBackupFiles({
    repository: plan.repository,
    record: plan.backup,
    targetDirectory: directory,
    tablespaceMapping: target.tablespaceMapping,
    delta: target.delta,
    scratchDirectory: options.scratchDirectory,
    ...(owner && { owner }),
    ...(signal && { signal }),
    ...(options.progress && { progress: options.progress }),
  });
  const notes = await configureRecovery(
    directory,
    { fetch: options.fetch, request, stop: plan.stop, record: plan.backup },
    owner,
  );
  // A server that ran here before, or another copy's, must not be taken for this one's.
  for (const name of ['postmaster.pid', 'postmaster.opts']) await rm(join(directory, name), { force: true });
  await closeTarget(target);
  await commitDataDirectory(directory);
  return { ...written, notes };
}
