/** The oldest and newest PostgreSQL major versions Holdfast is tested with. */
export const OLDEST_MAJOR = 15;
export const NEWEST_MAJOR = 18;

export interface PostgresVersion {
  major: number;
  /** As PostgreSQL prints it: `15.18`, `19beta2`. */
  text: string;
}

/** Reads the version out of `postgres (PostgreSQL) 15.18 (Debian …)`; undefined for any other text. */
export function parseVersionOutput(text: string): PostgresVersion | undefined {
  const found = /\(PostgreSQL\) ((\d+)(?:\.\d+|beta\d+|rc\d+|devel)?)/.exec(text);
  if (found?.[1] === undefined) return undefined;
  return { major: Number(found[2]), text: found[1] };
}
