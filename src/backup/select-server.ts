import type { Clock } from '../clock.ts';
import { throwIfCancelled } from '../cancellation.ts';
import { errorText, HoldfastError } from '../errors.ts';
import { connect } from '../postgres/connection.ts';
import { describeTarget, parseConnectionTarget } from '../postgres/connection-target.ts';
import { inspectServer, type ServerFacts } from '../postgres/inspect-server.ts';
import { type Candidate, chooseServer, type SourcePreference } from './choose-server.ts';

export interface SelectServerOptions {
  urls: readonly string[];
  prefer: SourcePreference;
  maxLagBytes: number;
  maxWaitMs: number;
  fallback: 'primary' | 'fail';
  clock: Clock;
  say: (text: string) => void;
  signal?: AbortSignal;
}

export interface SelectedServer {
  url: string;
  /** The role of the connection. */
  user: string;
  facts: ServerFacts;
  reason: string;
  warning?: string;
  /** The primary, where it could be reached. */
  primary?: { url: string; facts: ServerFacts };
}

const LOOK_AGAIN_MS = 2000;

/**
 * Asks every configured server how it is and chooses one, waiting for a lagging standby as long as allowed. Where only
 * one server is configured and cannot be asked, its own error is thrown.
 */
export async function selectServer(options: SelectServerOptions): Promise<SelectedServer> {
  const { clock, signal } = options;
  const deadline = clock.monotonicMs() + options.maxWaitMs;
  for (;;) {
    const candidates = await Promise.all(options.urls.map((url) => inspect(url, signal)));
    throwIfCancelled(signal);
    const [only] = candidates;
    if (candidates.length === 1 && only?.error !== undefined) throw only.error;
    const choice = chooseServer(candidates, {
      prefer: options.prefer,
      maxLagBytes: options.maxLagBytes,
      fallback: options.fallback,
      mayWait: clock.monotonicMs() < deadline,
    });
    if (choice.kind === 'take') {
      const { candidate, reason, warning } = choice;
      const primary = candidates.find(({ facts }) => facts?.inRecovery === false);
      return {
        url: candidate.url,
        user: parseConnectionTarget(candidate.url).user,
        facts: candidate.facts,
        reason,
        ...(warning !== undefined && { warning }),
        ...(primary?.facts !== undefined && { primary: { url: primary.url, facts: primary.facts } }),
      };
    }
    options.say(`waiting: ${choice.reason}`);
    await clock.sleep(LOOK_AGAIN_MS, signal);
  }
}

async function inspect(
  url: string,
  signal: AbortSignal | undefined,
): Promise<Candidate & { error?: HoldfastError }> {
  const name = describeTarget(parseConnectionTarget(url));
  try {
    await using connection = await connect(url, { ...(signal && { signal }) });
    return { url, name, facts: await inspectServer(connection) };
  } catch (error) {
    if (!(error instanceof HoldfastError)) throw error;
    return { url, name, facts: undefined, problem: errorText(error), error };
  }
}
