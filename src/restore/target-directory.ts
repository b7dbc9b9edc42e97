import {
  chmod,
  chown,
  lstat,
  mkdir,
  open,
  readFile,
  readdir,
  readlink,
  realpath,
  rm,
  stat,
  statfs,
} from 'node:fs/promises';
import { basename, dirname, join, resolve, sep } from 'node:path';

import { HoldfastError, errorText, systemErrorCode } from '../errors.ts';
import { CONTROL_DATA_BYTES, readControlData } from '../postgres/control-data.ts';
import { dataDirectoryUse } from '../postgres/data-directory-use.ts';
import { serverUser } from '../postgres/server-user.ts';
import type { BackupRecord } from '../repository/backup-record.ts';
import { type FileOwner, syncDirectory } from './data-tree.ts';
import { checkTablespaceMapping } from './tablespace-mapping.ts';

export interface TargetOptions {
  /** As it was typed; relative to the working directory. */
  to: string;
  record: BackupRecord;
  tablespaceMapping: ReadonlyMap<string, string>;
  /** Go on in, or bring up to date, what is there. */
  delta: boolean;
  /** Name of the user who is to own the files; only root can give them away. */
  owner?: string | undefined;
}

/** A place that may be restored into. Nothing was changed yet. */
export interface RestoreTarget {
  directory: string;
  owner: FileOwner | undefined;
  tablespaceMapping: Map<string, string>;
  delta: boolean;
}

/** Lies in a directory whose restore has not ended. */
const MARKER = 'holdfast-restore.json';
/** For the first WAL and what recovery writes. */
const SPARE_BYTES = 64 * 1024 * 1024;

/**
 * Looks at where a backup is to go, without changing anything. Throws `data-directory-not-empty`, `data-directory-in-use`
 * (a server runs there or may run there, or the place lies within a data directory), `usage-invalid` for tablespaces
 * without a place and for parents that are not there, `storage-full` where there is too little room.
 */
export async function checkTarget(options: TargetOptions): Promise<RestoreTarget> {
  const { record, delta } = options;
  const directory = await realTarget(options.to);
  await refuseUse(directory);
  const isEmpty = await checkContent(directory, delta, record);
  const tablespaceMapping = checkTablespaceMapping(record, options.tablespaceMapping, directory);
  for (const [location, to] of tablespaceMapping) {
    await checkTablespace(directory, to, oidOf(record, location), delta);
  }
  if (isEmpty) await checkSpace(directory, tablespaceMapping, record);
  return { directory, owner: await ownerOf(directory, options.owner), tablespaceMapping, delta: !isEmpty };
}

/** Makes the directory (mode 0700) and marks it as unfinished. Durable when it resolves. */
export async function openTarget(target: RestoreTarget, record: BackupRecord): Promise<void> {
  const { directory, owner } = target;
  await mkdir(directory, { mode: 0o700 }).catch((error: unknown) => {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
  });
  await chmod(directory, 0o700);
  if (owner !== undefined) await chown(directory, owner.uid, owner.gid);
  await using marker = await open(join(directory, MARKER), 'w', 0o600);
  await marker.writeFile(`${JSON.stringify({ cluster: record.cluster, backup: record.id })}\n`);
  await marker.sync();
  await syncDirectory(directory);
  await syncDirectory(dirname(directory));
}

/** Takes the mark away: called just before the directory becomes a data directory. */
export async function closeTarget(target: RestoreTarget): Promise<void> {
  await rm(join(target.directory, MARKER), { force: true });
  await syncDirectory(target.directory);
}

