import { randomBytes } from 'node:crypto';

import { HoldfastError } from '../errors.ts';
import type { SealKind } from '../seal/sealer.ts';
import { sealKindOf } from '../seal/sealers.ts';
import { type WalFile, classifyWalFile } from '../postgres/wal-segment.ts';
import { createBlake3, HashingPass } from '../stream/hash.ts';
import { encodeClearObject, readClearObject } from './clear-object.ts';
import { type ClusterIdentity, FORMAT_VERSION, walDataKey, walHeaderKey } from './layout.ts';
import type { Repository } from './repository.ts';
import { putSealed, type StoredObject } from './sealed-object.ts';
import { decompressFrames, type WalFrame, type WalFrameSize } from './wal-frames.ts';

/** Largest segment a cluster can have; every other WAL file is far smaller. */
const MAX_FILE_BYTES = 1024 ** 3;
const MAX_FRAME_BYTES = 64 * 1024 * 1024;
const HEADER_MAX_BYTES = 4 * 1024 * 1024;

/**
 * The small clear object that commits one WAL file. Written once, after its data, and never replaced by one of other
 * content. Sizes in bytes, hashes BLAKE3-256 in hexadecimal, times RFC 3339 UTC.
 */
export interface WalHeader {
  format: number;
  kind: WalFile['kind'];
  name: string;
  cluster: string;
  systemIdentifier: string;
  timeline: number;
  /** Of the plain file. */
  sizeBytes: number;
  /** Of the plain file. */
  hash: string;
  /** The zstd frames of the opened object, in order: decoded one by one, never joined. */
  frames: WalFrameSize[];
  stored: StoredObject;
  seal: SealKind;
  /** By the clock of the host that stored it. */
  storedAt: string;
  host: string;
  /** What was found in the WAL of a segment or partial segment. */
  wal?: Readonly<Record<string, unknown>>;
}

/** A WAL file ready to be stored, in any number of repositories. */
export interface WalFileToStore {
  name: string;
  sizeBytes: number;
  hash: string;
  /** For messages: when the file was last written. */
  modifiedAt: Date;
  /** Compressed and proven frames, from the first; called once per repository, and once more after a lost object. */
  frames: () => AsyncIterable<WalFrame>;
  wal?: Readonly<Record<string, unknown>>;
}

export interface StoreWalOptions {
  host: string;
  now: () => Date;
  /**
   * Awaited between the data and the header that commits it: several files may be sent at once and still become visible
   * in their order, so that a crash leaves no hole between them. Where it rejects, nothing is committed and its error is
   * thrown.
   */
  commitAfter?: Promise<unknown>;
  signal?: AbortSignal;
}

export interface StoredWal {
  /**
   * `present`: it was there already, with the same content, and its durability was confirmed. `repaired`: its header
   * was there but its data was missing or had the wrong length; it was stored again.
   */
  outcome: 'stored' | 'present' | 'repaired';
  header: WalHeader;
}

/**
 * Stores one WAL file. When it resolves, header and data are durable in this repository. May be repeated and may race
 * with others, on any host: of different contents under one name exactly one is ever stored, and every other caller
 * gets `wal-conflict`. A crash or an error at any moment leaves at most an object that no header names.
 */
export async function storeWalFile(
  repository: Repository,
  identity: ClusterIdentity,
  file: WalFileToStore,
  options: StoreWalOptions,
): Promise<StoredWal> {
  const { storage } = repository;
  const { signal } = options;
  const existing = await readWalHeader(repository, identity, file.name, signal);
  if (existing !== undefined) return confirmWalFile(repository, identity, file, existing, options);

  const header = await storeData(repository, identity, file, options);
  await options.commitAfter;
  const { created } = await storage.put(walHeaderKey(identity, file.name), encodeHeader(header), {
    ifAbsent: true,
    ...(signal && { signal }),
  });
  if (created) return { outcome: 'stored', header };

  const winner = await readWalHeader(repository, identity, file.name, signal);
  if (winner === undefined) {
    throw new HoldfastError(
      'storage-unavailable',
      `the header of ${file.name} in repository ${repository.name} vanished while it was stored`,
    );
  }
  // A repeated request may meet its own first attempt, whose answer was lost: then the data is in use.
  if (winner.stored.key !== header.stored.key) await removeOwnData(repository, header, signal);
  return confirmWalFile(repository, identity, file, winner, options);
}

