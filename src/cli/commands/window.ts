import { HoldfastError } from '../../errors.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import { walSegmentName } from '../../postgres/wal-segment.ts';
import { candidateOf } from '../../restore/choose-backup.ts';
import { describeInstant, formatInstant, instantOfRecord } from '../../restore/instant.ts';
import { branchesOf } from '../../restore/plan.ts';
import { type ReachableRange, reachableRanges } from '../../restore/reachable.ts';
import { describePath } from '../../restore/timelines.ts';
import type { WalArchive } from '../../restore/wal-archive.ts';
import { type CommandSpec, type Invocation, textOption } from '../command.ts';
import { configuredCluster } from '../configured-cluster.ts';
import { namedRepository } from '../open-repository.ts';
import { openArchive } from '../restore/open-archives.ts';

export const window: CommandSpec = {
  name: 'window',
  group: 'Look',
  summary: 'what can be restored now, and why not the rest',
  details: `Per repository and branch of timelines: every stretch of WAL that a backup leads into, from where that is
consistent to where the archive ends or a segment is missing. Reads listings and headers only and needs no key for a
cluster that was never promoted.`,
  arguments: [{ name: 'cluster', summary: 'a cluster of the configuration' }],
  options: [
    { flags: '--repository <name>', summary: 'only this repository' },
    { flags: '--system-identifier <number>', summary: 'which history, where a name has several' },
  ],
  examples: [{ command: 'holdfast window app', does: 'from when to when app can be restored' }],
  run,
};

interface Point {
  lsn: string;
  time: string | null;
  timeline: number;
}

interface RangeJson {
  from: Point & { backup: string };
  to: Point;
  backups: number;
  /** Null where the archive simply ends. */
  gap: { firstMissing: string; lastMissing: string; resumesAt: string } | null;
  next: string;
}

interface RepositoryJson {
  repository: string;
  systemIdentifier: string | null;
  branches: { timeline: number; path: string; ranges: RangeJson[] }[];
  problems: string[];
}

async function run({ arguments: [name = ''], options, context }: Invocation): Promise<void> {
  const configuration = await context.configuration();
  configuredCluster(configuration, name);
  const only = textOption(options, 'repository');
  const systemIdentifier = textOption(options, 'systemIdentifier');
  const repositories =
    only === undefined ? configuration.repositories : [namedRepository(configuration, only)];
  const found: RepositoryJson[] = [];
  const failures: HoldfastError[] = [];
  for (const target of repositories) {
    try {
      const opened = await openArchive(context, configuration, target, { cluster: name, systemIdentifier });
      if (opened === undefined) {
        const problems = [`nothing of cluster ${name} is here: holdfast backup base ${name}`];
        found.push({ repository: target.name, systemIdentifier: null, branches: [], problems });
        continue;
      }
      const { archive, backups, damaged } = opened;
      const candidates = backups.map((record) => candidateOf(record));
      const branches: RepositoryJson['branches'] = [];
      for (const tip of await branchesOf(archive, candidates)) {
        const path = archive.tree.path(tip);
        const ranges = await reachableRanges(archive, path, candidates);
        branches.push({
          timeline: tip,
          path: describePath(path),
          ranges: ranges.map((range) => rangeJson(range, archive)),
        });
      }
      found.push({
        repository: target.name,
        systemIdentifier: archive.identity.systemIdentifier,
        branches,
        problems: [
          ...archive.problems,
          ...damaged.map(({ key, reason }) => `${key} cannot be used: ${reason}`),
        ],
      });
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      failures.push(error);
      found.push({
        repository: target.name,
        systemIdentifier: null,
        branches: [],
        problems: [error.message],
      });
    }
  }
  const [failure] = failures;
  if (failure !== undefined && failures.length === repositories.length) throw failure;
  context.output.result({ cluster: name, repositories: found }, () => found.map(repositoryText).join('\n\n'));
}

function rangeJson({ from, to, backups, end }: ReachableRange, archive: WalArchive): RangeJson {
  const { missing, resumes } = end;
  const size = archive.segmentSize;
  return {
    from: {
      lsn: formatLsn(from.lsn),
      time: formatInstant(from.time),
      timeline: from.timeline,
      backup: from.backupId,
    },
    to: {
      lsn: formatLsn(to.lsn),
      time: to.time === undefined ? null : formatInstant(to.time),
      timeline: to.timeline,
    },
    backups,
    gap:
      resumes === undefined
        ? null
        : {
            firstMissing: missing.name,
            lastMissing:
              resumes.segment - 1n < missing.segment
                ? missing.name
                : walSegmentName(missing.timeline, resumes.segment - 1n, size),
            resumesAt: resumes.name,
          },
    next: missing.name,
  };
}

function repositoryText({ repository, branches, problems }: RepositoryJson): string {
  const lines = [`Repository ${repository}`];
  for (const { path, ranges } of branches) {
    lines.push(`  timeline ${path}`);
    for (const { from, to, backups, gap } of ranges) {
      const many = backups === 1 ? `backup ${from.backup}` : `${backups} backups, the first ${from.backup}`;
      lines.push(`    from ${from.lsn}  ${shown(from.time)}  (${many})`);
      lines.push(
        `    to   ${to.lsn}  ${to.time === null ? 'no commit behind the backup' : `${shown(to.time)}, the last commit`}`,
      );
      if (gap !== null) {
        const names =
          gap.firstMissing === gap.lastMissing
            ? gap.firstMissing
            : `${gap.firstMissing} to ${gap.lastMissing}`;
        lines.push(`    then a gap: ${names} missing, the archive goes on with ${gap.resumesAt}`);
      }
    }
    if (ranges.length === 0) lines.push('    nothing: no backup has all of its WAL');
  }
  if (branches.length === 0) lines.push('  nothing can be restored');
  for (const problem of problems) lines.push(`  problem: ${problem}`);
  return lines.join('\n');
}

function shown(time: string | null): string {
  return time === null ? '' : describeInstant(instantOfRecord(time));
}
