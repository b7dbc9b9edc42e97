import { HoldfastError } from '../errors.ts';
import { CLUSTERS_PREFIX, type ClusterIdentity, clusterPrefix } from './layout.ts';
import type { ListOptions, Storage } from '../storage/storage.ts';
import type { Repository } from './repository.ts';

export interface ClusterChoice {
  /** Every cluster the configuration names. */
  configured: readonly string[];
  /** The name given on the command line. */
  named?: string;
  /** The one system identifier that may begin a new history under a name that already has another one. */
  adopt?: string;
}

/**
 * Decides under which name WAL of a system identifier is kept. The identifier is the fact; the name must fit it:
 *
 * - a name (configured, or the one given) that holds this identifier in one of the repositories is it;
 * - else a new history begins, but only under a name that holds nothing yet, and only if there is no doubt which name:
 *   it was given, or it is the only one configured;
 * - a name that holds *another* identifier is refused with `cluster-mismatch`. That is what a second initdb with a
 *   copied configuration looks like, and a name on the command line may have been copied with it. Giving the identifier
 *   itself (`adopt`) is the way for a cluster that was upgraded or made anew: it fits no other cluster.
 */
export async function chooseCluster(
  repositories: readonly Repository[],
  systemIdentifier: string,
  choice: ClusterChoice,
  signal?: AbortSignal,
): Promise<ClusterIdentity> {
  const candidates = choice.named === undefined ? choice.configured : [choice.named];
  const holding = await namesOf(repositories, systemIdentifier, candidates, signal);
  const [only, second] = holding;
  if (second !== undefined) throw severalNames(systemIdentifier, holding);
  if (only !== undefined) return { cluster: only, systemIdentifier };

  const [cluster, other] = candidates;
  if (cluster === undefined) throw new HoldfastError('cluster-unknown', 'no cluster is configured');
  if (other !== undefined) throw unclearName(systemIdentifier, candidates);
  if (choice.adopt === systemIdentifier) return { cluster, systemIdentifier };
  const known = await identifiersByName(repositories, signal);
  const others = known.get(cluster);
  // Another process may have begun the very same history since it was looked for.
  if (others?.has(systemIdentifier) === true) return { cluster, systemIdentifier };
  if (others !== undefined) throw otherIdentifier(cluster, systemIdentifier, [...others]);
  if (choice.named === undefined) {
    const elsewhere = [...known].find(([, identifiers]) => identifiers.has(systemIdentifier))?.[0];
    if (elsewhere !== undefined) throw otherName(cluster, systemIdentifier, elsewhere);
  }
  return { cluster, systemIdentifier };
}

/** Those of the names under which one of the repositories has anything of this system identifier. */
export async function namesOf(
  repositories: readonly Repository[],
  systemIdentifier: string,
  names: readonly string[],
  signal?: AbortSignal,
): Promise<string[]> {
  const holding: string[] = [];
  for (const cluster of names) {
    const prefix = clusterPrefix({ cluster, systemIdentifier });
    for (const { storage } of repositories) {
      if ((await firstKey(storage, prefix, { ...(signal && { signal }) })) === undefined) continue;
      holding.push(cluster);
      break;
    }
  }
  return holding;
}

/** All histories in the repositories, skipping over the objects of each. */
async function identifiersByName(
  repositories: readonly Repository[],
  signal: AbortSignal | undefined,
): Promise<Map<string, Set<string>>> {
  const known = new Map<string, Set<string>>();
  for (const repository of repositories) {
    for await (const { cluster, systemIdentifier } of listHistories(repository, signal)) {
      known.set(cluster, (known.get(cluster) ?? new Set()).add(systemIdentifier));
    }
  }
  return known;
}

/** Each history of a repository once, at the cost of one short listing per history. */
export async function* listHistories(
  repository: Repository,
  signal?: AbortSignal,
): AsyncGenerator<ClusterIdentity> {
  let after: string | undefined;
  for (;;) {
    const key = await firstKey(repository.storage, CLUSTERS_PREFIX, {
      ...(after !== undefined && { after }),
      ...(signal && { signal }),
    });
    if (key === undefined) return;
    const [, cluster = '', systemIdentifier = ''] = key.split('/');
    // `0` is the character after `/`: the last key that could lie below this folder is passed over.
    after = `${CLUSTERS_PREFIX}${cluster}/${systemIdentifier}0`;
    yield { cluster, systemIdentifier };
  }
}

/** The first key of a listing, which ends there. */
async function firstKey(storage: Storage, prefix: string, options: ListOptions): Promise<string | undefined> {
  for await (const { key } of storage.list(prefix, options)) return key;
  return undefined;
}

function otherIdentifier(cluster: string, systemIdentifier: string, others: string[]): HoldfastError {
  return new HoldfastError(
    'cluster-mismatch',
    `this is wal of system identifier ${systemIdentifier}, but cluster ${cluster} in the repository is ${others.join(' and ')}; nothing was stored`,
    {
      hint:
        `if this server replaced the other (pg_upgrade, a new initdb), give it a new cluster name in the configuration, ` +
        `or run once: holdfast wal push --cluster ${cluster} --adopt ${systemIdentifier} PATH; if not, its configuration was copied: change archive_command`,
      context: { cluster, systemIdentifier, known: others.join(',') },
    },
  );
}

function otherName(cluster: string, systemIdentifier: string, elsewhere: string): HoldfastError {
  return new HoldfastError(
    'cluster-mismatch',
    `the repository has system identifier ${systemIdentifier} under the name ${elsewhere}, the configuration calls it ${cluster}`,
    { hint: `call the cluster ${elsewhere} in the configuration, or begin anew with --cluster ${cluster}` },
  );
}

function severalNames(systemIdentifier: string, names: readonly string[]): HoldfastError {
  return new HoldfastError(
    'cluster-mismatch',
    `system identifier ${systemIdentifier} is in the repository under several names: ${names.join(', ')}`,
    { hint: `say which: --cluster ${names[0] ?? 'NAME'}` },
  );
}

function unclearName(systemIdentifier: string, names: readonly string[]): HoldfastError {
  return new HoldfastError(
    'cluster-mismatch',
    `the repository has nothing of system identifier ${systemIdentifier} yet, and it could be any of ${names.join(', ')}`,
    { hint: `say which: --cluster ${names[0] ?? 'NAME'}`, context: { systemIdentifier } },
  );
}