/** The header of a WAL file; undefined only where the store is certain that there is none. `object-damaged` otherwise. */
export async function readWalHeader(
  repository: Repository,
  identity: ClusterIdentity,
  name: string,
  signal?: AbortSignal,
): Promise<WalHeader | undefined> {
  const key = walHeaderKey(identity, name);
  const parsed = await readClearObject(repository.storage, key, HEADER_MAX_BYTES, signal);
  return parsed === undefined ? undefined : checkHeader(parsed, key, identity, name);
}

/**
 * The plain bytes of a WAL file, frame by frame, in memory for a few frames. Size and hash, stored and plain, are known
 * to be right only when the stream has ended without an error: nothing may be done with the bytes before. Throws
 * `object-missing`, `object-damaged`, the opener's errors and the store's.
 */
export async function* readWalFile(
  repository: Repository,
  header: WalHeader,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  const { stored } = header;
  const opener = await repository.opener(header.seal);
  const pass = new HashingPass();
  const sealed = pass.through(repository.storage.get(stored.key, { ...(signal && { signal }) }));
  const hash = createBlake3();
  let sizeBytes = 0;
  for await (const plain of decompressFrames(opener.open(sealed), header.frames)) {
    hash.update(plain);
    sizeBytes += plain.length;
    yield plain;
  }
  if (pass.sizeBytes !== stored.sizeBytes || pass.hex() !== stored.hash) {
    throw damaged(stored.key, 'its bytes are not those that were stored');
  }
  if (sizeBytes !== header.sizeBytes || hash.hex() !== header.hash) {
    throw damaged(stored.key, `it does not hold the ${header.name} that its header describes`);
  }
}

