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
import { raiseWalHighWater } from '../repository/wal-high-water.ts';
import { localControlData, systemIdentifierBeside } from './local-cluster.ts';
import { openWalSource, type WalSource } from './wal-source.ts';
import { summarizeSource } from './summarize-source.ts';

export interface PushOptions {
  /** The file, usually `pg_wal/NAME` with the data directory as working directory. */
  path: string;
  /** Every one of them must confirm. */
  repositories: readonly Repository[];
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

/**
 * Stores one file that PostgreSQL archives in every repository given. When it resolves, each of them has it, durable:
 * PostgreSQL may recycle the file. Any failure throws and PostgreSQL keeps the file and asks again; what was stored by
 * then is found again by the next attempt. The same content again is a success, other content under the same name is
 * `wal-conflict` for ever. A file that is not what its name says is `wal-invalid`, one of another cluster
 * `cluster-mismatch`; neither is stored.
 */
export async function pushWal(options: PushOptions): Promise<PushResult> {
  const { path, repositories, signal } = options;
  if (repositories.length === 0) {
    throw new HoldfastError('config-invalid', 'no repository is required, so nothing could confirm this wal');
  }
  await using source = await openWalSource(path);
  const identifier = await systemIdentifierOf(path, source);
  const identity = await chooseCluster(repositories, identifier, options.cluster, signal);
  // Compression goes on in other threads while this one reads the records.
  source.prepare();
  const summary = await summarizeSource(source);
  const file: WalFileToStore = { ...(await described(source)), ...(summary && { wal: { ...summary } }) };

  const results = await Promise.allSettled(
    repositories.map(async (repository) => {
      if (source.file.kind !== 'history') {
        await storeHistoryFirst(repository, identity, path, source.file.timeline, options);
      }
      return storeWalFile(repository, identity, file, options);
    }),
  );
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  const stored = results.map((result) => (result as PromiseFulfilledResult<StoredWal>).value);

  if (options.stateDirectory !== undefined && source.header !== undefined && source.file.kind === 'segment') {
    await raiseWalHighWater(options.stateDirectory, identifier, {
      timeline: source.file.timeline,
      name: source.file.name,
      endLsn: lsnOf(source.header.pageAddress + BigInt(source.sizeBytes)),
      lastCommitTime: summary?.lastCommitTime ?? null,
      repositories: repositories.map((repository) => repository.name),
    });
  }
  return {
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
}

async function described(source: WalSource): Promise<WalFileToStore> {
  const { file, sizeBytes, modifiedAt } = source;
  return { name: file.name, sizeBytes, modifiedAt, hash: await source.hash(), frames: () => source.frames() };
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
