import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { decodeClearObject, encodeClearObject } from '../repository/clear-object.ts';
import { FORMAT_VERSION } from '../repository/layout.ts';
import type { Repository } from '../repository/repository.ts';
import type { ClusterIdentity } from '../repository/layout.ts';
import { type SegmentDigest, decodeDigest, encodeDigest } from './segment-digest.ts';

/** A digest and when its header was read, in milliseconds since 1970. */
export interface CachedDigest {
  digest: SegmentDigest;
  readAt: number;
}

/** By segment name. Also of segments that are no longer there: that they once were is what tells a loss. */
export type DigestFolder = Map<string, CachedDigest>;

/**
 * What this host read from the headers of a repository's WAL, one file per folder of 4 GiB of WAL. Best effort: every
 * method passes over what fails, and what cannot be understood is as if it were not there.
 */
export interface DigestCache {
  /** `folder`: the first 16 digits of a segment's name. */
  load(folder: string): Promise<DigestFolder>;
  store(folder: string, digests: DigestFolder): Promise<void>;
  /** The folders it has anything of. */
  folders(): Promise<string[]>;
  /** Forgets the folders this says so of. */
  prune(isGone: (folder: string) => boolean): Promise<void>;
}

const FOLDER_FILE = /^([0-9A-F]{16})\.json$/;
const SEGMENT = /^[0-9A-F]{24}$/;

/** Remembers nothing. */
export const noDigestCache: DigestCache = {
  load: async () => new Map(),
  store: async () => undefined,
  folders: async () => [],
  prune: async () => undefined,
};

/** A cache below `stateDirectory`, of its own for each repository and history. */
export function createDigestCache(
  stateDirectory: string,
  repository: Repository,
  identity: ClusterIdentity,
): DigestCache {
  const about = { repositoryId: repository.id, ...identity };
  const directory = join(
    stateDirectory,
    'wal',
    'headers',
    `${repository.id.replaceAll(/[^A-Za-z0-9-]/g, '_')}-${identity.cluster}-${identity.systemIdentifier}`,
  );
  const fileOf = (folder: string): string => join(directory, `${folder}.json`);
  const folders = async (): Promise<string[]> => {
    const names = await readdir(directory).catch((): string[] => []);
    return names.flatMap((name) => FOLDER_FILE.exec(name)?.[1] ?? []).sort();
  };
  return {
    async load(folder) {
      try {
        const file = fileOf(folder);
        const parsed = decodeClearObject(await readFile(file), file);
        const digests: DigestFolder = new Map();
        if (Object.entries({ ...about, folder }).some(([key, value]) => parsed[key] !== value))
          return digests;
        for (const [name, value] of Object.entries(parsed['segments'] ?? {})) {
          const [readAt, ...rest] = Array.isArray(value) ? (value as unknown[]) : [];
          const digest = decodeDigest(rest);
          if (!SEGMENT.test(name) || typeof readAt !== 'number' || digest === undefined) continue;
          digests.set(name, { digest, readAt });
        }
        return digests;
      } catch {
        return new Map();
      }
    },
    async store(folder, digests) {
      const temporary = `${fileOf(folder)}.${process.pid}.tmp`;
      try {
        const segments = Object.fromEntries(
          [...digests].map(([name, { digest, readAt }]) => [name, [readAt, ...encodeDigest(digest)]]),
        );
        const bytes = encodeClearObject({ format: FORMAT_VERSION, ...about, folder, segments });
        await mkdir(directory, { recursive: true, mode: 0o700 });
        await writeFile(temporary, bytes, { mode: 0o600 });
        await rename(temporary, fileOf(folder));
      } catch {
        await rm(temporary, { force: true }).catch(() => undefined);
      }
    },
    folders,
    async prune(isGone) {
      for (const folder of (await folders()).filter(isGone)) {
        await rm(fileOf(folder), { force: true }).catch(() => undefined);
      }
    },
  };
}
