import { spawn } from 'node:child_process';
import { setPriority } from 'node:os';

import { launcherPath } from './launcher-path.ts';

/** Below PostgreSQL and whatever else serves users. */
const NICE = 10;

/**
 * Starts `holdfast wal catch-up` for one repository and forgets it: a session of its own, nothing inherited but the
 * environment, so that neither PostgreSQL's archiver nor a shutdown waits for it. Never throws.
 */
export function startCatchUp(options: {
  configFile: string;
  cluster: string;
  repository: string;
  environment: Readonly<Record<string, string | undefined>>;
}): void {
  const { configFile, cluster, repository, environment } = options;
  const words = ['wal', 'catch-up', cluster, '--repository', repository, '--config', configFile, '--quiet'];
  const child = spawn(launcherPath(), words, { detached: true, stdio: 'ignore', cwd: '/', env: environment });
  child.on('error', () => undefined);
  child.unref();
  try {
    if (child.pid !== undefined) setPriority(child.pid, NICE);
  } catch {
    // It has ended, or may not be slowed down.
  }
}
