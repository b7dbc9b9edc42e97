import { setTimeout as sleep } from 'node:timers/promises';

import { HoldfastError, errorText } from '../errors.ts';
import { type Lsn, lsnOf } from '../postgres/lsn.ts';
import { checkWalSegment } from '../postgres/wal-page.ts';
import { classifyWalFile, parseWalSegmentName, segmentStart, type WalFile } from '../postgres/wal-segment.ts';
import { parseSystemIdentifier, type SystemIdentifier } from '../postgres/system-identifier.ts';
import { listHistories, namesOf } from '../repository/choose-cluster.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import { readWalFile, readWalHeader, type WalHeader } from '../repository/wal-file.ts';
import { deliverTail, type FoundTail } from './deliver-tail.ts';
import { placeFile } from './place-file.ts';
import { proveAbsence } from './prove-absence.ts';

export interface FetchOptions {
  /** What PostgreSQL asks for (`%f`). */
  name: string;
  /** Where it is to be (`%p`). */
  destination: string;
  /** Asked in this order. */
  repositories: readonly Repository[];
  /** The names the cluster may have: those of the configuration, or the one that was given. */
  clusters: readonly string[];
  /** Of the data directory that is recovering; left out, the repository must hold only one history of the cluster. */
  systemIdentifier?: SystemIdentifier;
  segmentSize?: number;
  /** What recovery has to reach: nothing that begins before it may be absent. */
  until?: Lsn;
  /** How long transient failures are retried. */
  deadlineMs: number;
  signal?: AbortSignal;
  /** The pause before the first retry; each further one is twice as long, up to 5 s. */
  firstPauseMs?: number;
}

export type FetchResult =
  | {
      kind: 'delivered';
      repository: string;
      sizeBytes: number;
      /** Of its content, as its header says; left out for what has none, because it will still grow. */
      hash?: string;
      /** Set for a segment that is not complete: up to here it is stored, behind it are zeros. */
      storedUpTo?: Lsn;
      warnings: HoldfastError[];
    }
  | { kind: 'absent'; reason: string; warnings: HoldfastError[] }
  | { kind: 'failed'; error: Error; warnings: HoldfastError[] };

const DEFAULT_FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 5000;

/** How often what changes while it is read is looked for anew, before that counts as a failure of the store. */
const MAX_LOOKS = 5;

/**
 * Hands one WAL file to recovery. `delivered`: it is at the destination, whole, and every byte was compared with what was
 * once archived; the destination is touched only then. A segment that is not complete is delivered as far as it is stored,
 * padded with zeros, where that reaches `until`, or where every repository proves that nothing follows (see
 * `proveAbsence`; then the longest is taken). `absent`: the repositories prove that there is none; a repository that holds
 * nothing at all of the cluster proves nothing. Everything else is `failed`: recovery must stop. A copy that is missing or
 * damaged in one repository is taken from the next, with a warning. Throws only when `signal` is aborted.
 */
export async function fetchWal(options: FetchOptions): Promise<FetchResult> {
  const file = classifyWalFile(options.name);
  if (file === undefined) {
    const shown = JSON.stringify(options.name.slice(0, 100));
    return failed(new HoldfastError('wal-invalid', `${shown} is not the name of a wal file`), []);
  }
  const giveUpAt = performance.now() + options.deadlineMs;
  let pauseMs = options.firstPauseMs ?? DEFAULT_FIRST_PAUSE_MS;
  for (;;) {
    const result = decide(file, await answersOf(file, options), options);
    options.signal?.throwIfAborted();
    const isTransient =
      result.kind === 'failed' && result.error instanceof HoldfastError && result.error.retryable;
    if (!isTransient || performance.now() + pauseMs > giveUpAt) return result;
    await sleep(pauseMs, undefined, { ...(options.signal && { signal: options.signal }) });
    pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS);
  }
}

interface Delivered {
  kind: 'delivered';
  repository: string;
  sizeBytes: number;
  hash?: string;
  storedUpTo?: Lsn;
  warnings: HoldfastError[];
}

/** What one repository has to say. */
type Answer =
  | Delivered
  | { kind: 'absent'; reason: string }
  /** Of this segment, the last of its timeline as far as it knows, it has only the beginning. */
  | { kind: 'tail'; tail: FoundTail }
  | { kind: 'hole'; error: HoldfastError }
  /** It holds nothing of this cluster. */
  | { kind: 'unknown' }
  | { kind: 'error'; error: Error };

