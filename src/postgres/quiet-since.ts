import type { Connection } from './connection.ts';
import { type Lsn, parseLsn } from './lsn.ts';

/**
 * From the last checkpoint it can be proven that nothing was committed since: no transaction ran when it was made
 * (`oldest_active_xid` is the next one; a shutdown leaves it 0), and none that got an id later has ended (the snapshot's
 * xmax is one beyond the newest that ended). The checkpoint takes `oldest_active_xid` before its redo point and
 * `next_xid` behind it (`CreateCheckPoint()`), so a transaction in between makes the two differ.
 */
const QUIET = `
SELECT c.redo_lsn::text AS redo,
       current_setting('wal_level') <> 'minimal'
       AND c.oldest_active_xid::text IN ('0', split_part(c.next_xid, ':', 2))
       AND (pg_snapshot_xmax(s.snapshot)::text::numeric % 4294967296)::text = split_part(c.next_xid, ':', 2) AS quiet
FROM pg_control_checkpoint() AS c, (SELECT pg_current_snapshot() AS snapshot) AS s`;

/**
 * An LSN after which no transaction that changed anything has committed; undefined where that cannot be proven. Of a
 * primary only.
 */
export async function quietSince(connection: Connection): Promise<Lsn | undefined> {
  const [row] = await connection.query<{ redo: string; quiet: boolean }>(QUIET);
  return row?.quiet === true ? parseLsn(row.redo) : undefined;
}
