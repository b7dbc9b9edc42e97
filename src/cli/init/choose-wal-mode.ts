import { systemClock } from '../../clock.ts';
import { resolveSecret, type SecretSources } from '../../config/secrets.ts';
import { HoldfastError } from '../../errors.ts';
import type { ServerFacts } from '../../postgres/inspect-server.ts';
import { seeServer, type ServerSight } from '../check/see-server.ts';

/** What `init` looks at in a server. */
export type SetupSight = Pick<ServerSight, 'facts' | 'wal'>;

export interface WalModeChoice {
  mode: 'push' | 'stream';
  /** In half a sentence. */
  reason: string;
  /** The server that was asked, where one answered. */
  sight?: SetupSight;
}

/**
 * How WAL should arrive where nobody said: streamed, if a replication connection can really be opened and nobody archives
 * yet; pushed otherwise. Looks at the servers, changes nothing; only a cancellation is thrown.
 */
export async function chooseWalMode(
  servers: readonly string[],
  sources: SecretSources,
  slot: string,
  signal: AbortSignal,
): Promise<WalModeChoice> {
  const sights: ServerSight[] = [];
  let problem = '';
  for (const reference of servers) {
    try {
      const url = await resolveSecret(reference, sources);
      sights.push(
        await seeServer(url, {
          signal,
          applicationName: 'holdfast init',
          tryReplication: true,
          slot,
          sampleMs: 0,
          wait: async (ms) => systemClock.sleep(ms, signal),
        }),
      );
    } catch (error) {
      if (!(error instanceof HoldfastError) || error.code === 'cancelled') throw error;
      problem ||= error.message;
    }
  }
  return judgeWalMode(sights, problem);
}

/** Pure. `problem`: why the first server that did not answer did not. */
export function judgeWalMode(sights: readonly ServerSight[], problem: string): WalModeChoice {
  const sight = sights.find(({ facts }) => !facts.inRecovery) ?? sights[0];
  if (sight === undefined) return { mode: 'push', reason: `no server could be asked: ${problem}` };
  const { facts, replication } = sight;
  if (replication !== true) return { mode: 'push', reason: replication.reason, sight };
  const archiver = archiverOf(facts);
  if (archiver !== undefined)
    return { mode: 'push', reason: `${facts.server} archives already: ${archiver}`, sight };
  return { mode: 'stream', reason: `${facts.server} lets ${sight.user} open replication connections`, sight };
}

function archiverOf(facts: ServerFacts): string | undefined {
  if (facts.archiveMode === 'off') return undefined;
  if (facts.archiveLibrary !== '') return `archive_library = '${facts.archiveLibrary}'`;
  return facts.archiveCommand === '' ? undefined : `archive_command = '${facts.archiveCommand}'`;
}
