import { HoldfastError } from '../errors.ts';
import type { ServerFacts } from '../postgres/inspect-server.ts';

export type SourcePreference = 'auto' | 'primary' | 'standby';

/** One configured server as it looks now. */
export interface Candidate {
  url: string;
  /** `host:port`, for messages. */
  name: string;
  /** Undefined where it could not be asked; `problem` then says why. */
  facts: ServerFacts | undefined;
  problem?: string;
}

export interface ChoicePolicy {
  prefer: SourcePreference;
  /** Bytes of WAL a standby may be behind. */
  maxLagBytes: number;
  /** What to do when no standby is fit although one was preferred. */
  fallback: 'primary' | 'fail';
  /** False once waiting for a lagging standby has taken as long as it may. */
  mayWait: boolean;
}

export type Choice =
  | { kind: 'take'; candidate: Candidate & { facts: ServerFacts }; reason: string; warning?: string }
  | { kind: 'wait'; reason: string };

/**
 * Decides which server a backup is taken from. A standby within the allowed lag spares the primary; having no standby is
 * not the same as having none that lags. Throws `cluster-mismatch` where the servers are not one cluster,
 * `connection-failed` where none that would do can be reached.
 */
export function chooseServer(candidates: readonly Candidate[], policy: ChoicePolicy): Choice {
  const reachable = candidates.filter(hasFacts);
  assertOneCluster(reachable);
  const primaries = reachable.filter(({ facts }) => !facts.inRecovery);
  if (primaries.length > 1) {
    throw new HoldfastError(
      'cluster-mismatch',
      `more than one server of the cluster says it is the primary: ${primaries.map(({ name }) => name).join(', ')}`,
      { hint: 'one of them was left behind by a failover, or is a clone: take it out of the configuration' },
    );
  }
  const [primary] = primaries;
  const unreachable = candidates.filter(({ facts }) => facts === undefined);
  const away = unreachable.map(({ name, problem }) => `${name} (${problem ?? 'not reachable'})`).join(', ');
  if (policy.prefer === 'primary') {
    if (primary !== undefined)
      return { kind: 'take', candidate: primary, reason: 'the primary was asked for' };
    throw nothingFit('no primary can be reached', away, candidates);
  }
  const standbys = reachable
    .filter(({ facts }) => facts.inRecovery)
    .map((standby) => ({ standby, behind: behind(standby.facts, primary?.facts) }))
    .sort((a, b) => compare(a.behind, b.behind));
  const [best] = standbys;
  if (best !== undefined && isWithin(best.behind, policy.maxLagBytes)) {
    return {
      kind: 'take',
      candidate: best.standby,
      reason: `a standby, ${describe(best.behind)}: it spares the primary`,
    };
  }
  if (best !== undefined && policy.mayWait) {
    return {
      kind: 'wait',
      reason: `${best.standby.name} is ${describe(best.behind)}; ${policy.maxLagBytes} bytes are allowed`,
    };
  }
  const why =
    best !== undefined
      ? `the best standby, ${best.standby.name}, is ${describe(best.behind)}`
      : candidates.length === 1
        ? 'the only server'
        : `no standby can be reached${away === '' ? '' : `: ${away}`}`;
  const wanted = policy.prefer === 'standby' || best !== undefined || away !== '';
  if (primary === undefined || (policy.prefer === 'standby' && policy.fallback === 'fail')) {
    throw nothingFit(why, away, candidates);
  }
  return {
    kind: 'take',
    candidate: primary,
    reason: `the primary: ${why}`,
    ...(wanted && candidates.length > 1 && { warning: `taking the backup from the primary: ${why}` }),
  };
}

function hasFacts(candidate: Candidate): candidate is Candidate & { facts: ServerFacts } {
  return candidate.facts !== undefined;
}

/** Bytes of WAL, or that it still follows another timeline than the primary writes. */
type Behind = { bytes: bigint } | { timeline: number };

/**
 * A standby that lost its connection knows nothing newer than what it has and calls itself up to date, so the primary is
 * asked too where it can be.
 */
function behind(standby: ServerFacts, primary: ServerFacts | undefined): Behind {
  if (primary !== undefined && standby.timeline !== primary.timeline) return { timeline: standby.timeline };
  const own = standby.replay?.lagBytes ?? 0n;
  const seen = primary === undefined ? 0n : primary.position - standby.position;
  return { bytes: seen > own ? seen : own };
}

function compare(a: Behind, b: Behind): number {
  if ('timeline' in a || 'timeline' in b) return Number('timeline' in a) - Number('timeline' in b);
  return a.bytes < b.bytes ? -1 : Number(a.bytes > b.bytes);
}

function isWithin(one: Behind, maxLagBytes: number): boolean {
  return 'bytes' in one && one.bytes <= BigInt(maxLagBytes);
}

function describe(one: Behind): string {
  return 'bytes' in one ? `${one.bytes} bytes behind` : `still on timeline ${one.timeline}`;
}

function assertOneCluster(reachable: readonly (Candidate & { facts: ServerFacts })[]): void {
  const [first] = reachable;
  const other = reachable.find(({ facts }) => facts.systemIdentifier !== first?.facts.systemIdentifier);
  if (first === undefined || other === undefined) return;
  throw new HoldfastError(
    'cluster-mismatch',
    `${first.name} and ${other.name} are two clusters: system identifiers ${first.facts.systemIdentifier} and ${other.facts.systemIdentifier}`,
    { hint: 'give each its own name under "clusters"' },
  );
}

function nothingFit(why: string, away: string, candidates: readonly Candidate[]): HoldfastError {
  const first = candidates[0]?.name ?? 'the server';
  return new HoldfastError(
    'connection-failed',
    `no server can be backed up: ${why}${away === '' || why.includes(away) ? '' : `; ${away}`}`,
    {
      hint: `start ${first}, or set "source" in the configuration to what there is`,
    },
  );
}
