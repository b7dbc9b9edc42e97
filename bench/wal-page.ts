import { median, seconds, size } from './statistics.ts';
import type { StreamResult, WalReport } from './wal-results.ts';

/** Where this part of docs/performance.md begins; it reaches to the end of the page. */
export const WAL_HEADING = '## Streaming, archiving and recovering WAL';

const MIB = 1024 * 1024;

interface Verdict {
  what: string;
  goal: string;
  measured: string;
  met: boolean;
  /** Shown where the goal is missed. */
  why?: string;
}

/** Puts a new part about WAL into the page; what is before it stays. */
export function withWalPart(page: string, report: WalReport): string {
  const at = page.indexOf(WAL_HEADING);
  const before = at === -1 ? page : page.slice(0, at);
  return `${before.trimEnd()}\n\n${walPart(report)}`;
}

/** The part about WAL of a page, to be kept when the rest is written anew. */
export function walPartOf(page: string): string {
  const at = page.indexOf(WAL_HEADING);
  return at === -1 ? '' : `\n${page.slice(at)}`;
}

function walPart(report: WalReport): string {
  const { date, stream, push, fetch, loss } = report;
  const verdicts = judge(report);
  return `${WAL_HEADING}

\`npm run bench:wal\` repeats this part and writes it anew. Each tool works from the same WAL on the same disk, by turns; a rate
is the median of the rounds, with the lowest and the highest in brackets.

- ${date}
${stream.machine.map((line) => `- ${line}`).join('\n')}
- PostgreSQL ${stream.postgresql}, Holdfast ${stream.throughput[0]?.versions.holdfast ?? ''}, pgBackRest ${stream.throughput[0]?.versions.pgbackrest ?? ''}

pgBackRest runs with \`archive-async=y\`, \`process-max=2\` and zstd at level 3, without encryption. Holdfast starts from the same
level and takes smaller tables and a simpler search where WAL loses nothing by it: what each stores is in the table. It
decompresses and compares every frame before it is stored, and reads every record. "Sealed" is for one age recipient.

| | goal | measured | |
|---|---|---|---|
${verdicts.map(({ what, goal, measured, met }) => `| ${what} | ${goal} | ${measured} | ${met ? 'met' : '**missed**'} |`).join('\n')}

${verdicts
  .filter(({ met, why }) => !met && why !== undefined)
  .map(({ what, why }) => `**${what}:** ${why}\n\n`)
  .join('')}### Segments of 16 MiB a second

| | Holdfast, sealed | Holdfast, in clear | pgBackRest |
|---|---|---|---|
${stream.throughput.map((one) => `| streaming: ${one.what} | ${rates(one, 'sealed')} | ${rates(one, 'unsealed')} | ${rates(one, 'pgbackrest')} |\n| … stored bytes of one | ${stored(one, 'sealed')} | ${stored(one, 'unsealed')} | ${stored(one, 'pgbackrest')} |`).join('\n')}
| push: ${push.what} | | ${spread(push.turns.filter(({ tool }) => tool === 'Holdfast').map((turn) => turn.segmentsPerSecond))} | ${spread(push.turns.filter(({ tool }) => tool === 'pgBackRest').map((turn) => turn.segmentsPerSecond))} |

### Recovery

From the start of a server until it has replayed ${fetch.segments} segments of 16 MiB: Holdfast ${seconds(fetch.wallMs.holdfast)}, pgBackRest
\`archive-get\` ${seconds(fetch.wallMs.pgbackrest)}.

### What a crash costs

${loss.what}, both with kill -9 at a random moment. The age of
the recovery point is the time of the kill minus that of the newest commit that the repository holds.

| | p50 | p99 | longest |
|---|---|---|---|
| all | ${loss.ageSeconds.p50.toFixed(1)} s | ${loss.ageSeconds.p99.toFixed(1)} s | ${loss.ageSeconds.max.toFixed(1)} s |
| as fast as it goes | ${loss.ageSecondsFullLoad.p50.toFixed(1)} s | ${loss.ageSecondsFullLoad.p99.toFixed(1)} s | ${loss.ageSecondsFullLoad.max.toFixed(1)} s |
| 100 transactions a second | ${loss.ageSecondsHeldLoad.p50.toFixed(1)} s | ${loss.ageSecondsHeldLoad.p99.toFixed(1)} s | ${loss.ageSecondsHeldLoad.max.toFixed(1)} s |

Commits that had been reported as flushed and were not there: ${loss.lostReported}. After ${loss.restores} of the kills the cluster was
really restored; ${loss.restoresWrong === 0 ? 'each had every row it had to have and ended where the plan had said' : `${loss.restoresWrong} of them were wrong`}.

### Memory of the receiver

${stream.memory.what}: ${size(stream.memory.peakBytes)} at most; after the first fifth it grew by ${(stream.memory.slopeBytesPerSegment / 1024).toFixed(1)} KiB a segment.
While it catches up with segments of 16 MiB: ${size(highestPeak(stream))} at most.
`;
}

