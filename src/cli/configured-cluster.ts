import type { Configuration } from '../config/configuration.ts';
import { nearestKey } from '../config/nearest-key.ts';
import type { ClusterConfiguration } from '../config/schema.ts';
import { HoldfastError } from '../errors.ts';

/** The cluster of a name, or `cluster-unknown` with the names there are. */
export function configuredCluster(configuration: Configuration, name: string): ClusterConfiguration {
  const found = configuration.clusters[name];
  if (found !== undefined && Object.hasOwn(configuration.clusters, name)) return found;
  const near = nearestKey(name, configuration.clusterNames);
  throw new HoldfastError('cluster-unknown', `there is no cluster "${name}" in ${configuration.file}`, {
    hint:
      near === undefined ? `it names: ${configuration.clusterNames.join(', ')}` : `did you mean "${near}"?`,
  });
}