async function realTarget(to: string): Promise<string> {
  const path = resolve(to);
  try {
    return await realpath(path);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
  if ((await lstat(path).catch(() => undefined))?.isSymbolicLink() === true) {
    throw new HoldfastError('usage-invalid', `${path} is a symbolic link that leads nowhere`);
  }
  const parent = await realpath(dirname(path)).catch((error: unknown) => {
    throw new HoldfastError(
      'usage-invalid',
      `the directory ${dirname(path)}, in which to restore, is not there`,
      {
        hint: `mkdir -p ${dirname(path)}`,
        cause: error,
      },
    );
  });
  return join(parent, basename(path));
}

async function refuseUse(directory: string): Promise<void> {
  const use = await dataDirectoryUse(directory).catch((error: unknown) => {
    if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return { inUse: false as const };
    throw error;
  });
  if (use.inUse) {
    throw new HoldfastError('data-directory-in-use', `${directory} is in use: ${use.reason}`, {
      hint: 'restore into another directory, or stop that server; if you know that it is gone, remove postmaster.pid',
    });
  }
  for (let above = dirname(directory); ; above = dirname(above)) {
    for (const sign of ['postmaster.pid', 'PG_VERSION']) {
      if (!(await isThere(join(above, sign)))) continue;
      throw new HoldfastError(
        'data-directory-in-use',
        `${directory} lies within the data directory ${above}`,
        {
          hint: 'choose a directory that belongs to no server',
        },
      );
    }
    if (above === dirname(above)) return;
  }
}

/** Returns whether the directory is empty or not there. */
async function checkContent(directory: string, delta: boolean, record: BackupRecord): Promise<boolean> {
  let names: string[];
  try {
    names = await readdir(directory);
  } catch (error) {
    const code = systemErrorCode(error);
    if (code === 'ENOENT') return true;
    if (code === 'ENOTDIR') {
      throw new HoldfastError('data-directory-not-empty', `${directory} is no directory`);
    }
    throw error;
  }
  if (names.length === 0) return true;
  const unfinished = names.includes(MARKER);
  if (!delta) {
    throw new HoldfastError('data-directory-not-empty', `${directory} is not empty`, {
      hint: unfinished
        ? 'an earlier restore did not end here: add --delta to go on with it, or remove the directory'
        : 'restore into a new directory; --delta brings an existing copy of this cluster up to date',
    });
  }
  if (unfinished) return false;
  const identifier = await systemIdentifierOf(directory);
  if (identifier !== record.systemIdentifier) {
    const what = identifier === undefined ? 'no copy of a cluster' : `the cluster ${identifier}`;
    throw new HoldfastError(
      'data-directory-not-empty',
      `${directory} holds ${what}, not ${record.systemIdentifier}: --delta removes what the backup does not have`,
      { hint: 'restore into a new directory' },
    );
  }
  return false;
}

async function systemIdentifierOf(directory: string): Promise<string | undefined> {
  try {
    const bytes = await readFile(join(directory, 'global/pg_control'));
    return readControlData(bytes.subarray(0, Math.max(CONTROL_DATA_BYTES, bytes.length))).systemIdentifier;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT' || error instanceof HoldfastError) return undefined;
    throw error;
  }
}

async function checkTablespace(
  directory: string,
  to: string,
  oid: number | undefined,
  delta: boolean,
): Promise<void> {
  const real = await realpath(to).catch(() => to);
  if (real === directory || real.startsWith(directory + sep) || directory.startsWith(real + sep)) {
    throw new HoldfastError(
      'usage-invalid',
      `tablespace directory ${to} and data directory ${directory} lie in one another`,
      {
        hint: 'put them side by side',
      },
    );
  }
  const names = await readdir(to).catch((error: unknown) => {
    if (systemErrorCode(error) === 'ENOENT') return [];
    throw new HoldfastError(
      'data-directory-not-empty',
      `${to} cannot hold a tablespace: ${errorText(error)}`,
      {
        cause: error,
      },
    );
  });
  if (names.length === 0) return;
  const link = await readlink(join(directory, 'pg_tblspc', String(oid))).catch(() => undefined);
  if (delta && link === to) return;
  throw new HoldfastError('data-directory-not-empty', `the tablespace directory ${to} is not empty`, {
    hint: 'map the tablespace to a new directory',
  });
}

function oidOf(record: BackupRecord, location: string): number | undefined {
  return record.tablespaces.find((one) => one.location === location)?.oid;
}

/** By file system: what goes where is not known before the block maps are read, so only the sum is judged. */
async function checkSpace(
  directory: string,
  mapping: ReadonlyMap<string, string>,
  record: BackupRecord,
): Promise<void> {
  const free = new Map<number, number>();
  for (const path of [directory, ...mapping.values()]) {
    const place = await nearestExisting(path);
    const { bavail, bsize } = await statfs(place);
    free.set((await stat(place)).dev, bavail * bsize);
  }
  const available = [...free.values()].reduce((sum, bytes) => sum + bytes, 0);
  const needed = record.files.sizeBytes + SPARE_BYTES;
  if (available >= needed) return;
  throw new HoldfastError(
    'storage-full',
    `${directory} has ${mebibytes(available)} MiB free and the restore needs ${mebibytes(needed)} MiB`,
    {
      hint: 'free some space or restore to another file system',
      context: { availableBytes: available, neededBytes: needed },
    },
  );
}

async function ownerOf(directory: string, name: string | undefined): Promise<FileOwner | undefined> {
  const isRoot = process.getuid?.() === 0;
  if (name !== undefined) {
    const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'));
    const entry = lines.find((fields) => fields[0] === name);
    if (entry === undefined)
      throw new HoldfastError('usage-invalid', `there is no user "${name}" on this machine`);
    const owner = { uid: Number(entry[2]), gid: Number(entry[3]) };
    if (owner.uid === 0)
      throw new HoldfastError('usage-invalid', 'PostgreSQL does not run as root: name another owner');
    if (!isRoot && owner.uid !== process.getuid?.()) {
      throw new HoldfastError('usage-invalid', 'only root can give files to another user', {
        hint: `run as root, or as ${name} without --owner`,
      });
    }
    return isRoot ? owner : undefined;
  }
  if (!isRoot) return undefined;
  const { uid, gid } = await stat(await nearestExisting(directory));
  if (uid !== 0) return { uid, gid };
  const user = await serverUser();
  return user && { uid: user.uid, gid: user.gid };
}

async function nearestExisting(path: string): Promise<string> {
  for (let at = path; ; at = dirname(at)) {
    if (await isThere(at)) return at;
    if (at === dirname(at)) return at;
  }
}

async function isThere(path: string): Promise<boolean> {
  return await lstat(path).then(
    () => true,
    (error: unknown) => {
      if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return false;
      throw error;
    },
  );
}

function mebibytes(bytes: number): number {
  return Math.ceil(bytes / 1024 / 1024);
}
