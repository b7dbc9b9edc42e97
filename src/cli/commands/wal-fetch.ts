import { spawn } from 'node:child_process';

import type { FetchResult } from '../../wal/fetch.ts';
import { afterDelivery } from '../../wal/prefetch-start.ts';
import type { CommandContext, CommandSpec, Invocation } from '../command.ts';
import { FETCH_OPTIONS, fetchFromAll, isSettled, readFetchRequest } from '../fetch-request.ts';
import { launcherPath } from '../launcher-path.ts';

/**
 * The launcher's own reading of the command line, without the file's name and path, a word a line: a prefetch process
 * serves only requests with the same words. Not set where there is something in it that only this program understands.
 */
export const WORDS_VARIABLE = 'HOLDFAST_PREFETCH_WORDS';

/** Thrown for a proven absence: not an error, but not a success either. */
export class WalAbsent extends Error {
  override readonly name = 'WalAbsent';
}

export const walFetch: CommandSpec = {
  name: 'wal fetch',
  group: 'Used by PostgreSQL',
  summary: 'hand one WAL file to recovery (restore_command)',
  details: `Ends with 0 when the file is at PATH, whole and checked; with 1 only where the repositories prove that there
is no such file, which PostgreSQL may take for the end of the archive; with 126 in every other case, after
retrying, so that recovery stops instead of opening a database that ends too early.`,
  arguments: [
    { name: 'name', summary: 'the file PostgreSQL asks for (%f)' },
    { name: 'path', summary: 'where it is to be (%p)' },
  ],
  options: FETCH_OPTIONS,
  examples: [
    {
      command:
        "restore_command = '/opt/holdfast/bin/holdfast wal fetch %f %p --config /etc/holdfast/holdfast.yaml'",
      does: 'for a standby of your own; "holdfast restore base" writes it by itself',
    },
  ],
  run,
};

async function run(invocation: Invocation): Promise<void> {
  const {
    arguments: [name = '', path = ''],
    context,
  } = invocation;
  const { environment, directory, signal, output } = context;
  const request = await readFetchRequest(invocation);
  const { configuration, systemIdentifier } = request;
  const opener = { configuration, environment, signal };
  const { result, failures } = await fetchFromAll(request, { name, destination: path }, opener);
  for (const error of failures) output.warn(error.message);
  for (const warning of result.warnings) output.warn(warning.message);
  finish(name, result, isSettled(request.until, result) ? undefined : failures[0], output);
  const words = environment[WORDS_VARIABLE];
  await afterDelivery({ name, path, directory, words, systemIdentifier, result }, (command) =>
    startDetached(command, context),
  );
}

/** In a session of its own: the signals that PostgreSQL sends to a restore command's process group are not for it. */
function startDetached(words: string[], { directory, environment }: CommandContext): number | undefined {
  const child = spawn(launcherPath(), words, {
    cwd: directory,
    env: { ...environment },
    detached: true,
    stdio: 'ignore',
  });
  child.on('error', () => undefined);
  child.unref();
  return child.pid;
}

function finish(
  name: string,
  result: FetchResult,
  notAsked: Error | undefined,
  output: Invocation['context']['output'],
): void {
  switch (result.kind) {
    case 'delivered': {
      // A repository that could not be asked may have more of a segment that is not complete.
      if (notAsked !== undefined) throw notAsked;
      const { repository, sizeBytes } = result;
      output.result({ name, found: true, repository, sizeBytes }, () =>
        output.verbose ? `${name} from ${repository}` : '',
      );
      return;
    }
    case 'absent':
      // A repository that could not be asked may have it.
      if (notAsked !== undefined) throw notAsked;
      output.result({ name, found: false, reason: result.reason }, () =>
        output.verbose ? `${name} is not in the repositories: ${result.reason}` : '',
      );
      throw new WalAbsent(result.reason);
    case 'failed':
      throw result.error;
    default:
      result satisfies never;
  }
}
