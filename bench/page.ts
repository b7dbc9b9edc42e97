import type { BlockSizeResult } from './block-sizes.ts';
import type { Everything, Verdict } from './goals.ts';
import { notes } from './notes.ts';
import { type Step, type StepResult, STEPS } from './rounds.ts';
import { median, milliseconds, seconds, size, sizes } from './statistics.ts';

export interface Report extends Everything {
  date: string;
  machine: readonly string[];
  versions: readonly string[];
  scale: number;
  repetitions: number;
  databaseBytes: number;
  verdicts: readonly Verdict[];
  blockSizes: readonly BlockSizeResult[];
}

/** docs/performance.md, whole. */
export function performancePage(report: Report): string {
  const { scale, repetitions, databaseBytes } = report;
  return `# Performance

Measured side by side with pgBackRest in one run on one machine. \`npm run bench\` repeats it and writes this page anew.

- ${report.date}
${report.machine.map((line) => `- ${line}`).join('\n')}
${report.versions.map((line) => `- ${line}`).join('\n')}

The cluster: pgbench at scale ${scale} (${size(databaseBytes)}), data checksums and fsync on, \`shared_buffers\` 256 MB, autovacuum
off so that "nothing changed" holds. Cluster, repositories and restored directories lie on one file system, and the
cluster is in the page cache; before each timed step the server checkpoints and the system syncs. The tools take turns,
in alternating order, ${repetitions} ${repetitions === 1 ? 'round' : 'rounds'}; a figure is the median, with the lowest and the highest in brackets. A time is
that of the whole process, from its start to its end, waiting for WAL included. Each tool archives its own WAL.

Both compress with zstd at level 3. pgBackRest runs with \`process-max=2\` and \`start-fast\`, everything else as it comes.
Both are durable before they report success: Holdfast syncs each object and its directory before it writes the record,
pgBackRest syncs each file and directory of its repository; on restore both sync every file and directory they wrote.

## Goals

${verdictTable(report.verdicts)}
${missedNotes(report.verdicts)}
## Backup and restore

${stepTable(report)}
Bytes stored are the sizes of the files that were added to the repository: of backups only, and with the WAL that was
archived meanwhile. "Tool's own figure" is what the tool says it stored. Memory is the sum over the processes of a command.

## WAL

One 16 MiB segment full of pgbench's WAL per run, ${report.wal.segments} segments, each a process of its own from start to end.

| | Holdfast | pgBackRest |
|---|---|---|
| push | ${milliseconds(report.wal.push.holdfast)} | ${milliseconds(report.wal.push.pgbackrest)} |
| fetch | ${milliseconds(report.wal.fetch.holdfast)} | ${milliseconds(report.wal.fetch.pgbackrest)} |

## Memory

${memoryTable(report)}
${blockSizeSection(report.blockSizes)}`;
}

/** For the terminal: the goals alone. */
export function verdictTable(verdicts: readonly Verdict[]): string {
  const rows = verdicts.map(
    ({ what, goal, measured, met }) => `| ${what} | ${goal} | ${measured} | ${met ? 'met' : '**missed**'} |`,
  );
  return `| what | goal | measured | verdict |\n|---|---|---|---|\n${rows.join('\n')}\n`;
}

function missedNotes(verdicts: readonly Verdict[]): string {
  const missed = verdicts.filter(({ met }) => !met);
  if (missed.length === 0) return '';
  const texts = missed.map(({ id, what }) => `**Missed: ${what}.** ${notes[id] ?? 'Not explained yet.'}\n`);
  return `\n${texts.join('\n')}`;
}

function stepTable({ results }: Report): string {
  const rows = (Object.keys(STEPS) as Step[]).map((step) => {
    const taken = results[step];
    const cpu = seconds([median(taken.map(({ cpuMs }) => cpuMs))]);
    const peak = size(Math.max(...taken.map(({ peakBytes }) => peakBytes)));
    return `| ${STEPS[step]} | ${seconds(taken.map(({ wallMs }) => wallMs))} | ${cpu} | ${storedCells(taken)} | ${peak} |`;
  });
  return `| step | wall | CPU | stored | with WAL | tool's own figure | memory |\n|---|---|---|---|---|---|---|\n${rows.join('\n')}\n`;
}

function storedCells(taken: readonly StepResult[]): string {
  if (taken.every(({ allBytes }) => allBytes === 0)) return ' | | ';
  const columns = (['backupBytes', 'allBytes', 'reportedBytes'] as const).map((column) =>
    sizes(taken.map((result) => result[column])),
  );
  return columns.join(' | ');
}

function memoryTable({ results, otherCommands, manyFiles }: Report): string {
  const peakOf = (step: Step): string => size(Math.max(...results[step].map(({ peakBytes }) => peakBytes)));
  const rows = [
    `| backup base, the first | ${peakOf('firstHoldfast')} |`,
    `| backup base, nothing changed | ${peakOf('sameHoldfast')} |`,
    `| backup base, after 20,000 transactions | ${peakOf('changedHoldfast')} |`,
    `| restore base | ${peakOf('restoreHoldfast')} |`,
    ...otherCommands.map(({ name, peakBytes }) => `| ${name} | ${size(peakBytes)} |`),
  ];
  const table = `| command | peak |\n|---|---|\n${rows.join('\n')}\n`;
  if (manyFiles === undefined)
    return `${table}\nThe cluster with very many files was left out of this run.\n`;
  const manyRows = manyFiles.commands.map(
    ({ name, measured }) => `| ${name} | ${size(measured.peakBytes)} | ${seconds([measured.wallMs])} |`,
  );
  return `${table}
On a cluster of ${manyFiles.files.toLocaleString('en')} files, most of them tables with one row:

| command | peak | wall, one run |
|---|---|---|
${manyRows.join('\n')}
`;
}

function blockSizeSection(results: readonly BlockSizeResult[]): string {
  if (results.length === 0) return '';
  const rows = results.flatMap(({ blockBytes, ...steps }) => {
    const cells = [steps.first, steps.same, steps.changed].map(
      ({ wallMs, newBytes }) => `${seconds([wallMs])}, ${size(newBytes)}`,
    );
    const peak = Math.max(steps.first.peakBytes, steps.same.peakBytes, steps.changed.peakBytes);
    return `| ${blockBytes / 1024} KiB | ${cells.join(' | ')} | ${size(peak)} |`;
  });
  return `
## Block size

Wall time of the backup inside its process, one run each, and what it stored.

| blocks | first | nothing changed | after 20,000 transactions | memory |
|---|---|---|---|---|
${rows.join('\n')}
`;
}
