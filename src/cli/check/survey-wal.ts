import { hostname } from 'node:os';

import { systemClock } from '../../clock.ts';
import type { Configuration } from '../../config/configuration.ts';
import type { ClusterConfiguration } from '../../config/schema.ts';
import { errorText, HoldfastError } from '../../errors.ts';
import type { Repository } from '../../repository/repository.ts';
import { readWalHeader } from '../../repository/wal-file.ts';
import { type Behind, readBehind } from '../../wal/behind.ts';
import { chooseRate, rateOf, type WalRate } from '../../wal/forecast.ts';
import { readReceiverStatus, type ReceiverStatus } from '../../wal/receiver-status.ts';
import { isTooOld, type RecoveryPoint, recoveryPointOf, type ServerEnd } from '../../wal/recovery-point.ts';
import { archiveCommand } from '../launcher-path.ts';
import { type ArchivedIn, judgeArchiving } from './archive-findings.ts';
import type { Findings } from './finding.ts';
import {
  judgeArchiveTimeout,
  judgeBehind,
  judgeGaps,
  isCutOff,
  judgeRecoveryPoint,
  oldestAllowed,
  type RecoveryExpectation,
} from './recovery-findings.ts';
import type { ServerSight } from './see-server.ts';
import { judgeWalSpace } from './space-findings.ts';
import { NO_ACCOUNT, seeAccount, seeStoredWal, type StoredWal, type WalAccount } from './stored-wal.ts';
import { isHeldByUs, judgeStreaming, judgeUnusedSlots, streamSource } from './stream-findings.ts';

/** Everything that is known of a cluster's WAL: on its servers, on its way, and in the repositories. */
export interface WalSurvey {
  cluster: string;
  expected: RecoveryExpectation;
  slot: string;
  systemIdentifier: string | undefined;
  sights: readonly ServerSight[];
  /** Whose end of WAL the repositories are compared with: the primary, else the standby that is furthest. */
  reference: ServerSight | undefined;
  receiver: (ReceiverStatus & { alive: boolean }) | undefined;
  stored: readonly SurveyedWal[];
  /** Of a primary that archives: whether its last archived file is in each required repository. */
  archived: readonly ArchivedIn[];
  /** What `archive_command` should be. */
  command: string;
  behind: readonly Behind[];
  rate: WalRate | undefined;
  host: string;
  now: Date;
}

/** One repository. */
export type SurveyedWal = StoredWal & WalAccount & { point: RecoveryPoint | undefined };

export interface SurveyRequest {
  name: string;
  cluster: ClusterConfiguration;
  configuration: Configuration;
  sights: readonly ServerSight[];
  repositories: readonly { repository: Repository; required: boolean }[];
  /** Where no server answers: as far as somebody knows. */
  known?: { systemIdentifier: string; segmentSize: number } | undefined;
  signal: AbortSignal;
}

/** Looks again while what is on its way arrives, at most so much longer than a tail takes. */
const ARRIVAL_SPARE_MS = 3000;
const LONGEST_ARRIVAL_MS = 15_000;
const LOOK_AGAIN_MS = 500;

/** Looks at receiver, notes and repositories, and compares them with what the servers said. Changes nothing. */
export async function surveyWal(request: SurveyRequest): Promise<WalSurvey> {
  const { name, cluster, configuration, sights, signal } = request;
  const { mode, slot, tailInterval } = cluster.wal;
  const reference = referenceOf(sights);
  const systemIdentifier = reference?.facts.systemIdentifier ?? request.known?.systemIdentifier;
  const expected: RecoveryExpectation = {
    cluster: name,
    mode,
    tailIntervalMs: tailInterval,
    archiveTimeoutMs: reference?.wal.archiveTimeoutMs ?? 0,
  };
  const segmentSize = reference?.facts.walSegmentSize ?? request.known?.segmentSize;
  const look = async (): Promise<StoredEndSight[]> =>
    systemIdentifier === undefined || segmentSize === undefined
      ? []
      : seeEnds(request, { systemIdentifier, segmentSize }, reference);
  let ends = await look();
  // A commit of this very second is on its way: only what does not arrive in time is behind.
  const streaming = mode === 'stream' && sights.some((sight) => isHeldByUs(sight, slot));
  const deadline = performance.now() + Math.min(tailInterval + ARRIVAL_SPARE_MS, LONGEST_ARRIVAL_MS);
  const isWorthALook = (): boolean => streaming && ends.some((one) => isLate(one, expected));
  while (performance.now() < deadline && isWorthALook()) {
    await systemClock.sleep(LOOK_AGAIN_MS, signal);
    ends = await look();
  }
  const stored =
    systemIdentifier === undefined || segmentSize === undefined
      ? []
      : await seeAccounts(request, { systemIdentifier, segmentSize }, ends);
  const sampled = reference?.wal.bytesPerSecond;
  const rates = stored.map(({ newest }) => rateOf(newest?.samples ?? []) ?? -1);
  const best = Math.max(-1, ...rates);
  return {
    cluster: name,
    expected,
    slot,
    systemIdentifier,
    sights,
    reference,
    receiver: await readReceiverStatus(configuration.stateDirectory, name),
    stored,
    archived: mode === 'push' ? await whereArchived(request, reference) : [],
    command: archiveCommand(configuration.file, configuration.clusterNames.length > 1 ? name : undefined),
    behind:
      systemIdentifier === undefined ? [] : await readBehind(configuration.stateDirectory, systemIdentifier),
    rate: chooseRate(sampled, best < 0 ? undefined : best),
    host: hostname(),
    now: new Date(),
  };
}