/** A whole WAL file of at most `maxBytes`, verified. */
export async function readWholeWalFile(
  repository: Repository,
  header: WalHeader,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<Buffer> {
  if (header.sizeBytes > maxBytes) {
    throw new HoldfastError('assertion', `${header.name} has ${header.sizeBytes} bytes: read it in pieces`);
  }
  const whole = Buffer.allocUnsafe(header.sizeBytes);
  let at = 0;
  for await (const plain of readWalFile(repository, header, signal)) at += plain.copy(whole, at);
  return whole;
}

async function storeData(
  repository: Repository,
  identity: ClusterIdentity,
  file: WalFileToStore,
  options: StoreWalOptions,
): Promise<WalHeader> {
  const classified = classifyWalFile(file.name);
  if (classified === undefined) {
    throw new HoldfastError('wal-invalid', `${JSON.stringify(file.name)} is not the name of a wal file`);
  }
  const frames: WalFrameSize[] = [];
  async function* body(): AsyncGenerator<Buffer> {
    for await (const { bytes, storedBytes, sizeBytes } of file.frames()) {
      frames.push({ storedBytes, sizeBytes });
      yield bytes;
    }
  }
  const key = walDataKey(identity, file.name, file.hash, randomBytes(4).toString('hex'));
  const stored = await putSealed(repository, key, body(), options.signal);
  return {
    format: FORMAT_VERSION,
    kind: classified.kind,
    name: file.name,
    cluster: identity.cluster,
    systemIdentifier: identity.systemIdentifier,
    timeline: classified.timeline,
    sizeBytes: file.sizeBytes,
    hash: file.hash,
    frames,
    stored,
    seal: repository.sealer.kind,
    storedAt: options.now().toISOString(),
    host: options.host,
    ...(file.wal && { wal: file.wal }),
  };
}

/**
 * Same content: makes sure that it survives a power cut, as its writer may have died between publishing and syncing.
 * Where its data is gone the file at hand, proven to be the same, takes its place.
 */
async function confirmWalFile(
  repository: Repository,
  identity: ClusterIdentity,
  file: WalFileToStore,
  header: WalHeader,
  options: StoreWalOptions,
): Promise<StoredWal> {
  if (header.hash !== file.hash || header.sizeBytes !== file.sizeBytes) {
    throw conflict(repository, file, header);
  }
  const { storage } = repository;
  const { signal } = options;
  const { stored } = header;
  const info = await storage.head(stored.key, { ...(signal && { signal }) });
  if (info?.sizeBytes === stored.sizeBytes) {
    // Data before header, as when writing: a durable header must never name data that is not.
    await storage.confirm(stored.key);
    await storage.confirm(walHeaderKey(identity, file.name));
    return { outcome: 'present', header };
  }
  const repaired = await storeData(repository, identity, file, options);
  await storage.put(walHeaderKey(identity, file.name), encodeHeader(repaired), { ...(signal && { signal }) });
  return { outcome: 'repaired', header: repaired };
}

/** An object left behind is only wasted space, so failing here must not hide what the caller has to be told. */
async function removeOwnData(
  repository: Repository,
  header: WalHeader,
  signal: AbortSignal | undefined,
): Promise<void> {
  await repository.storage.delete(header.stored.key, { ...(signal && { signal }) }).catch(() => undefined);
}

function conflict(repository: Repository, file: WalFileToStore, header: WalHeader): HoldfastError {
  return new HoldfastError(
    'wal-conflict',
    `${file.name} is in repository ${repository.name} with other content: stored ${header.storedAt} by ${header.host} ` +
      `with hash ${header.hash}; this file was written ${file.modifiedAt.toISOString()} and has hash ${file.hash}; ` +
      'nothing was overwritten',
    {
      hint: 'two servers archive here as one cluster: find the copy (a restored clone, an old primary) and set archive_mode = off there',
      context: {
        name: file.name,
        repository: repository.name,
        storedHash: header.hash,
        storedAt: header.storedAt,
        storedBy: header.host,
        fileHash: file.hash,
        fileModifiedAt: file.modifiedAt.toISOString(),
      },
    },
  );
}

function encodeHeader(header: WalHeader): Buffer {
  return encodeClearObject({ ...header });
}

/** Holds a parsed object to the shape of a header, to the place it was found at, and to what readers can bear. */
function checkHeader(
  parsed: Record<string, unknown>,
  key: string,
  identity: ClusterIdentity,
  name: string,
): WalHeader {
  const file = classifyWalFile(name);
  const header = parsed as unknown as WalHeader;
  if (parsed['format'] !== FORMAT_VERSION)
    throw damaged(key, `format ${String(parsed['format'])} is unknown`);
  for (const [field, type] of HEADER_FIELDS) {
    if (typeof parsed[field] !== type || parsed[field] === null)
      throw damaged(key, `"${field}" is missing or no ${type}`);
  }
  if (header.name !== name || header.kind !== file?.kind || header.timeline !== file.timeline) {
    throw damaged(key, 'it describes another file');
  }
  if (header.cluster !== identity.cluster || header.systemIdentifier !== identity.systemIdentifier) {
    throw damaged(key, 'it belongs to another cluster');
  }
  const { stored, frames } = header;
  const place = walDataKey(identity, name, header.hash, '').slice(0, -'.zst'.length);
  if (typeof stored.key !== 'string' || !stored.key.startsWith(place) || typeof stored.hash !== 'string') {
    throw damaged(key, 'the object it refers to is not its own');
  }
  if (sealKindOf(stored.key) !== header.seal || !isSize(stored.sizeBytes, 2 * MAX_FILE_BYTES)) {
    throw damaged(key, 'the object it refers to is not described');
  }
  if (!Array.isArray(frames) || !frames.every(isFrameSize))
    throw damaged(key, 'its frames are not described');
  const total = frames.reduce((sum, frame) => sum + frame.sizeBytes, 0);
  if (!isSize(header.sizeBytes, MAX_FILE_BYTES) || total !== header.sizeBytes) {
    throw damaged(key, 'its frames do not add up to its size');
  }
  return header;
}

function isFrameSize(frame: WalFrameSize): boolean {
  return isSize(frame.sizeBytes, MAX_FRAME_BYTES) && isSize(frame.storedBytes, 2 * MAX_FRAME_BYTES);
}

function isSize(value: unknown, max: number): boolean {
  return Number.isSafeInteger(value) && Number(value) >= 0 && Number(value) <= max;
}

const HEADER_FIELDS = [
  ['kind', 'string'],
  ['name', 'string'],
  ['cluster', 'string'],
  ['systemIdentifier', 'string'],
  ['timeline', 'number'],
  ['sizeBytes', 'number'],
  ['hash', 'string'],
  ['frames', 'object'],
  ['stored', 'object'],
  ['seal', 'string'],
  ['storedAt', 'string'],
  ['host', 'string'],
] as const;

function damaged(key: string, what: string): HoldfastError {
  return new HoldfastError('object-damaged', `${key} is damaged: ${what}`, {
    hint: 'this copy cannot be used: take another repository',
    context: { key },
  });
}
