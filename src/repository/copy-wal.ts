import { HoldfastError } from '../errors.ts';
import type { TimelineId } from '../postgres/timeline.ts';
import { historyFileName } from '../postgres/timeline.ts';
import { HashingPass } from '../stream/hash.ts';
import { encodeClearObject } from './clear-object.ts';
import { type ClusterIdentity, walHeaderKey } from './layout.ts';
import type { Repository } from './repository.ts';
import type { StoredObject } from './sealed-object.ts';
import { readWalHeader, type WalHeader } from './wal-file.ts';
import { listWal, type WalEntry } from './wal-listing.ts';
import { listTails } from './wal-tail.ts';

/** Data objects on their way at once. Each is streamed, so this does not cost memory by the size of a segment. */
const IN_FLIGHT = 4;
/** Files that could not be copied are told up to this many; more only say that the source cannot be relied on. */
const FAILURES_TOLD = 100;

export interface CopyOptions {
  /** Awaited between the data and the header that commits it; where it rejects, nothing is committed. */
  commitAfter?: Promise<unknown>;
  signal?: AbortSignal;
}

/**
 * Copies one committed WAL file as it lies, sealed, so no key is needed. When it resolves, header and data are durable
 * in `to`; a crash or an error at any moment leaves at most data that no header names, which the next attempt replaces.
 * `present`: the same content was there, and its durability was confirmed. Data that is missing below a header in `to`
 * is put there again (`copied`). Throws `object-missing` where `from` has no such file or lost its data, `object-damaged`
 * where the data is not what the header describes, `wal-conflict` where `to` has other content under this name (it is
 * never replaced), and the stores' errors.
 */
export async function copyWalFile(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  name: string,
  signal?: AbortSignal,
): Promise<'copied' | 'present'> {
  const header = await headerToCopy(from, identity, name, signal);
  return copyWith(header, from, to, identity, { ...(signal && { signal }) });
}

export interface MissingWalOptions {
  /** Only what comes after the WAL file of this name in the order of `listWal`; older holes are not looked for. */
  after?: string;
  signal?: AbortSignal;
}

/**
 * What `from` has committed and `to` has not, timelines ascending, the history file of each before its segments. Two
 * listings side by side, in constant memory.
 */
export async function* missingWal(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  options: MissingWalOptions = {},
): AsyncGenerator<WalEntry> {
  const { after, signal } = options;
  const listing = { ...(after !== undefined && { from: after }), ...(signal && { signal }) };
  const theirs = listWal(to, identity, listing)[Symbol.asyncIterator]();
  try {
    let their = await theirs.next();
    let begun: TimelineId | undefined;
    for await (const entry of listWal(from, identity, listing)) {
      const key = walHeaderKey(identity, entry.name);
      while (their.done !== true && walHeaderKey(identity, their.value.name) < key)
        their = await theirs.next();
      if (their.done !== true && their.value.name === entry.name) continue;
      if (entry.name === after) continue;
      if (begun !== entry.timeline) {
        begun = entry.timeline;
        const history = historyFileName(entry.timeline);
        // Where it is the only file of its timeline that is missing, it is this entry itself.
        if (entry.name === history || (await isMissing(from, to, identity, history, signal))) {
          yield { timeline: entry.timeline, name: history, kind: 'history' };
        }
      }
      if (entry.kind !== 'history') yield entry;
    }
  } finally {
    await theirs.return?.(undefined);
  }
}

export interface CopyMissingOptions extends MissingWalOptions {
  /** Told in order, as each is committed. */
  onCopied?: (entry: WalEntry, storedBytes: number) => void;
}

export interface CopiedWal {
  copied: number;
  /** Sealed bytes sent. */
  bytes: number;
  /** What `from` cannot give, being damaged there, or `to` refuses; the first hundred. Everything else was copied. */
  failed: { name: string; error: HoldfastError }[];
}

