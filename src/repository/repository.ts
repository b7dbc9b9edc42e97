import { randomUUID } from 'node:crypto';

import { HoldfastError } from '../errors.ts';
import type { Opener, Sealer, SealKind } from '../seal/sealer.ts';
import type { Storage } from '../storage/storage.ts';
import { encodeClearObject, readClearObject } from './clear-object.ts';
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

/**
 * Makes sure that a store still is the repository that was opened, for whoever keeps one open: where its disk was
 * unmounted, an empty directory takes what is written and loses it. Throws `repository-missing`, `repository-mismatch`.
 */
export async function assertSameRepository(
  { name, id, storage }: Repository,
  signal?: AbortSignal,
): Promise<void> {
  const marker = await readMarker(name, storage, signal);
  if (marker?.repositoryId === id) return;
  if (marker === undefined) {
    throw new HoldfastError(
      'repository-missing',
      `the repository at ${storage.description} is not there any more`,
      {
        hint: 'check that its disk is mounted',
        context: { repository: name },
      },
    );
  }
  throw new HoldfastError('repository-mismatch', `another repository is at ${storage.description} now`, {
    hint: 'check which disk is mounted there',
    context: { repository: name, expected: id, found: marker.repositoryId },
  });
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
    ({ created } = await storage.put(MARKER_KEY, encodeClearObject({ ...marker }), {
      ifAbsent: true,
      ...(signal && { signal }),
    }));
  }
  return { repository: await openRepository(name, storage, keys, signal), created };
}

async function readMarker(name: string, storage: Storage, signal?: AbortSignal): Promise<Marker | undefined> {
  const parsed = await readClearObject(storage, MARKER_KEY, MARKER_MAX_BYTES, signal);
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
  return { format, repositoryId, created };
}