/** What a survey means. Pure. */
export function judgeWal(survey: WalSurvey, findings: Findings): void {
  const { expected, sights, stored, behind, rate, reference } = survey;
  if (expected.mode === 'stream') judgeStreaming(sights, survey, findings);
  else judgeUnusedSlots(sights, survey, findings);
  if (expected.mode === 'push' && reference?.facts.inRecovery === false) {
    judgeArchiving(reference, survey, survey.archived, findings);
    if (reference.facts.archiveMode !== 'off') judgeArchiveTimeout(expected, findings);
  }
  for (const sight of sights) judgeWalSpace(sight, rate?.bytesPerSecond, findings);
  for (const one of stored) {
    const noted = behind.some(({ repository }) => repository === one.repository);
    if (one.problem !== undefined) {
      findings.fail(
        `repository ${one.repository} does not tell what WAL it has: ${one.problem}`,
        `holdfast window ${survey.cluster} --repository ${one.repository}`,
      );
      continue;
    }
    if (one.point !== undefined) judgeRecoveryPoint(one, one.point, expected, noted, findings);
    judgeGaps(one, survey.cluster, findings);
  }
  judgeBehind(behind, findings);
}

/** 40: what is stored now cannot be restored to its end, or WAL is lost. 20: no server answers. 3: something is not as it should be. */
export function statusOf(survey: WalSurvey, findings: Findings): 0 | 3 | 20 | 40 {
  const source = streamSource(survey.sights, survey.slot);
  const lost = survey.expected.mode === 'stream' && source?.wal.facts.slot?.walStatus === 'lost';
  const gap = survey.stored.some((one) => one.required && isCutOff(one));
  if (lost || gap) return 40;
  if (survey.sights.length === 0) return 20;
  const failed = findings.all.some(({ status }) => status === 'fail');
  return failed || survey.behind.length > 0 ? 3 : 0;
}

function referenceOf(sights: readonly ServerSight[]): ServerSight | undefined {
  const primary = sights.find(({ facts }) => !facts.inRecovery);
  if (primary !== undefined) return primary;
  return sights.reduce<ServerSight | undefined>(
    (best, one) => (best === undefined || one.wal.facts.position > best.wal.facts.position ? one : best),
    undefined,
  );
}

function endOf({ wal }: ServerSight): ServerEnd {
  const { now, timeline, position } = wal.facts;
  return { now, timeline, position, quietSince: wal.quietSince };
}

type StoredEndSight = StoredWal & { point: RecoveryPoint | undefined };

/** Where the WAL ends in each repository, in their order. */
async function seeEnds(
  { name, repositories, signal }: SurveyRequest,
  { systemIdentifier, segmentSize }: { systemIdentifier: string; segmentSize: number },
  reference: ServerSight | undefined,
): Promise<StoredEndSight[]> {
  const end = reference && endOf(reference);
  return Promise.all(
    repositories.map(async ({ repository, required }) => {
      const identity = { cluster: name, systemIdentifier };
      const seen = await seeStoredWal(repository, required, identity, {
        segmentSize,
        ...(end && { near: { timeline: end.timeline, lsn: end.position } }),
        signal,
      });
      return { ...seen, point: end && recoveryPointOf(end, seen.newest) };
    }),
  );
}

async function seeAccounts(
  { name, repositories, configuration, signal }: SurveyRequest,
  { systemIdentifier, segmentSize }: { systemIdentifier: string; segmentSize: number },
  ends: readonly StoredEndSight[],
): Promise<SurveyedWal[]> {
  const { stateDirectory } = configuration;
  return Promise.all(
    ends.map(async (end, index) => {
      const repository = repositories[index]?.repository;
      if (repository === undefined || end.problem !== undefined) return { ...end, ...NO_ACCOUNT };
      try {
        const identity = { cluster: name, systemIdentifier };
        return {
          ...end,
          ...(await seeAccount(repository, identity, { segmentSize, stateDirectory, signal })),
        };
      } catch (error) {
        if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
        return { ...end, ...NO_ACCOUNT, problem: errorText(error) };
      }
    }),
  );
}

/** Asks each required repository for what the server believes to have archived last. */
async function whereArchived(
  { name, repositories, signal }: SurveyRequest,
  reference: ServerSight | undefined,
): Promise<ArchivedIn[]> {
  const last = reference?.archiver?.lastArchived;
  if (reference === undefined || last === undefined) return [];
  const { systemIdentifier } = reference.facts;
  return Promise.all(
    repositories
      .filter(({ required }) => required)
      .map(async ({ repository }) => {
        const header = await readWalHeader(repository, { cluster: name, systemIdentifier }, last, signal);
        return { repository: repository.name, present: header !== undefined };
      }),
  );
}

/** Worth another look: pending for longer than it should take. */
function isLate(one: StoredEndSight, expected: RecoveryExpectation): boolean {
  const limit = oldestAllowed(expected);
  return one.required && one.point !== undefined && limit !== undefined && isTooOld(one.point, limit);
}
