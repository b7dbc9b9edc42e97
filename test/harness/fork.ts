import assert from 'node:assert/strict';
import { rename, rm } from 'node:fs/promises';

import type { TargetOptions } from '../../src/restore/recovery-target.ts';
import { type BackupLab, backupLab } from './backup.ts';
import { type TestCluster, createCluster, giveToServer } from './cluster.ts';
import type { RestoreBench } from './restore.ts';

/** A copy of the lab's cluster at a target, promoted, and a lab for it that archives into the same repository. */
export async function fork(
  lab: BackupLab,
  bench: RestoreBench,
  target: TargetOptions,
): Promise<BackupLab & { timeline: number }> {
  await bench.refresh();
  const { plan, request } = await bench.plan({ ...target, targetAction: 'promote' });
  await bench.files(plan, request);
  const proof = await bench.prove(plan, request);
  await bench.rows(proof);
  const cluster: TestCluster = await createCluster({
    major: lab.cluster.major,
    segmentSizeMb: 1,
    start: false,
  });
  await rm(cluster.dataDir, { recursive: true });
  await rename(bench.dataDirectory, cluster.dataDir);
  await giveToServer(cluster.scratch);
  await cluster.start();
  const made = await backupLab(cluster, lab.repository);
  assert(proof.newTimeline !== null);
  return Object.assign(made, { timeline: proof.newTimeline });
}
