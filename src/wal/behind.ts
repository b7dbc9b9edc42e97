import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

/** An optional repository that lacks WAL which the required ones have, noted in this host's state directory. */
export interface Behind {
  repository: string;
  /** Times are RFC 3339 UTC. */
  since: string;
  /** The first file that did not get there. */
  first: string;
  /** What the last attempt failed with. */
  reason: string;
  /** Not to be tried before. */
  tryAgainAt: string;
}

/** Where the notes of one cluster lie on this host. */
export function behindDirectory(stateDirectory: string, systemIdentifier: string): string {
  return join(stateDirectory, 'wal', 'behind', systemIdentifier);
}

/** Notes that a repository is behind; `since` and `first` of an earlier note stay. Best effort: never throws. */
export async function noteBehind(
  stateDirectory: string,
  systemIdentifier: string,
  behind: Behind,
): Promise<void> {
  const directory = behindDirectory(stateDirectory, systemIdentifier);
  const temporary = join(directory, `${behind.repository}.${process.pid}.tmp`);
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const earlier = (await readBehind(stateDirectory, systemIdentifier)).find(
      (one) => one.repository === behind.repository,
    );
    const next = { ...behind, ...(earlier && { since: earlier.since, first: earlier.first }) };
    await writeFile(temporary, `${JSON.stringify(next)}\n`, { mode: 0o600 });
    await rename(temporary, join(directory, `${behind.repository}.json`));
  } catch {
    await rm(temporary, { force: true }).catch(() => undefined);
  }
}

/** The repository has everything again. Never throws. */
export async function clearBehind(
  stateDirectory: string,
  systemIdentifier: string,
  repository: string,
): Promise<void> {
  const file = join(behindDirectory(stateDirectory, systemIdentifier), `${repository}.json`);
  await rm(file, { force: true }).catch(() => undefined);
}

/** The repositories noted as behind on this host; what cannot be read is left out. */
export async function readBehind(stateDirectory: string, systemIdentifier: string): Promise<Behind[]> {
  const directory = behindDirectory(stateDirectory, systemIdentifier);
  const names = await readdir(directory).catch((): string[] => []);
  const found: Behind[] = [];
  for (const name of names.sort()) {
    if (!name.endsWith('.json')) continue;
    try {
      const parsed: unknown = JSON.parse(await readFile(join(directory, name), 'utf8'));
      const { repository, since, first, reason, tryAgainAt } = parsed as Record<string, unknown>;
      found.push({
        repository: String(repository),
        since: String(since),
        first: String(first),
        reason: String(reason),
        tryAgainAt: String(tryAgainAt),
      });
    } catch {
      // Half a note, or none any more: whoever is behind will be noted again.
    }
  }
  return found;
}
