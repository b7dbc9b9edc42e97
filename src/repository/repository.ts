import { randomUUID } from 'node:crypto';

import { HoldfastError } from '../errors.ts';
import type { Opener, Sealer, SealKind } from '../seal/sealer.ts';
import type { Storage } from '../storage/storage.ts';
import { FORMAT_VERSION, MARKER_KEY } from './layout.ts';

/** An open repository: a store whose marker was read and understood, and the keys this host has for it. */
export interface Repository {
  /** The name the configuration gives it. */
  readonly name: string;
  /** Its own identity, from its marker. */
  readonly id: string;
  readonly storage: Storage;
  /** Seals what is written. */
  readonly sealer: Sealer;
  /** The opener for objects sealed in a given way. Throws `key-missing` where this host holds no identity. */
  readonly opener: (kind: SealKind) => Promise<Opener>;
}

export interface RepositoryKeys {
  sealer: Sealer;
  opener: (kind: SealKind) => Promise<Opener>;
}

interface Marker {
  format: number;
  repositoryId: string;
  created: string;
}

const MARKER_MAX_BYTES = 64 * 1024;

/**
 * Opens the repository in a store. Throws `repository-missing` (no marker), `format-too-new`, `object-damaged` (a marker
 * that cannot be read), and whatever the store throws; absence is never concluded from an error.
 */
export async function openRepository(
  name: string,
  storage: Storage,
  keys: RepositoryKeys,
  signal?: AbortSignal,
): Promise<Repository> {
  const marker = await readMarker(name, storage, signal);
  if (marker === undefined) {
    throw new HoldfastError(
      'repository-missing',
      `there is no Holdfast repository at ${storage.description}`,
      {
        hint: 'run "holdfast init" to prepare it; if it should exist, check that its disk is mounted',
        context: { repository: name },
      },
    );
  }
  return { name, id: marker.repositoryId, storage, sealer: keys.sealer, opener: keys.opener };
}

/** Writes the marker where there is none and opens the repository. Idempotent; racing callers end with one marker. */
export async function initializeRepository(
  name: string,
  storage: Storage,
  keys: RepositoryKeys,
  now: Date,
  signal?: AbortSignal,
): Promise<{ repository: Repository; created: boolean }> {
  const marker: Marker = { format: FORMAT_VERSION, repositoryId: randomUUID(), created: now.toISOString() };
  let created = false;
  if ((await readMarker(name, storage, signal)) === undefined) {
    const body = Buffer.from(`${JSON.stringify(marker, null, 2)}\n`);
    ({ created } = await storage.put(MARKER_KEY, body, { ifAbsent: true, ...(signal && { signal }) }));
  }
  return { repository: await openRepository(name, storage, keys, signal), created };
}

async function readMarker(name: string, storage: Storage, signal?: AbortSignal): Promise<Marker | undefined> {
  const parsed = await readJsonObject(storage, MARKER_KEY, MARKER_MAX_BYTES, signal);
  if (parsed === undefined) return undefined;
  const { format, repositoryId, created } = parsed;
  if (typeof format !== 'number' || typeof repositoryId !== 'string' || typeof created !== 'string') {
    throw new HoldfastError(
      'object-damaged',
      `the marker ${MARKER_KEY} of repository ${name} cannot be understood`,
      {
        hint: `restore ${MARKER_KEY} from a copy of the repository`,
      },
    );
  }
  refuseNewerFormat(format, `repository ${name}`);
  return { format, repositoryId, created };
}

/** Every object that states a format goes through here: a newer one is never guessed at. */
export function refuseNewerFormat(format: number, what: string): void {
  if (format > FORMAT_VERSION) {
    throw new HoldfastError(
      'format-too-new',
      `${what} has format ${format}; this Holdfast understands formats up to ${FORMAT_VERSION}`,
      { hint: 'use the Holdfast that wrote it, or a newer one' },
    );
  }
}

/**
 * Reads a small clear JSON object. Undefined only where the store is certain that there is none; larger than `maxBytes`
 * or not a JSON object throws `object-damaged`.
 */
export async function readJsonObject(
  storage: Storage,
  key: string,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<Record<string, unknown> | undefined> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of storage.get(key, { ...(signal && { signal }) })) {
      size += chunk.length;
      if (size > maxBytes) throw new HoldfastError('object-damaged', `${key} is larger than it can be`);
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof HoldfastError && error.code === 'object-missing') return undefined;
    throw error;
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch (error) {
    throw new HoldfastError('object-damaged', `${key} is not valid JSON`, { context: { key }, cause: error });
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new HoldfastError('object-damaged', `${key} is not a JSON object`, { context: { key } });
  }
  return parsed as Record<string, unknown>;
}
