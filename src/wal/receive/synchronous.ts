import { HoldfastError } from '../../errors.ts';
import { synchronousMatch } from '../../postgres/synchronous-standby.ts';

/**
 * Whether commits wait for a receiver of this name (PostgreSQL manual, `synchronous_standby_names`). Throws
 * `server-setting` where only `*` would make it wait: nobody asked for that, and every commit would take as long as
 * storing a tail. Pure.
 */
export function judgeSynchronous(setting: string, name: string, server: string): boolean {
  const match = synchronousMatch(setting, name);
  if (match !== 'any') return match === 'named';
  throw new HoldfastError(
    'server-setting',
    `synchronous_standby_names = '${setting}' on ${server} takes in this receiver, too, so that commits would wait for it`,
    {
      hint: `name the standbys there instead of "*"; or name "${name}" as well, if commits are to wait until they are in the repository`,
      context: { server, setting },
    },
  );
}
