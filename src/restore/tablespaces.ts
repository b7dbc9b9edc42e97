import { chown, lchown, lstat, mkdir, open, readdir, readlink, rename, rm, symlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';

import { HoldfastError, systemErrorCode } from '../errors.ts';
import { type FileOwner, syncDirectory } from './data-tree.ts';

export interface TablespacePlaces {
  /** The data directory; exists. */
  root: string;
  /** Where each tablespace outside the data directory shall lie, by oid. */
  locations: ReadonlyMap<number, string>;
  /** How the directory of this major version in a location begins: `PG_15_`. Other versions' may lie beside it. */
  versionPrefix: string;
  /** Whether a location may hold files already, if it belongs to this data directory. */
  delta: boolean;
  owner?: FileOwner;
}

/**
 * A location that holds files of this major version belongs to some cluster, which may be running: it is refused with
 * `data-directory-not-empty`, unless `delta` and this data directory's own link says that it is ours. Writes nothing.
 */
export async function assertTablespacesAreFree(places: TablespacePlaces): Promise<void> {
  const { root, locations } = places;
  for (const [oid, location] of locations) {
    if (!(await holdsFiles(location, places.versionPrefix))) continue;
    if (places.delta && (await linkTarget(join(root, 'pg_tblspc', String(oid)))) === location) continue;
    throw new HoldfastError(
      'data-directory-not-empty',
      `the location of tablespace ${oid}, ${location}, holds files of a cluster that is not this one`,
      { hint: `give it another place: --tablespace-mapping ${location}=NEW`, context: { oid, location } },
    );
  }
}

/** Makes the location of every tablespace and the link to it in `pg_tblspc`, which marks it as this data directory's. */
export async function claimTablespaces(places: TablespacePlaces): Promise<void> {
  const { root, locations, owner } = places;
  if (locations.size === 0) return;
  const links = join(root, 'pg_tblspc');
  const made = await mkdir(links, { mode: 0o700 }).then(
    () => true,
    (error: unknown) => {
      if (systemErrorCode(error) === 'EEXIST') return false;
      throw error;
    },
  );
  if (made && owner !== undefined) await chown(links, owner.uid, owner.gid);
  for (const [oid, location] of locations) {
    await makeLocation(location, owner);
    const link = join(links, String(oid));
    if ((await linkTarget(link)) === location) continue;
    await rm(link, { recursive: true, force: true });
    await symlink(location, link);
    if (owner !== undefined) await lchown(link, owner.uid, owner.gid);
  }
}

/**
 * Writes `tablespace_map` anew where tablespaces moved: PostgreSQL makes the links again from it when it starts from the
 * backup. Durable when it resolves.
 */
export async function rewriteTablespaceMap(places: TablespacePlaces): Promise<void> {
  const path = join(places.root, 'tablespace_map');
  const text = Array.from(places.locations, ([oid, location]) => `${oid} ${escaped(location)}\n`).join('');
  const temporary = `${path}.holdfast-new`;
  {
    await using file = await open(temporary, 'w', 0o600);
    const { mode } = await lstat(path);
    await file.writeFile(text);
    await file.chmod(mode & 0o777);
    if (places.owner !== undefined) await file.chown(places.owner.uid, places.owner.gid);
    await file.sync();
  }
  await rename(temporary, path);
  await syncDirectory(places.root);
}

/** As `read_tablespace_map` of PostgreSQL undoes it. */
function escaped(location: string): string {
  return location.replace(/[\n\r\\]/g, String.raw`\$&`);
}

/** Makes a directory and those above it, all durable. Its mode is what PostgreSQL gives a tablespace's location. */
async function makeLocation(location: string, owner: FileOwner | undefined): Promise<void> {
  const first = await mkdir(location, { recursive: true, mode: 0o700 });
  if (first !== undefined) {
    for (let path = location; path !== dirname(first); path = dirname(path)) {
      if (owner !== undefined) await chown(path, owner.uid, owner.gid);
      await syncDirectory(dirname(path));
    }
  }
  if (owner !== undefined) await chown(location, owner.uid, owner.gid);
}

async function holdsFiles(location: string, versionPrefix: string): Promise<boolean> {
  try {
    return (await readdir(location)).some((name) => name.startsWith(versionPrefix));
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return false;
    throw error;
  }
}

async function linkTarget(path: string): Promise<string | undefined> {
  try {
    return await readlink(path);
  } catch (error) {
    if (['ENOENT', 'EINVAL'].includes(systemErrorCode(error) ?? '')) return undefined;
    throw error;
  }
}