async function answersOf(file: WalFile, options: FetchOptions): Promise<Answer[]> {
  for (let looks = 0; looks < MAX_LOOKS; looks += 1) {
    const answers = await askAll(file, options);
    const tails = answers.flatMap((answer) => (answer.kind === 'tail' ? [answer.tail] : []));
    const [first, ...others] = tails;
    const isEnd = answers.every(({ kind }) => kind === 'tail' || kind === 'absent' || kind === 'unknown');
    if (first === undefined || !isEnd) return answers;
    const longest = others.reduce((best, tail) => (tail.chain.end > best.chain.end ? tail : best), first);
    const rest = tails.filter((tail) => tail !== longest && tail.chain.end >= longest.chain.end);
    const delivered = await deliverOneOf([longest, ...rest], options);
    if (delivered !== 'changed') return [...answers, ...delivered];
  }
  return [{ kind: 'error', error: restless(file) }];
}

/** The first that can be delivered of several tails that reach equally far. */
async function deliverOneOf(
  tails: readonly FoundTail[],
  options: FetchOptions,
): Promise<Answer[] | 'changed'> {
  const answers: Answer[] = [];
  for (const tail of tails) {
    const at = `${tail.segment} in repository ${tail.repository.name}`;
    const answer = await asAnswer(at, options, async () => deliverFound(tail, options));
    if (answer === 'changed') return 'changed';
    answers.push(answer);
    if (answer.kind === 'delivered') break;
  }
  return answers;
}

async function askAll(file: WalFile, options: FetchOptions): Promise<Answer[]> {
  const answers: Answer[] = [];
  for (const repository of options.repositories) {
    const at = `${file.name} in repository ${repository.name}`;
    const answer = await asAnswer(at, options, async () => ask(repository, file, options));
    answers.push(answer);
    if (answer.kind === 'delivered') break;
  }
  return answers;
}

/** `at` says which copy: what a frame or a file system says of it does not. */
async function asAnswer<T>(at: string, options: FetchOptions, work: () => Promise<T>): Promise<T | Answer> {
  try {
    return await work();
  } catch (error) {
    options.signal?.throwIfAborted();
    const message = `${at}: ${errorText(error)}`;
    if (!(error instanceof HoldfastError))
      return { kind: 'error', error: new Error(message, { cause: error }) };
    const { code, hint, context } = error;
    const named = new HoldfastError(code, message, {
      ...(hint !== undefined && { hint }),
      context,
      cause: error,
    });
    return { kind: 'error', error: named };
  }
}

async function ask(repository: Repository, file: WalFile, options: FetchOptions): Promise<Answer> {
  const { signal } = options;
  const identity = await findIdentity(repository, options);
  if (identity === undefined) return { kind: 'unknown' };
  for (let looks = 0; looks < MAX_LOOKS; looks += 1) {
    const header = await readWalHeader(repository, identity, file.name, signal);
    if (header !== undefined) return deliver(repository, header, options);
    const proof = await proveAbsence(repository, identity, file, {
      ...(options.until !== undefined && { until: options.until }),
      ...(options.segmentSize !== undefined && { segmentSize: options.segmentSize }),
      ...(signal && { signal }),
    });
    if (proof.kind === 'absent') return proof;
    if (proof.kind === 'tail') {
      if (proof.tail.enough === undefined) return proof;
      const delivered = await deliverFound(proof.tail, options);
      if (delivered !== 'changed') return delivered;
      continue;
    }
    // It may have been pushed, and its successor too, since it was looked for.
    const now = await readWalHeader(repository, identity, file.name, signal);
    if (now !== undefined) return deliver(repository, now, options);
    const error = new HoldfastError(
      'wal-gap',
      `repository ${repository.name} lacks ${file.name}: ${proof.reason}`,
      {
        hint: `"holdfast window ${identity.cluster}" shows what can be restored; fetch from another repository if there is one`,
        context: { name: file.name, repository: repository.name },
      },
    );
    return { kind: 'hole', error };
  }
  throw restless(file);
}

async function deliver(repository: Repository, header: WalHeader, options: FetchOptions): Promise<Delivered> {
  await placeFile(options.destination, checked(readWalFile(repository, header, options.signal), header));
  const { sizeBytes, hash } = header;
  return { kind: 'delivered', repository: repository.name, sizeBytes, hash, warnings: [] };
}

