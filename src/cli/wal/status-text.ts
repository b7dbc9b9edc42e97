import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { formatLsn } from '../../postgres/lsn.ts';
import { forecastWal } from '../../wal/forecast.ts';
import type { RecoveryPoint } from '../../wal/recovery-point.ts';
import { type Finding, formatFinding } from '../check/finding.ts';
import { describeGap } from '../check/recovery-findings.ts';
import type { ServerSight } from '../check/see-server.ts';
import { holderText } from '../check/stream-findings.ts';
import type { WalSurvey } from '../check/survey-wal.ts';
import type { SilentServer } from './status-json.ts';

/** From so much on, two clocks are worth a word. */
const SKEW_SHOWN_MS = 60_000;

/** What `wal status` prints: the state first, then what is not as it should be, each with its fix. */
export function statusText(
  survey: WalSurvey,
  silent: readonly SilentServer[],
  findings: readonly Finding[],
): string {
  const lines = [
    `Cluster ${survey.cluster}, WAL by ${survey.expected.mode}${survey.systemIdentifier === undefined ? '' : `, system identifier ${survey.systemIdentifier}`}`,
    ...survey.sights.flatMap((sight) => ['', ...serverLines(sight, survey)]),
    ...silent.flatMap(({ server, error }) => ['', `Server ${server} does not answer: ${error.message}`]),
    ...receiverLines(survey),
    ...survey.stored.flatMap((one) => ['', ...repositoryLines(one, survey)]),
  ];
  const open = findings.filter(({ status }) => status !== 'ok');
  if (open.length > 0) lines.push('', ...open.map(formatFinding));
  return lines.join('\n');
}

function serverLines(sight: ServerSight, survey: WalSurvey): string[] {
  const { facts, wal, clockSkewMs } = sight;
  const { timeline, position } = wal.facts;
  const lines = [
    `Server ${facts.server}: ${facts.inRecovery ? 'standby' : 'primary'}, PostgreSQL ${facts.versionText}, timeline ${timeline}, WAL at ${formatLsn(position)}`,
  ];
  const add = (what: string, text: string | undefined): void => {
    if (text !== undefined) lines.push(`  ${what.padEnd(9)} ${text}`);
  };
  add('slot', slotText(sight, survey));
  add('archiver', archiverText(sight));
  add('pg_wal', directoryText(sight));
  if (sight === survey.reference) {
    add('rate', rateText(survey));
    add('forecast', forecastText(sight, survey));
  }
  if (Math.abs(clockSkewMs) > SKEW_SHOWN_MS) {
    const where = clockSkewMs > 0 ? 'ahead of' : 'behind';
    add(
      'clock',
      `${formatDuration(Math.abs(clockSkewMs))} ${where} this host's; ages below are by the server's`,
    );
  }
  return lines;
}

function slotText(sight: ServerSight, { slot: name, expected }: WalSurvey): string | undefined {
  const { slot } = sight.wal.facts;
  if (slot === undefined) return expected.mode === 'stream' ? `"${name}" is not there` : undefined;
  const parts = [
    `"${name}"`,
    slot.active ? `held by ${holderText(sight)}` : 'not in use',
    ...(slot.walStatus === undefined ? [] : [slot.walStatus]),
    ...(slot.restartLsn === undefined ? [] : [`from ${formatLsn(slot.restartLsn)}`]),
    ...(slot.heldBytes === undefined ? [] : [`keeps ${formatSize(Number(slot.heldBytes))}`]),
    slot.safeWalSize === undefined
      ? 'without a limit'
      : `${formatSize(Math.max(0, Number(slot.safeWalSize)))} more until it is in danger`,
  ];
  return parts.join(', ');
}

function archiverText({ facts, wal, archiver }: ServerSight): string | undefined {
  if (archiver === undefined || facts.archiveMode === 'off') return undefined;
  const { lastArchived, lastArchivedAt, lastFailed, lastFailedAt, failedCount } = archiver;
  const waiting = wal.facts.readyFiles;
  const since =
    wal.oldestReadyAt === undefined ? '' : `, the oldest for ${ago(wal.oldestReadyAt, wal.facts.now)}`;
  return [
    lastArchived === undefined
      ? 'nothing archived yet'
      : `last ${lastArchived}${lastArchivedAt === undefined ? '' : ` ${ago(microsOf(lastArchivedAt), wal.facts.now)} ago`}`,
    ...(waiting === undefined ? [] : [`${waiting} ${waiting === 1 ? 'file waits' : 'files wait'}${since}`]),
    ...(failedCount === 0 || lastFailedAt === undefined
      ? []
      : [
          `${failedCount} failures, the last ${ago(microsOf(lastFailedAt), wal.facts.now)} ago (${lastFailed ?? ''})`,
        ]),
  ].join('; ');
}

