import { dirname, join } from 'node:path';

import { HoldfastError } from '../errors.ts';
import { lsnOf } from '../postgres/lsn.ts';
import { type TimelineId, historyFileName } from '../postgres/timeline.ts';
import type { WalFile } from '../postgres/wal-segment.ts';
import type { WalSummary } from '../postgres/wal-summary.ts';
import { type ClusterChoice, chooseCluster } from '../repository/choose-cluster.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import {
  readWalHeader,
  storeWalFile,
  type StoredWal,
  type StoreWalOptions,
  type WalFileToStore,
} from '../repository/wal-file.ts';
import { raiseWalHighWater, type WalHighWaterMark } from '../repository/wal-high-water.ts';
import { localControlData, systemIdentifierBeside } from './local-cluster.ts';
import type { PushToOptional } from './push-optional.ts';
import { openWalSource, type WalSource } from './wal-source.ts';
import { summarizeSource } from './summarize-source.ts';

export interface PushOptions {
  /** The file, usually `pg_wal/NAME` with the data directory as working directory. */
  path: string;
  /** Every one of them must confirm. */
  repositories: readonly Repository[];
  /** Those that are tried as well and hold nobody up. */
  optional?: PushToOptional;
  cluster: ClusterChoice;
  /** Where this host notes the newest WAL it saw confirmed. */
  stateDirectory?: string;
  host: string;
  now: () => Date;
  signal?: AbortSignal;
}

export interface PushResult {
  name: string;
  kind: WalFile['kind'];
  identity: ClusterIdentity;
  sizeBytes: number;
  hash: string;
  /** Of segments and partial segments. */
  wal?: WalSummary;
  stored: { repository: string; outcome: StoredWal['outcome']; storedBytes: number }[];
}

/** How one push belongs to others that run beside it. */
export interface PushTogether {
  /** Told as soon as it is known which cluster the file is of. */
  identified?: (identity: ClusterIdentity) => void;
  /** What the first of them found out; a file of another cluster is refused. */
  identity?: ClusterIdentity;
  /** Committed in no repository before this has resolved. */
  commitAfter?: Promise<unknown>;
}

export interface Pushed {
  result: PushResult;
  /** Of segments. */
  mark?: WalHighWaterMark;
}

/**
 * Stores one file that PostgreSQL archives in every repository given. When it resolves, each required one has it,
 * durable: PostgreSQL may recycle the file. Any failure throws and PostgreSQL keeps the file and asks again; what was
 * stored by then is found again by the next attempt. The same content again is a success, other content under the same
 * name is `wal-conflict` for ever. A file that is not what its name says is `wal-invalid`, one of another cluster
 * `cluster-mismatch`; neither is stored. Optional repositories change neither the outcome nor, by more than a short
 * grace, the time it takes.
 */
export async function pushWal(options: PushOptions): Promise<PushResult> {
  const { result, mark } = await pushOne(options);
  await notePushed(options, result.identity, mark);
  return result;
}

/** What remains to be done on this host once files are stored. Never throws. */
export async function notePushed(
  { stateDirectory, optional }: PushOptions,
  identity: ClusterIdentity,
  mark: WalHighWaterMark | undefined,
): Promise<void> {
  if (stateDirectory !== undefined && mark !== undefined) {
    await raiseWalHighWater(stateDirectory, identity.systemIdentifier, mark);
  }
  await optional?.finish();
}

