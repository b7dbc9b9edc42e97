import { chown, mkdtemp, readFile, realpath, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { HoldfastError } from '../errors.ts';

/** The operating-system user a server runs as when Holdfast itself is root: PostgreSQL refuses to run as root. */
export interface ServerUser {
  name: string;
  uid: number;
  gid: number;
}

/**
 * `postgres` if the machine has that user, else `nobody`; undefined when not root (servers then run as ourselves).
 * Throws `server-start-failed` where root finds neither.
 */
export async function serverUser(): Promise<ServerUser | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'));
  for (const name of ['postgres', 'nobody']) {
    const entry = lines.find((fields) => fields[0] === name);
    if (entry !== undefined) return { name, uid: Number(entry[2]), gid: Number(entry[3]) };
  }
  throw new HoldfastError(
    'server-start-failed',
    'PostgreSQL does not run as root and no other user was found',
    {
      hint: 'run holdfast as an unprivileged user, or create the user "postgres"',
    },
  );
}

/**
 * The user who must run a server on this data directory: when root, the directory's owner; undefined when not root.
 * Throws `server-start-failed` for a directory that root owns.
 */
export async function dataDirectoryUser(dataDirectory: string): Promise<ServerUser | undefined> {
  if (process.getuid?.() !== 0) return undefined;
  const { uid, gid } = await stat(dataDirectory);
  if (uid === 0) {
    throw new HoldfastError(
      'server-start-failed',
      `root owns ${dataDirectory} and PostgreSQL does not run as root`,
      {
        hint: `chown -R postgres ${dataDirectory}`,
      },
    );
  }
  return { name: `uid ${uid}`, uid, gid };
}

/** Whether the user can enter `directory`, by the permission bits of it and everything above it. */
export async function canEnter(user: ServerUser | undefined, directory: string): Promise<boolean> {
  if (user === undefined) return true;
  for (let path = await realpath(directory); ; path = dirname(path)) {
    const { uid, gid, mode } = await stat(path);
    const bit = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001;
    if ((mode & bit) === 0) return false;
    if (path === dirname(path)) return true;
  }
}

/**
 * Makes a private directory (mode 0700) that the server's user owns and can reach, with a path short enough to hold a
 * socket (a unix socket's path is limited to 107 bytes). The caller removes it.
 */
export async function makeServerDirectory(
  user: ServerUser | undefined,
  prefix = 'holdfast-',
): Promise<string> {
  for (const parent of [tmpdir(), '/tmp', '/var/tmp']) {
    if (parent.length > 60 || !(await canEnter(user, parent).catch(() => false))) continue;
    const directory = await mkdtemp(join(parent, prefix));
    if (user !== undefined) await chown(directory, user.uid, user.gid);
    return directory;
  }
  throw new HoldfastError('server-start-failed', 'no temporary directory that the server can reach', {
    hint: 'set TMPDIR to a directory with a short path that every user may enter',
  });
}
