/** How `synchronous_standby_names` speaks of a standby. */
export type SynchronousMatch =
  /** By its name: somebody wants it to confirm commits. */
  | 'named'
  /** By `*` alone, which takes whoever is connected. */
  | 'any'
  | 'none';

const TOKEN = /"((?:[^"]|"")*)"|[*(),]|\d+|[A-Za-z_\u0080-\uFFFF][A-Za-z_0-9$\u0080-\uFFFF]*/g;

/**
 * Whether a standby of this `application_name` may be waited for. Names are compared without case, as
 * `SyncRepGetStandbyPriority()` does; the forms are `a, b`, `2 (a, b)`, `FIRST 2 (a, b)` and `ANY 2 (a, b)`
 * (`syncrep_gram.y`). A value that PostgreSQL would not accept matches nobody.
 */
export function synchronousMatch(setting: string, applicationName: string): SynchronousMatch {
  const names = standbyNames(setting);
  const own = applicationName.toLowerCase();
  if (names.some((name) => name.toLowerCase() === own)) return 'named';
  return names.includes('*') ? 'any' : 'none';
}

/** The standbys a setting names, in its order; `*` as it stands. */
export function standbyNames(setting: string): string[] {
  const tokens = Array.from(setting.matchAll(TOKEN), ([text, quoted]) => ({
    text: quoted === undefined ? text : quoted.replaceAll('""', '"'),
    isMark: quoted === undefined && /^[(),]$/.test(text),
  }));
  const open = tokens.findIndex(({ text, isMark }) => isMark && text === '(');
  const list = open === -1 ? tokens : tokens.slice(open + 1, -1);
  return list.filter(({ isMark }) => !isMark).map(({ text }) => text);
}
