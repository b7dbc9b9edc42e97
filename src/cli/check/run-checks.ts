import { systemClock } from '../../clock.ts';
import type { Configuration } from '../../config/configuration.ts';
import type { ClusterConfiguration } from '../../config/schema.ts';
import { resolveSecret } from '../../config/secrets.ts';
import { HoldfastError } from '../../errors.ts';
import type { Repository } from '../../repository/repository.ts';
import { secretSources, type RepositoryOpener } from '../open-repository.ts';
import { checkHost, checkPrograms } from './check-host.ts';
import { checkRepository } from './check-repository.ts';
import { Findings, type Finding } from './finding.ts';
import { seeServer, type ServerSight } from './see-server.ts';
import { judgeServer, judgeServers } from './server-findings.ts';
import { judgeWal, surveyWal } from './survey-wal.ts';

export interface CheckRequest {
  configuration: Configuration;
  environment: Readonly<Record<string, string | undefined>>;
  /** Only this cluster. */
  cluster?: string;
  signal: AbortSignal;
  /** Called with each finding as it is made. */
  found: (finding: Finding) => void;
}

/** Looks at everything a backup depends on. Throws only for defects and cancellation. */
export async function runChecks(request: CheckRequest): Promise<Finding[]> {
  const { configuration, environment, signal } = request;
  const all: Finding[] = [];
  const report = (findings: Findings): void => {
    for (const finding of findings.all) request.found(finding);
    all.push(...findings.all);
  };

  const host = new Findings('configuration');
  await checkHost(configuration, host);
  report(host);

  const opener: RepositoryOpener = { configuration, environment, signal };
  const repositories: { repository: Repository; required: boolean }[] = [];
  for (const configured of configuration.repositories) {
    const findings = new Findings(`repository ${configured.name}`);
    const repository = await checkRepository(configured, opener, findings);
    if (repository !== undefined) repositories.push({ repository, required: configured.required });
    report(findings);
  }

  const majors = new Set<number>();
  for (const [name, cluster] of Object.entries(configuration.clusters)) {
    if (request.cluster !== undefined && request.cluster !== name) continue;
    const findings = new Findings(`cluster ${name}`);
    const seen = await checkCluster(name, cluster, repositories, request, findings);
    for (const { facts } of seen) majors.add(facts.majorVersion);
    report(findings);
  }
  const programs = new Findings('programs');
  await checkPrograms(majors, programs);
  report(programs);
  return all;
}

async function checkCluster(
  name: string,
  cluster: ClusterConfiguration,
  repositories: readonly { repository: Repository; required: boolean }[],
  request: CheckRequest,
  findings: Findings,
): Promise<ServerSight[]> {
  const { configuration, environment, signal } = request;
  const look = {
    signal,
    applicationName: 'holdfast check',
    tryReplication: true,
    slot: cluster.wal.slot,
    sampleMs: 0,
    wait: async (ms: number) => systemClock.sleep(ms, signal),
  };
  const seen: ServerSight[] = [];
  for (const server of cluster.servers) {
    try {
      const url = await resolveSecret(server, secretSources({ configuration, environment }));
      const sight = await seeServer(url, look);
      seen.push(sight);
      judgeServer(sight, findings);
    } catch (error) {
      findings.failure(error);
    }
  }
  judgeServers(seen, cluster, findings);
  if (seen.length === 0) return seen;
  try {
    const survey = { name, cluster, configuration, sights: seen, repositories, signal };
    judgeWal(await surveyWal(survey), findings);
  } catch (error) {
    findings.failure(error);
  }
  return seen;
}

/** The error a check with failures ends with. */
export function checkFailed(findings: readonly Finding[]): HoldfastError | undefined {
  const failed = findings.filter((finding) => finding.status === 'fail');
  if (failed.length === 0) return undefined;
  return new HoldfastError(
    'check-failed',
    `${failed.length} of ${findings.length} findings ${failed.length === 1 ? 'is' : 'are'} a failure`,
    {
      hint: 'do what stands below each "fail" line, then run "holdfast check" again',
      context: { failed: failed.length, findings: findings.length },
    },
  );
}
