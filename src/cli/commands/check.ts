import { checkFailed, runChecks } from '../check/run-checks.ts';
import { formatFinding, summarizeFindings } from '../check/finding.ts';
import type { CommandSpec, Invocation } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';

export const check: CommandSpec = {
  name: 'check',
  group: 'Set up',
  summary: 'prove the setup end to end, each finding with its fix',
  details: `Looks at the configuration, every repository (an object is written, listed, read and deleted), every server
(connection, rights, version, replication, clock), what brings the WAL (slot and receiver, or archiver), how old the
recovery point is, gaps, and the disk under pg_wal. Changes nothing. Ends with 0, or with 3 where something failed; warnings do not count.`,
  arguments: [{ name: 'cluster', summary: 'only this cluster', optional: true }],
  options: [],
  examples: [
    { command: 'holdfast check', does: 'everything the configuration names' },
    {
      command: 'holdfast check app --json | jq ".findings[] | select(.status != \\"ok\\")"',
      does: 'for a script',
    },
  ],
  run,
};

async function run({ arguments: [cluster], context }: Invocation): Promise<void> {
  const { output, environment, signal } = context;
  const configuration = await context.configuration();
  if (cluster !== undefined) configuredCluster(configuration, cluster);
  const findings = await runChecks({
    configuration,
    environment,
    signal,
    ...(cluster !== undefined && { cluster }),
    found: (finding) => {
      if (!output.json) output.event('finding', finding, formatFinding(finding));
    },
  });
  const failure = checkFailed(findings);
  output.result({ ok: failure === undefined, findings }, () => `\n${summarizeFindings(findings)}`);
  if (failure !== undefined) throw failure;
}
