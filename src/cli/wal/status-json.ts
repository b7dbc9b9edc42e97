import type { HoldfastError } from '../../errors.ts';
import { formatLsn, type Lsn } from '../../postgres/lsn.ts';
import { formatMicroseconds } from '../../postgres/timestamp.ts';
import { forecastWal } from '../../wal/forecast.ts';
import type { Finding } from '../check/finding.ts';
import type { ServerSight } from '../check/see-server.ts';
import { streamSource } from '../check/stream-findings.ts';
import type { WalSurvey } from '../check/survey-wal.ts';

/** A configured server that does not answer. */
export interface SilentServer {
  server: string;
  error: HoldfastError;
}

/** What `wal status --json` prints. Sizes in bytes, times RFC 3339, ages and forecasts in seconds. */
export function statusJson(
  survey: WalSurvey,
  silent: readonly SilentServer[],
  findings: readonly Finding[],
  status: number,
): object {
  const { cluster, expected, slot, systemIdentifier, receiver, rate, behind } = survey;
  return {
    cluster,
    mode: expected.mode,
    slot,
    systemIdentifier: systemIdentifier ?? null,
    host: survey.host,
    now: survey.now.toISOString(),
    servers: [
      ...survey.sights.map((sight) => serverJson(sight)),
      ...silent.map(({ server, error }) => ({
        server,
        answers: false,
        problem: { code: error.code, message: error.message },
      })),
    ],
    receiver: receiver ?? null,
    rate:
      rate === undefined ? null : { bytesPerSecond: Math.round(rate.bytesPerSecond), source: rate.source },
    forecast: forecastJson(survey),
    repositories: survey.stored.map((one) => ({
      repository: one.repository,
      required: one.required,
      timeline: one.newest?.timeline ?? null,
      lsn: lsnJson(one.newest?.lsn),
      lastSegment: one.newest?.segment ?? null,
      tailBytes: one.newest?.tailBytes ?? 0,
      lastCommitTime: timeJson(one.newest?.lastCommitTime),
      state: one.point?.state ?? null,
      ageSeconds: one.point?.ageMs === undefined ? null : one.point.ageMs / 1000,
      pendingBytes: one.point === undefined ? null : Number(one.point.pendingBytes),
      backups: one.backups,
      present: one.present ?? null,
      behind: behind.find(({ repository }) => repository === one.repository) ?? null,
      gaps: one.gaps.map((gap) => ({
        ...gap,
        fromLsn: formatLsn(gap.fromLsn),
        toLsn: formatLsn(gap.toLsn),
      })),
      problem: one.problem ?? null,
    })),
    findings,
    status,
  };
}

function serverJson({ facts, wal, archiver, clockSkewMs }: ServerSight): object {
  const { slot, holder, ...state } = wal.facts;
  const { disk } = wal;
  return {
    server: facts.server,
    answers: true,
    role: facts.inRecovery ? 'standby' : 'primary',
    version: facts.versionText,
    timeline: state.timeline,
    lsn: formatLsn(state.position),
    now: formatMicroseconds(state.now),
    clockAheadSeconds: Math.round(clockSkewMs) / 1000,
    bytesPerSecond: wal.bytesPerSecond === undefined ? null : Math.round(wal.bytesPerSecond),
    slot:
      slot === undefined
        ? null
        : {
            name: slot.name,
            type: slot.type,
            active: slot.active,
            restartLsn: lsnJson(slot.restartLsn),
            walStatus: slot.walStatus ?? null,
            safeWalSize: numberJson(slot.safeWalSize),
            heldBytes: numberJson(slot.heldBytes),
            invalidationReason: slot.invalidationReason ?? null,
            holder:
              holder === undefined
                ? null
                : {
                    pid: holder.pid,
                    applicationName: holder.applicationName,
                    user: holder.user,
                    clientAddress: holder.clientAddress ?? null,
                    startedAt: timeJson(holder.startedAt),
                  },
          },
    archiver:
      archiver === undefined
        ? null
        : {
            mode: state.archiveMode,
            lastArchived: archiver.lastArchived ?? null,
            lastArchivedAt: archiver.lastArchivedAt ?? null,
            lastFailed: archiver.lastFailed ?? null,
            lastFailedAt: archiver.lastFailedAt ?? null,
            failedCount: archiver.failedCount,
            waitingFiles: state.readyFiles ?? null,
            oldestWaitingSince: timeJson(wal.oldestReadyAt),
          },
    walDirectory: {
      bytes: numberJson(state.walDirectoryBytes),
      path: disk?.problem === undefined ? (disk?.path ?? null) : null,
      freeBytes: disk?.problem === undefined ? numberJson(disk?.freeBytes) : null,
      totalBytes: disk?.problem === undefined ? numberJson(disk?.totalBytes) : null,
      problem: disk?.problem ?? null,
    },
    maxSlotWalKeepSize: numberJson(state.maxSlotWalKeepSize),
    synchronousStandbyNames: state.synchronousStandbyNames,
  };
}

/** Of the server WAL comes from. */
function forecastJson({ sights, slot, rate }: WalSurvey): object | null {
  const source = streamSource(sights, slot);
  if (source === undefined) return null;
  const { disk, facts } = source.wal;
  const { fullInMs, slotLostInMs } = forecastWal({
    freeBytes: disk?.problem === undefined ? disk?.freeBytes : undefined,
    safeWalSize: facts.slot?.safeWalSize,
    bytesPerSecond: rate?.bytesPerSecond,
  });
  const seconds = (ms: number | undefined): number | null =>
    ms === undefined ? null : Math.round(ms / 1000);
  return {
    server: source.facts.server,
    fullInSeconds: seconds(fullInMs),
    slotLostInSeconds: seconds(slotLostInMs),
  };
}

function lsnJson(lsn: Lsn | undefined): string | null {
  return lsn === undefined ? null : formatLsn(lsn);
}

function timeJson(micros: bigint | undefined): string | null {
  return micros === undefined ? null : formatMicroseconds(micros);
}

function numberJson(value: bigint | undefined): number | null {
  return value === undefined ? null : Number(value);
}