/** As `pushWal`, leaving the notes on this host to the caller. */
export async function pushOne(options: PushOptions, together: PushTogether = {}): Promise<Pushed> {
  const { path, repositories, optional, signal } = options;
  if (repositories.length === 0) {
    throw new HoldfastError('config-invalid', 'no repository is required, so nothing could confirm this wal');
  }
  await using source = await openWalSource(path);
  const identity = await identityOf(source, options, together);
  together.identified?.(identity);
  // Compression goes on in other threads while this one reads the records.
  source.prepare();
  const summary = await summarizeSource(source);
  const file: WalFileToStore = { ...(await described(source)), ...(summary && { wal: { ...summary } }) };

  const store = async (
    repository: Repository,
    how: Pick<StoreWalOptions, 'commitAfter' | 'signal'>,
  ): Promise<StoredWal> => {
    const storing = { host: options.host, now: options.now, ...how };
    if (source.file.kind !== 'history') {
      await storeHistoryFirst(repository, identity, path, source.file.timeline, storing);
    }
    return storeWalFile(repository, identity, file, storing);
  };
  const { commitAfter } = together;
  const within = { ...(commitAfter && { commitAfter }), ...(signal && { signal }) };
  await using attempt = await optional?.attempt(identity, file.name, store, within);
  const results = await Promise.allSettled(repositories.map(async (repository) => store(repository, within)));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  await attempt?.settle();
  const stored = results.map((result) => (result as PromiseFulfilledResult<StoredWal>).value);

  const result: PushResult = {
    name: source.file.name,
    kind: source.file.kind,
    identity,
    sizeBytes: source.sizeBytes,
    hash: file.hash,
    ...(summary && { wal: summary }),
    stored: stored.map(({ outcome, header }, index) => ({
      repository: repositories[index]?.name ?? '',
      outcome,
      storedBytes: header.stored.sizeBytes,
    })),
  };
  if (source.header === undefined || source.file.kind !== 'segment') return { result };
  const mark = {
    timeline: source.file.timeline,
    name: source.file.name,
    endLsn: lsnOf(source.header.pageAddress + BigInt(source.sizeBytes)),
    lastCommitTime: summary?.lastCommitTime ?? null,
    repositories: repositories.map((repository) => repository.name),
  };
  return { result, mark };
}

async function described(source: WalSource): Promise<WalFileToStore> {
  const { file, sizeBytes, modifiedAt } = source;
  return { name: file.name, sizeBytes, modifiedAt, hash: await source.hash(), frames: () => source.frames() };
}

async function identityOf(
  source: WalSource,
  { path, repositories, cluster, signal }: PushOptions,
  { identity }: PushTogether,
): Promise<ClusterIdentity> {
  const identifier = await systemIdentifierOf(path, source);
  if (identity === undefined) return chooseCluster(repositories, identifier, cluster, signal);
  if (identity.systemIdentifier === identifier) return identity;
  throw new HoldfastError(
    'cluster-mismatch',
    `${source.file.name} is of system identifier ${identifier}, its neighbours are of ${identity.systemIdentifier}`,
  );
}

/** A segment says itself which cluster it is of; where its data directory is at hand, both must agree. */
async function systemIdentifierOf(path: string, source: WalSource): Promise<string> {
  if (source.header === undefined) {
    const beside = await systemIdentifierBeside(path);
    if (beside !== undefined) return beside;
    throw new HoldfastError(
      'wal-invalid',
      `cannot tell which cluster ${source.file.name} belongs to: there is neither ../global/pg_control nor a wal segment beside it`,
      { hint: 'push it from the pg_wal directory it was written in' },
    );
  }
  const control = await localControlData(dirname(dirname(path)));
  const own = source.header.systemIdentifier;
  if (control !== undefined && control.systemIdentifier !== own) {
    throw new HoldfastError(
      'cluster-mismatch',
      `${source.file.name} is of system identifier ${own}, but lies in the data directory of ${control.systemIdentifier}`,
      { hint: 'nothing was stored; find out how a foreign segment came into pg_wal' },
    );
  }
  return own;
}

/**
 * Without its history nobody can tell where a timeline forked off, and recovery would follow the parent. PostgreSQL
 * archives the history file first, but a repository may be new, or an earlier archive command may have taken it.
 */
async function storeHistoryFirst(
  repository: Repository,
  identity: ClusterIdentity,
  path: string,
  timeline: TimelineId,
  options: StoreWalOptions,
): Promise<void> {
  if (timeline === 1) return;
  const name = historyFileName(timeline);
  if ((await readWalHeader(repository, identity, name, options.signal)) !== undefined) return;
  try {
    await using source = await openWalSource(join(dirname(path), name));
    await storeWalFile(repository, identity, await described(source), options);
  } catch (error) {
    if (!(error instanceof HoldfastError) || error.code !== 'usage-invalid') throw error;
    throw new HoldfastError(
      'wal-gap',
      `${name} is neither in repository ${repository.name} nor beside the segment, so timeline ${timeline} could not be restored`,
      { hint: `put ${name} into pg_wal (a standby or another archive has it)`, cause: error },
    );
  }
}