function judge({ stream, push, fetch, loss }: WalReport): Verdict[] {
  const { p50, p99 } = loss.ageSeconds;
  return [
    ...stream.throughput.map((one, index) => ({
      what: `streaming, sealed (${/mostly (\w+)/.exec(one.what)?.[1] ?? ''}), of pgBackRest's asynchronous push`,
      goal: '≥ 1.2 ×',
      measured: `${one.ratioSealed.toFixed(2)} ×`,
      met: one.ratioSealed >= 1.2,
      ...(index === 0 && { why: STREAM_MISSED }),
    })),
    {
      what: "push, of pgBackRest's asynchronous push",
      goal: '≥ 0.7 ×',
      measured: `${push.ratio.toFixed(2)} ×`,
      met: push.ratio >= 0.7,
      why: PUSH_MISSED,
    },
    {
      what: `recovery of ${fetch.segments} segments, speed of pgBackRest's asynchronous archive-get`,
      goal: '≥ 1.0 ×',
      measured: `${fetch.ratio.toFixed(2)} ×`,
      met: fetch.ratio >= 1,
    },
    {
      what: `age of the recovery point, ${loss.trials.length} kills`,
      goal: 'p50 ≤ 4 s, p99 ≤ 10 s',
      measured: `p50 ${p50.toFixed(1)} s, p99 ${p99.toFixed(1)} s`,
      met: p50 <= 4 && p99 <= 10,
    },
    {
      what: 'commits lost that were reported as flushed',
      goal: '0',
      measured: `${loss.lostReported}`,
      met: loss.lostReported === 0,
    },
    {
      what: `memory of the receiver, ${stream.memory.what}`,
      goal: '≤ 150 MiB',
      measured: size(stream.memory.peakBytes),
      met: stream.memory.peakBytes <= 150 * MIB,
    },
  ];
}

const STREAM_MISSED =
  'two cores are all there is, and the server needs a part of them to send. Reading every record with its checksum, ' +
  'decompressing and comparing every frame, and two hashes are what Holdfast does besides compressing; pgBackRest computes ' +
  'one hash. About a quarter of the processor time goes into collecting garbage: Node gives each call of its compressor a new ' +
  'context and new buffers, and their size alone starts collections. A compressor that keeps its context, in workers that ' +
  'keep their buffers, would change that most.';

const PUSH_MISSED =
  'the same work for each segment as in streaming, and a process that starts anew for every 16 or so of them. While that one ' +
  'starts and ends, nothing is compressed; a process that stays, as pgBackRest has, would not stop in between.';

function rates(result: StreamResult['throughput'][number], contender: string): string {
  return spread(
    result.turns.filter((turn) => turn.contender === contender).map((turn) => turn.segmentsPerSecond),
  );
}

function highestPeak(stream: StreamResult): number {
  return Math.max(...stream.throughput.flatMap(({ turns }) => turns.map(({ peakBytes = 0 }) => peakBytes)));
}

function stored(result: StreamResult['throughput'][number], contender: string): string {
  return size(result.turns.find((turn) => turn.contender === contender)?.storedBytesPerSegment ?? 0);
}

function spread(values: readonly number[]): string {
  return `${median(values).toFixed(1)} (${Math.min(...values).toFixed(1)}–${Math.max(...values).toFixed(1)})`;
}