function directoryText({ wal }: ServerSight): string | undefined {
  const { disk } = wal;
  const bytes = wal.facts.walDirectoryBytes;
  const size = bytes === undefined ? '' : formatSize(Number(bytes));
  if (disk === undefined) return size === '' ? undefined : `${size}; its disk cannot be seen from this host`;
  if (disk.problem !== undefined) return `${size === '' ? '' : `${size}; `}${disk.problem}`;
  const free = `${formatSize(Number(disk.freeBytes))} of ${formatSize(Number(disk.totalBytes))} free`;
  return `${size === '' ? '' : `${size} at `}${disk.path}; ${free}`;
}

function rateText({ rate }: WalSurvey): string | undefined {
  if (rate === undefined) return undefined;
  const from = rate.source === 'now' ? 'during the last second' : 'over the last stored segments';
  return `${formatSize(rate.bytesPerSecond)}/s ${from}`;
}

function forecastText({ wal }: ServerSight, { rate, expected }: WalSurvey): string | undefined {
  const { fullInMs, slotLostInMs } = forecastWal({
    freeBytes: wal.disk?.problem === undefined ? wal.disk?.freeBytes : undefined,
    safeWalSize: wal.facts.slot?.safeWalSize,
    bytesPerSecond: rate?.bytesPerSecond,
  });
  const taken = expected.mode === 'stream' ? 'received' : 'archived';
  const parts = [
    ...(fullInMs === undefined ? [] : [`pg_wal full in ${formatDuration(fullInMs)}`]),
    ...(slotLostInMs === undefined ? [] : [`slot in danger in ${formatDuration(slotLostInMs)}`]),
  ];
  return parts.length === 0 ? undefined : `${parts.join(', ')}, if nothing were ${taken} from now on`;
}

function receiverLines({ receiver }: WalSurvey): string[] {
  if (receiver === undefined) return [];
  const { state, alive, pid, server, flushedLsn, problem, updatedAt } = receiver;
  const where = flushedLsn === null ? '' : `, confirmed up to ${flushedLsn}`;
  const text = alive
    ? `${state}${server === null ? '' : ` from ${server}`} (process ${pid})${where}${problem === null ? '' : `: ${problem}`}`
    : `does not run; last heard of ${updatedAt}${where}${problem === null ? '' : `: ${problem}`}`;
  return ['', `Receiver on this host: ${text}`];
}

function repositoryLines(one: WalSurvey['stored'][number], { behind }: WalSurvey): string[] {
  const { repository, required, newest, point, gaps, problem } = one;
  const title = `Repository ${repository}${required ? '' : ' (not required)'}`;
  if (problem !== undefined) return [`${title}: ${problem}`];
  const lines: string[] = [];
  if (newest === undefined) lines.push(`${title}: no WAL yet`);
  else {
    const tails = newest.tailBytes === 0 ? '' : `, ${formatSize(newest.tailBytes)} of it in tails`;
    lines.push(`${title}: up to ${formatLsn(newest.lsn)} on timeline ${newest.timeline}${tails}`);
    if (point !== undefined) lines.push(`  ${pointText(point)}`);
  }
  const note = behind.find((noted) => noted.repository === repository);
  if (note !== undefined) {
    lines.push(`  behind since ${note.since}, tried again at ${note.tryAgainAt}: ${note.reason}`);
  }
  const newestGap = gaps.at(-1);
  if (newestGap !== undefined) {
    lines.push(
      `  ${gaps.length === 1 ? 'a gap' : `${gaps.length} gaps, the newest`}: ${describeGap(newestGap)}`,
    );
  }
  return lines;
}

function pointText({ state, ageMs, pendingBytes }: RecoveryPoint): string {
  const age = ageMs === undefined ? 'no commit is known' : `last commit ${formatDuration(ageMs)} ago`;
  return state === 'current'
    ? `every commit is stored: ${age}`
    : `${formatSize(Number(pendingBytes))} of WAL not stored yet: ${age}`;
}

function microsOf(time: Date): bigint {
  return BigInt(time.getTime()) * 1000n;
}

function ago(time: bigint, now: bigint): string {
  return formatDuration(Math.max(0, Number(now - time) / 1000));
}