async function deliverFound(tail: FoundTail, options: FetchOptions): Promise<Delivered | 'changed'> {
  const delivery = await deliverTail(tail, options.destination, options.signal);
  if (delivery.kind === 'changed') return 'changed';
  const { segmentNumber } = parseWalSegmentName(tail.segment, tail.segmentSize);
  return {
    kind: 'delivered',
    repository: tail.repository.name,
    sizeBytes: tail.segmentSize,
    storedUpTo: lsnOf(segmentStart(segmentNumber, tail.segmentSize) + BigInt(delivery.end)),
    warnings: delivery.warnings,
  };
}

function restless(file: WalFile): HoldfastError {
  return new HoldfastError(
    'storage-unavailable',
    `what is stored of ${file.name} changed whenever it was read`,
  );
}

/** The hashes prove that the bytes are those its header names; this, that they are what the name says. */
async function* checked(plain: AsyncIterable<Buffer>, header: WalHeader): AsyncGenerator<Buffer> {
  let isFirst = true;
  for await (const chunk of plain) {
    if (isFirst && (header.kind === 'segment' || header.kind === 'partial')) {
      checkWalSegment(chunk, {
        name: header.name,
        sizeBytes: header.sizeBytes,
        systemIdentifier: parseSystemIdentifier(header.systemIdentifier),
      });
    }
    isFirst = false;
    yield chunk;
  }
}

/** Under which name a repository keeps the cluster; undefined where it holds nothing of it. */
async function findIdentity(
  repository: Repository,
  options: FetchOptions,
): Promise<ClusterIdentity | undefined> {
  const { clusters, systemIdentifier, signal } = options;
  const found: ClusterIdentity[] = [];
  if (systemIdentifier !== undefined) {
    const names = await namesOf([repository], systemIdentifier, clusters, signal);
    found.push(...names.map((cluster) => ({ cluster, systemIdentifier })));
  } else {
    for await (const identity of listHistories(repository, signal)) {
      if (clusters.includes(identity.cluster)) found.push(identity);
    }
  }
  if (found.length > 1) {
    const all = found.map((identity) => `${identity.cluster}/${identity.systemIdentifier}`).join(', ');
    throw new HoldfastError('cluster-mismatch', `the wal could be of any of ${all}`, {
      hint: 'say which: --cluster NAME, --system-identifier NUMBER',
    });
  }
  return found[0];
}

function decide(file: WalFile, answers: readonly Answer[], options: FetchOptions): FetchResult {
  const warnings: HoldfastError[] = [];
  for (const answer of answers) {
    if ((answer.kind === 'hole' || answer.kind === 'error') && answer.error instanceof HoldfastError) {
      warnings.push(answer.error);
    }
  }
  const last = answers.at(-1);
  if (last?.kind === 'delivered') {
    return { ...last, warnings: [...warnings, ...last.warnings] };
  }
  const errors = answers.flatMap((answer) => (answer.kind === 'error' ? [answer.error] : []));
  // One repository that may have it and can be reached again is worth waiting for, whatever the others say.
  const transient = errors.find((error) => error instanceof HoldfastError && error.retryable);
  const hole = answers.find((answer) => answer.kind === 'hole');
  const absent = answers.find((answer) => answer.kind === 'absent');
  // Where the target is behind already, a repository out of reach must not keep recovery from ending.
  const enough = options.until !== undefined && absent !== undefined && hole === undefined;
  const failure = enough ? undefined : (transient ?? hole?.error ?? errors[0]);
  if (failure !== undefined) return failed(failure, warnings);
  if (absent !== undefined) return { kind: 'absent', reason: absent.reason, warnings };
  const names = options.repositories.map((repository) => repository.name).join(', ');
  return failed(
    new HoldfastError(
      'cluster-unknown',
      `nothing of ${options.clusters.join(' or ')}${options.systemIdentifier === undefined ? '' : ` with system identifier ${options.systemIdentifier}`} is in repository ${names}, so the absence of ${file.name} proves nothing`,
      { hint: 'check --config, --cluster and that the repository is the right one' },
    ),
    warnings,
  );
}

function failed(error: Error, warnings: HoldfastError[]): FetchResult {
  return { kind: 'failed', error, warnings: warnings.filter((warning) => warning !== error) };
}
