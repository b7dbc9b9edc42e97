import { systemClock } from '../../clock.ts';
import { resolveSecret } from '../../config/secrets.ts';
import { errorText, HoldfastError } from '../../errors.ts';
import { describeTarget, parseConnectionTarget } from '../../postgres/connection-target.ts';
import type { Repository } from '../../repository/repository.ts';
import { Findings } from '../check/finding.ts';
import { seeServer, type ServerSight } from '../check/see-server.ts';
import { judgeServers } from '../check/server-findings.ts';
import { judgeWal, statusOf, type SurveyedWal, surveyWal } from '../check/survey-wal.ts';
import { NO_ACCOUNT } from '../check/stored-wal.ts';
import type { CommandContext, CommandSpec, Invocation } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { openNamed, secretSources } from '../open-repository.ts';
import { findKnownHistory } from '../wal/known-history.ts';
import { type SilentServer, statusJson } from '../wal/status-json.ts';
import { statusText } from '../wal/status-text.ts';

export const walStatus: CommandSpec = {
  name: 'wal status',
  group: 'Look',
  summary: 'where the WAL is: servers, slot, receiver, repositories, recovery-point age',
  details: `Asks every server twice, a second apart, and reads the repositories' listings. Ages are by the server's clock and
count from the last stored commit: where every commit is stored, nothing is behind, however old the last one is.
Ends with 0; 3 where something is behind or does not run; 20 where no server answers (what the repositories have
is shown all the same); 40 where WAL is lost: the slot, or a gap that no base backup leads over.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [],
  examples: [
    { command: 'holdfast wal status app', does: 'everything about the WAL of app' },
    {
      command:
        "holdfast wal status app --json | jq '.repositories[] | {repository, state, ageSeconds, pendingBytes}'",
      does: 'the age of the recovery point, for a script',
    },
  ],
  run,
};

const SAMPLE_MS = 1000;

async function run({ arguments: [name = ''], context }: Invocation): Promise<void> {
  const configuration = await context.configuration();
  const cluster = configuredCluster(configuration, name);
  const { signal, output } = context;
  const [{ sights, silent }, { repositories, unopened }] = await Promise.all([
    seeServers(cluster.servers, cluster.wal.slot, context),
    openRepositories(context),
  ]);
  const known =
    sights.length > 0
      ? undefined
      : await findKnownHistory(
          repositories.map(({ repository }) => repository),
          name,
          signal,
        );
  const seen = await surveyWal({ name, cluster, configuration, sights, repositories, known, signal });
  const survey = { ...seen, stored: [...seen.stored, ...unopened] };
  const findings = new Findings(`cluster ${name}`);
  judgeServers(sights, cluster, findings);
  judgeWal(survey, findings);
  const status = statusOf(survey, findings);
  output.result(statusJson(survey, silent, findings.all, status), () =>
    statusText(survey, silent, findings.all),
  );
  if (status !== 0) throw failureOf(status, name, findings, silent);
}

async function seeServers(
  servers: readonly string[],
  slot: string,
  context: CommandContext,
): Promise<{ sights: ServerSight[]; silent: SilentServer[] }> {
  const { environment, signal } = context;
  const sources = secretSources({ configuration: await context.configuration(), environment });
  const sights: ServerSight[] = [];
  const silent: SilentServer[] = [];
  await Promise.all(
    servers.map(async (reference) => {
      const url = await resolveSecret(reference, sources);
      try {
        const sight = await seeServer(url, {
          signal,
          applicationName: 'holdfast wal status',
          tryReplication: false,
          slot,
          sampleMs: SAMPLE_MS,
          wait: async (ms) => systemClock.sleep(ms, signal),
        });
        sights.push(sight);
      } catch (error) {
        if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
        silent.push({ server: describeTarget(parseConnectionTarget(url)), error });
      }
    }),
  );
  return { sights, silent };
}

async function openRepositories(context: CommandContext): Promise<{
  repositories: { repository: Repository; required: boolean }[];
  unopened: SurveyedWal[];
}> {
  const { environment, signal } = context;
  const configuration = await context.configuration();
  const repositories: { repository: Repository; required: boolean }[] = [];
  const unopened: SurveyedWal[] = [];
  for (const configured of configuration.repositories) {
    const { name, required } = configured;
    try {
      const repository = await openNamed(configured, { configuration, environment, signal });
      repositories.push({ repository, required });
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      const nothing = { newest: undefined, others: [], point: undefined, ...NO_ACCOUNT };
      unopened.push({ repository: name, required, ...nothing, problem: errorText(error) });
    }
  }
  return { repositories, unopened };
}

function failureOf(
  status: 3 | 20 | 40,
  cluster: string,
  findings: Findings,
  silent: readonly SilentServer[],
): HoldfastError {
  const failed = findings.all.filter((finding) => finding.status === 'fail');
  const [first] = failed;
  if (status === 20) {
    const [one] = silent;
    return new HoldfastError(
      'connection-failed',
      `no server of cluster ${cluster} answers: ${one?.error.message ?? ''}`,
      {
        ...(one?.error.hint !== undefined && { hint: one.error.hint }),
      },
    );
  }
  if (status === 40) {
    return new HoldfastError(
      'wal-gap',
      `WAL of cluster ${cluster} is lost${first === undefined ? '' : `: ${first.message}`}`,
      {
        ...(first?.fix !== undefined && { hint: first.fix }),
      },
    );
  }
  return new HoldfastError('wal-behind', `the WAL of cluster ${cluster} does not arrive as it should`, {
    hint: 'do what stands below each line',
    context: { failed: failed.length },
  });
}
