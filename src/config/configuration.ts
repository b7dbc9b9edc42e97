import type { ClusterConfiguration, ConfigurationFile } from './schema.ts';

/** One repository as the configuration names it. */
export interface RepositoryConfiguration {
  name: string;
  /** A URL, or a reference to one (`env:`, `file:/path`). */
  url: string;
  /** A WAL push succeeds, and a backup is whole, only when every required repository has it. */
  required: boolean;
  storageClass?: string;
}

/** What `wal push` and `wal fetch` need, and nothing secret: it may be cached in a file. */
export interface CoreConfiguration {
  /** Absolute path of the file. */
  file: string;
  clusterNames: string[];
  repositories: RepositoryConfiguration[];
  recipients: string[];
  /** An absolute path or an `env:` reference; absent on hosts that only write. */
  identity?: string;
  stateDirectory: string;
}

export interface Configuration extends CoreConfiguration {
  clusters: Record<string, ClusterConfiguration>;
  retention: ConfigurationFile['retention'];
  schedule: ConfigurationFile['schedule'];
  drill: ConfigurationFile['drill'];
  alerts: ConfigurationFile['alerts'];
}