/**
 * Copies everything that `missingWal` tells. Data goes out a few at a time, headers are committed strictly in order, so
 * a crash leaves no hole that was not there. A file that is damaged in `from` or conflicts in `to` is told and passed
 * over; any other failure ends the copying and is thrown. May be repeated.
 */
export async function copyMissingWal(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  options: CopyMissingOptions = {},
): Promise<CopiedWal> {
  const result: CopiedWal = { copied: 0, bytes: 0, failed: [] };
  const stop = new AbortController();
  const signal = options.signal === undefined ? stop.signal : AbortSignal.any([options.signal, stop.signal]);
  const running: Promise<void>[] = [];
  let before: Promise<unknown> = Promise.resolve();
  const copyOne = async (entry: WalEntry, commitAfter: Promise<unknown>): Promise<void> => {
    try {
      const header = await headerToCopy(from, identity, entry.name, signal);
      const outcome = await copyWith(header, from, to, identity, { commitAfter, signal });
      if (outcome === 'present') return;
      result.copied += 1;
      result.bytes += header.stored.sizeBytes;
      options.onCopied?.(entry, header.stored.sizeBytes);
    } catch (error) {
      // What comes before it failed: that error is the one to tell.
      await commitAfter;
      if (!concernsOneFile(error)) throw error;
      if (error.code === 'object-missing' && (await isGone(from, identity, entry.name, signal))) return;
      if (result.failed.length < FAILURES_TOLD) result.failed.push({ name: entry.name, error });
    }
  };
  try {
    for await (const entry of missingWal(from, to, identity, { ...options, signal })) {
      const copying = copyOne(entry, before);
      copying.catch(() => undefined);
      before = copying;
      running.push(copying);
      if (running.length >= IN_FLIGHT) await running.shift();
    }
    while (running.length > 0) await running.shift();
    return result;
  } catch (error) {
    stop.abort(error);
    await Promise.allSettled(running);
    throw error;
  }
}

/**
 * Copies the tails of segments that are complete in neither repository: the same sealed objects under the same keys.
 * Without a key only their length can be compared here; readers verify them. May be repeated.
 */
export async function copyTails(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  signal?: AbortSignal,
): Promise<{ copied: number; bytes: number }> {
  const result = { copied: 0, bytes: 0 };
  const within = { ...(signal && { signal }) };
  let segment = '';
  let complete = false;
  let there = new Set<string>();
  for await (const tail of listTails(from, identity, within)) {
    if (tail.segment !== segment) {
      segment = tail.segment;
      const headerKey = walHeaderKey(identity, segment);
      complete = (
        await Promise.all([from, to].map(async ({ storage }) => storage.head(headerKey, within)))
      ).some((info) => info !== undefined);
      there = new Set();
      if (complete) continue;
      for await (const { key } of listTails(to, identity, { ...within, segment: tail.segment }))
        there.add(key);
    }
    if (complete || there.has(tail.key)) continue;
    try {
      await to.storage.put(tail.key, sameLength(from, tail, signal), within);
    } catch (error) {
      // Its segment was completed, or a longer tail took its place, since it was listed.
      if (error instanceof HoldfastError && error.code === 'object-missing') continue;
      throw error;
    }
    result.copied += 1;
    result.bytes += tail.storedBytes;
  }
  return result;
}

async function headerToCopy(
  from: Repository,
  identity: ClusterIdentity,
  name: string,
  signal: AbortSignal | undefined,
): Promise<WalHeader> {
  const header = await readWalHeader(from, identity, name, signal);
  if (header !== undefined) return header;
  throw new HoldfastError('object-missing', `repository ${from.name} has no ${name}`, {
    context: { name, repository: from.name },
  });
}

