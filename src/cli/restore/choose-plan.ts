import type { Configuration, RepositoryConfiguration } from '../../config/configuration.ts';
import { HoldfastError } from '../../errors.ts';
import { readWalHighWater } from '../../repository/wal-high-water.ts';
import { type RestorePlan, planRestore } from '../../restore/plan.ts';
import type { RecoveryRequest } from '../../restore/recovery-target.ts';
import type { CommandContext } from '../command.ts';
import { type ArchiveChoice, openArchive } from './open-archives.ts';

/**
 * Plans a restore from the first repository that reaches the target; for `latest`, from the one that reaches furthest.
 * Where none does, the first one's reason is thrown, one that could be read before one that could not.
 */
export async function choosePlan(
  context: CommandContext,
  configuration: Configuration,
  repositories: readonly RepositoryConfiguration[],
  choice: ArchiveChoice,
  request: RecoveryRequest,
): Promise<RestorePlan> {
  const plans: RestorePlan[] = [];
  const refusals: { repository: string; error: HoldfastError }[] = [];
  for (const repository of repositories) {
    try {
      const plan = await planFrom(context, configuration, repository, choice, request);
      plans.push(plan);
      if (request.target.kind !== 'latest') break;
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      refusals.push({ repository: repository.name, error });
    }
  }
  const best = plans.reduce<RestorePlan | undefined>((furthest, plan) => {
    if (furthest === undefined) return plan;
    return plan.stop.lsn > furthest.stop.lsn && plan.stop.timeline >= furthest.stop.timeline
      ? plan
      : furthest;
  }, undefined);
  if (best === undefined) {
    const told = refusals.find(({ error }) => !error.retryable) ?? refusals[0];
    throw told?.error ?? new HoldfastError('config-invalid', 'no repository can be asked');
  }
  for (const { repository, error } of refusals)
    context.output.warn(`repository ${repository}: ${error.message}`);
  return best;
}

async function planFrom(
  context: CommandContext,
  configuration: Configuration,
  repository: RepositoryConfiguration,
  choice: ArchiveChoice,
  request: RecoveryRequest,
): Promise<RestorePlan> {
  const opened = await openArchive(context, configuration, repository, choice);
  if (opened === undefined) {
    throw new HoldfastError(
      'target-unreachable',
      `repository ${repository.name} has nothing of cluster ${choice.cluster}`,
      { hint: `make a first backup: holdfast backup base ${choice.cluster}` },
    );
  }
  const { archive, backups, damaged } = opened;
  for (const { key, reason } of damaged) {
    context.output.warn(`repository ${repository.name}: ${key} cannot be used: ${reason}`);
  }
  return await planRestore({
    archive,
    backups,
    target: request.target,
    timeline: request.timeline,
    backupId: choice.backupId,
    highWater: await readWalHighWater(configuration.stateDirectory, archive.identity.systemIdentifier),
    signal: context.signal,
    progress: (backupId, segments) => {
      if (segments % 64 === 0) context.output.debug(`backup ${backupId}: ${segments} WAL segments looked at`);
    },
  });
}
