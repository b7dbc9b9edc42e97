import { HoldfastError } from '../errors.ts';

/** The major versions Holdfast knows the file formats of. */
export const SUPPORTED_MAJORS = [15, 16, 17, 18] as const;
export type MajorVersion = (typeof SUPPORTED_MAJORS)[number];
export const OLDEST_MAJOR = SUPPORTED_MAJORS[0];
export const NEWEST_MAJOR = SUPPORTED_MAJORS[3];

export interface PostgresVersion {
  major: number;
  /** As PostgreSQL prints it: `15.18`, `19beta2`. */
  text: string;
}

/**
 * What differs between majors in the files Holdfast reads. Source: the server's `xlog_internal.h`, `pg_control.h`,
 * `catversion.h`, `xact.h`.
 */
export interface VersionFacts {
  /** `xlp_magic` of every WAL page. */
  walMagic: number;
  /** `PG_CONTROL_VERSION`; says the layout of `pg_control`. */
  controlVersion: number;
  /** `CATALOG_VERSION_NO`; also the second half of a tablespace's directory name (`PG_15_202209061`). */
  catalogVersion: number;
  /** Where the CRC of `pg_control` stands, in bytes. */
  controlCrcOffset: number;
  /** Bytes of one dropped-statistics item in commit and abort records. */
  droppedStatsItemBytes: number;
}

export const VERSION_FACTS: Readonly<Record<MajorVersion, VersionFacts>> = {
  15: {
    walMagic: 0xd110,
    controlVersion: 1300,
    catalogVersion: 202209061,
    controlCrcOffset: 288,
    droppedStatsItemBytes: 12,
  },
  16: {
    walMagic: 0xd113,
    controlVersion: 1300,
    catalogVersion: 202307071,
    controlCrcOffset: 288,
    droppedStatsItemBytes: 12,
  },
  17: {
    walMagic: 0xd116,
    controlVersion: 1700,
    catalogVersion: 202406281,
    controlCrcOffset: 288,
    droppedStatsItemBytes: 12,
  },
  18: {
    walMagic: 0xd118,
    controlVersion: 1800,
    catalogVersion: 202506291,
    controlCrcOffset: 292,
    droppedStatsItemBytes: 16,
  },
};

/** Reads the version out of `postgres (PostgreSQL) 15.18 (Debian …)`; undefined for any other text. */
export function parseVersionOutput(text: string): PostgresVersion | undefined {
  const found = /\(PostgreSQL\) ((\d+)(?:\.\d+|beta\d+|rc\d+|devel)?)/.exec(text);
  if (found?.[1] === undefined) return undefined;
  return { major: Number(found[2]), text: found[1] };
}

function isSupportedMajor(major: number): major is MajorVersion {
  return (SUPPORTED_MAJORS as readonly number[]).includes(major);
}

/** The major of a `server_version_num` (`150018` is 15); `version-unsupported` outside the supported ones. */
export function majorOfServerVersion(serverVersionNum: number): MajorVersion {
  const major = Math.floor(serverVersionNum / 10_000);
  if (!isSupportedMajor(major)) throw unsupported(`PostgreSQL ${major}`, { serverVersionNum });
  return major;
}

/** The major that writes WAL pages with this magic; undefined for any other number. */
export function majorOfWalMagic(magic: number): MajorVersion | undefined {
  return SUPPORTED_MAJORS.find((major) => VERSION_FACTS[major].walMagic === magic);
}

/** The major whose catalogs have this version; `version-unsupported` for betas and unknown majors. */
export function majorOfCatalogVersion(catalogVersion: number): MajorVersion {
  const major = SUPPORTED_MAJORS.find(
    (candidate) => VERSION_FACTS[candidate].catalogVersion === catalogVersion,
  );
  if (major === undefined) throw unsupported(`catalog version ${catalogVersion}`, { catalogVersion });
  return major;
}

function unsupported(what: string, context: Record<string, number>): HoldfastError {
  const range = `${OLDEST_MAJOR} to ${NEWEST_MAJOR}`;
  return new HoldfastError('version-unsupported', `${what} is not supported, only PostgreSQL ${range}`, {
    context,
  });
}
