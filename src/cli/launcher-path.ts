import { fileURLToPath } from 'node:url';

/** Absolute path of the launcher: the same from the sources and from the build. */
export function launcherPath(): string {
  return fileURLToPath(new URL('../../bin/holdfast', import.meta.url));
}

/**
 * What `archive_command` is to be. PostgreSQL replaces `%p` and `%f`, takes `%%` for a percent sign (manual, "Setting Up
 * WAL Archiving"), and hands the rest to a shell. A configuration with one cluster needs no name.
 */
export function archiveCommand(configurationFile: string, cluster?: string): string {
  const name = cluster === undefined ? '' : ` --cluster ${cluster}`;
  return `${shellWord(launcherPath())} wal push %p --config ${shellWord(configurationFile)}${name}`;
}

/** A word for `/bin/sh` inside a command that PostgreSQL expands. */
export function shellWord(text: string): string {
  const expanded = text.replaceAll('%', '%%');
  return /^[A-Za-z0-9_./:@%+,=-]+$/.test(expanded) ? expanded : `'${expanded.replaceAll("'", `'\\''`)}'`;
}