async function copyWith(
  header: WalHeader,
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  { commitAfter, signal }: CopyOptions,
): Promise<'copied' | 'present'> {
  const within = { ...(signal && { signal }) };
  const headerKey = walHeaderKey(identity, header.name);
  const existing = await readWalHeader(to, identity, header.name, signal);
  if (existing !== undefined && (await confirmCopy(existing, header, to, headerKey, signal)))
    return 'present';

  // Replacing what may lie there: nobody but a copier of the same bytes ever writes this key.
  await to.storage.put(header.stored.key, verified(from, header.stored, signal), within);
  await commitAfter;
  const { created } = await to.storage.put(headerKey, encodeClearObject({ ...header }), {
    ifAbsent: existing === undefined,
    ...within,
  });
  if (created) return 'copied';
  const winner = await readWalHeader(to, identity, header.name, signal);
  // The data that was sent stays: another copier may be about to commit just that object.
  if (winner !== undefined && (await confirmCopy(winner, header, to, headerKey, signal))) return 'present';
  throw new HoldfastError(
    'storage-unavailable',
    `${header.name} in repository ${to.name} was changed by somebody else while it was copied`,
  );
}

/** Whether `to` has the same content, whole; then it is durable as well. Throws `wal-conflict` for another content. */
async function confirmCopy(
  existing: WalHeader,
  header: WalHeader,
  to: Repository,
  headerKey: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  if (existing.hash !== header.hash || existing.sizeBytes !== header.sizeBytes)
    throw conflict(existing, header, to);
  const info = await to.storage.head(existing.stored.key, { ...(signal && { signal }) });
  if (info?.sizeBytes !== existing.stored.sizeBytes) return false;
  await to.storage.confirm(existing.stored.key);
  await to.storage.confirm(headerKey);
  return true;
}

/** The bytes of an object; throws at the end, so that nothing becomes visible, where they are not what was stored. */
async function* verified(
  from: Repository,
  stored: StoredObject,
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer> {
  const pass = new HashingPass();
  yield* pass.through(from.storage.get(stored.key, { ...(signal && { signal }) }));
  if (pass.sizeBytes === stored.sizeBytes && pass.hex() === stored.hash) return;
  throw damaged(from, stored.key);
}

async function* sameLength(
  from: Repository,
  { key, storedBytes }: { key: string; storedBytes: number },
  signal: AbortSignal | undefined,
): AsyncGenerator<Buffer> {
  let sizeBytes = 0;
  for await (const chunk of from.storage.get(key, { ...(signal && { signal }) })) {
    sizeBytes += chunk.length;
    yield chunk;
  }
  if (sizeBytes !== storedBytes) throw damaged(from, key);
}

async function isMissing(
  from: Repository,
  to: Repository,
  identity: ClusterIdentity,
  name: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  return (await isGone(to, identity, name, signal)) && !(await isGone(from, identity, name, signal));
}

async function isGone(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  const info = await repository.storage.head(walHeaderKey(identity, name), { ...(signal && { signal }) });
  return info === undefined;
}

function concernsOneFile(error: unknown): error is HoldfastError {
  return (
    error instanceof HoldfastError &&
    ['object-missing', 'object-damaged', 'wal-conflict'].includes(error.code)
  );
}

function damaged(from: Repository, key: string): HoldfastError {
  return new HoldfastError('object-damaged', `${key} in repository ${from.name} is not what was stored`, {
    hint: 'this copy cannot be used: take another repository',
    context: { key, repository: from.name },
  });
}

function conflict(existing: WalHeader, header: WalHeader, to: Repository): HoldfastError {
  return new HoldfastError(
    'wal-conflict',
    `${header.name} is in repository ${to.name} with other content: stored ${existing.storedAt} by ${existing.host} ` +
      `with hash ${existing.hash}; the one to copy was stored ${header.storedAt} by ${header.host} with hash ` +
      `${header.hash}; nothing was overwritten`,
    {
      hint: 'two servers archive here as one cluster: find the copy (a restored clone, an old primary) and set archive_mode = off there',
      context: { name: header.name, repository: to.name, storedHash: existing.hash, hash: header.hash },
    },
  );
}
