export interface LockedPackage {
  version?: string;
  dev?: boolean;
  devOptional?: boolean;
  optional?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

export interface LockFile {
  packages: Record<string, LockedPackage>;
}

/** Optional dependencies, with exact versions, that have no entry of their own. */
export function missingPackages(
  lock: LockFile,
): { name: string; version: string; wantedBy: LockedPackage }[] {
  return Object.values(lock.packages).flatMap((wantedBy) =>
    Object.entries(wantedBy.optionalDependencies ?? {})
      .filter(([name, version]) => /^\d/.test(version) && lock.packages[`node_modules/${name}`] === undefined)
      .map(([name, version]) => ({ name, version, wantedBy })),
  );
}

/** Adds an entry for each; where it can run is read from its name, as these packages are named. Returns their names. */
export function completeLock(lock: LockFile): string[] {
  const added: string[] = [];
  for (const { name, version, wantedBy } of missingPackages(lock)) {
    lock.packages[`node_modules/${name}`] = {
      version,
      ...platformOf(name),
      ...(wantedBy.dev === true && { dev: true }),
      optional: true,
    };
    added.push(name);
  }
  const names = Object.keys(lock.packages).sort((a, b) => a.localeCompare(b, 'en'));
  lock.packages = Object.fromEntries(names.map((name) => [name, lock.packages[name] ?? {}]));
  return added;
}

const SYSTEMS = [
  'android',
  'darwin',
  'freebsd',
  'linux',
  'openharmony',
  'openbsd',
  'netbsd',
  'win32',
  'sunos',
  'aix',
];
const PROCESSORS = [
  'arm64',
  'arm',
  'x64',
  'ia32',
  'ppc64',
  's390x',
  'riscv64',
  'loong64',
  'wasm32',
  'mips64el',
];

function platformOf(name: string): Pick<LockedPackage, 'os' | 'cpu' | 'libc'> {
  const words = name.split(/[/-]/);
  const os =
    SYSTEMS.find((system) => words.includes(system)) ?? (words.includes('windows') ? 'win32' : undefined);
  const cpu = PROCESSORS.find((processor) => words.includes(processor));
  const libc = words.includes('musl') ? 'musl' : words.includes('gnu') ? 'glibc' : undefined;
  return {
    ...(os !== undefined && { os: [os] }),
    ...(cpu !== undefined && { cpu: [cpu] }),
    ...(libc !== undefined && os === 'linux' && { libc: [libc] }),
  };
}
