import type { ClusterConfiguration } from '../../config/schema.ts';
import { formatSize } from '../../config/sizes.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import type { Findings } from './finding.ts';

/** A server that answered. */
export interface SeenServer {
  facts: ServerFacts;
  user: string;
  /** Whether a replication session could really be opened; else why not. */
  replication: true | { reason: string; fix: string };
  /** How far the server's clock is ahead of this host's, in milliseconds, give or take `toleranceMs`. */
  clockSkewMs: number;
  toleranceMs: number;
}

const SKEW_WARN_MS = 2000;
const SKEW_FAIL_MS = 60_000;

/** What one server's facts mean for backups. Pure. */
export function judgeServer(seen: SeenServer, findings: Findings): void {
  const { facts, user } = seen;
  const role = facts.inRecovery ? 'standby' : 'primary';
  findings.ok(
    `${facts.server} is a ${role}, PostgreSQL ${facts.versionText}, timeline ${facts.timeline}, system identifier ${facts.systemIdentifier}`,
  );
  if (facts.warning !== undefined)
    findings.warn(`${facts.server}: ${facts.warning}`, 'look for a newer Holdfast');
  if (facts.walLevel === 'minimal') {
    findings.fail(
      `${facts.server} has wal_level = minimal`,
      "set wal_level = 'replica' and restart the server",
    );
  }
  if (seen.replication === true) findings.ok(`${facts.server} lets ${user} open replication sessions`);
  else findings.fail(`${facts.server}: ${seen.replication.reason}`, seen.replication.fix);
  if (!facts.canMonitor) {
    findings.warn(
      `${facts.server}: ${user} may not read all settings and statistics`,
      `GRANT pg_monitor TO ${quoted(user)};`,
    );
  }
  if (!facts.dataChecksums) {
    findings.warn(
      `${facts.server} has no data checksums, so a damaged page cannot be told from a good one`,
      'pg_checksums --enable, with the server stopped',
    );
  }
  if (!facts.fullPageWrites) {
    findings.fail(`${facts.server} has full_page_writes = off`, 'set full_page_writes = on and reload');
  }
  judgeClock(seen, findings);
  if (facts.replay !== undefined) {
    findings.ok(
      `${facts.server} is ${formatSize(Number(facts.replay.lagBytes))} behind what it has received`,
    );
  }
}

function judgeClock(seen: SeenServer, findings: Findings): void {
  const skew = Math.max(0, Math.abs(seen.clockSkewMs) - seen.toleranceMs);
  const text = `the clock of ${seen.facts.server} and this host's differ by ${(Math.abs(seen.clockSkewMs) / 1000).toFixed(1)} s`;
  const fix = 'run NTP (chrony, systemd-timesyncd) on both';
  if (skew > SKEW_FAIL_MS) findings.fail(text, fix);
  else if (skew > SKEW_WARN_MS) findings.warn(text, fix);
  else findings.ok(text);
}

/** What the servers of a cluster mean together. Pure. */
export function judgeServers(
  seen: readonly SeenServer[],
  configuration: ClusterConfiguration,
  findings: Findings,
): void {
  const identifiers = new Set(seen.map(({ facts }) => facts.systemIdentifier));
  const majors = new Set(seen.map(({ facts }) => facts.majorVersion));
  if (identifiers.size > 1 || majors.size > 1) {
    findings.fail(
      `its servers belong to different clusters: ${seen
        .map(({ facts }) => `${facts.server} ${facts.systemIdentifier} (PostgreSQL ${facts.majorVersion})`)
        .join(', ')}`,
      'list a primary and its standbys only; give every other cluster a name of its own',
    );
    return;
  }
  if (seen.length > 1) findings.ok(`its ${seen.length} servers share one system identifier`);
  const primaries = seen.filter(({ facts }) => !facts.inRecovery);
  if (primaries.length > 1) {
    findings.fail(
      `it has ${primaries.length} primaries: ${primaries.map(({ facts }) => facts.server).join(', ')}`,
      'one of them is no longer a part of it: rebuild it as a standby, or take it out of the list',
    );
  }
  if (primaries.length === 0 && seen.length > 0) {
    findings.warn('none of its servers is a primary', 'add the primary to its servers');
  }
  if (configuration.source.prefer === 'standby' && !seen.some(({ facts }) => facts.inRecovery)) {
    findings.warn(
      'backups are to be taken from a standby, and there is none',
      configuration.source.fallback === 'primary'
        ? 'backups will come from the primary until there is one'
        : 'start a standby, or set source.fallback: primary',
    );
  }
}

function quoted(role: string): string {
  return `"${role.replaceAll('"', '""')}"`;
}
