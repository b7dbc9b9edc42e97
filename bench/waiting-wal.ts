import { readdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { type Lab, type LabServer, settle } from './lab.ts';
import { pgbench } from './rounds.ts';

/** Settings of a server on which WAL is to gather: it is neither archived nor removed. */
export const GATHERING: Readonly<Record<string, string>> = {
  shared_buffers: '256MB',
  fsync: 'on',
  synchronous_commit: 'off',
  autovacuum: 'off',
  archive_mode: 'on',
  archive_command: '',
  max_wal_size: '16GB',
  checkpoint_timeout: '1h',
  wal_keep_size: '16GB',
};

const SEGMENT_NAME = /^[0-9A-F]{24}$/;
/** Full-page images are what WAL mostly holds on a server in use: one checkpoint in so many seconds of load. */
const CHECKPOINT_EVERY_S = 15;

/**
 * What the WAL mostly holds. `pages`: images of pages, as always after a checkpoint; such WAL compresses well. `records`:
 * changes of rows and ends of transactions, as between checkpoints that are far apart.
 */
export type WalContent = 'pages' | 'records';

/** pgbench's standard transaction, without a client: WAL comes several times as fast. */
const TRANSACTIONS = `
  CREATE OR REPLACE PROCEDURE bench_transactions(count int) LANGUAGE plpgsql AS $$
  DECLARE
    branches int := (SELECT count(*) FROM pgbench_branches);
    delta int; account int; teller int; branch int;
  BEGIN
    FOR i IN 1..count LOOP
      delta := floor(random() * 10001) - 5000;
      account := 1 + floor(random() * 100000 * branches);
      teller := 1 + floor(random() * 10 * branches);
      branch := 1 + floor(random() * branches);
      UPDATE pgbench_accounts SET abalance = abalance + delta WHERE aid = account;
      PERFORM abalance FROM pgbench_accounts WHERE aid = account;
      UPDATE pgbench_tellers SET tbalance = tbalance + delta WHERE tid = teller;
      UPDATE pgbench_branches SET bbalance = bbalance + delta WHERE bid = branch;
      INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
        VALUES (teller, branch, account, delta, clock_timestamp());
      COMMIT;
    END LOOP;
  END $$`;
const TRANSACTIONS_AT_ONCE = 40_000;

/**
 * Runs pgbench's standard transactions until `count` segments are full and wait for the archiver (`.ready`). Returns
 * their names in order. On a server started with `GATHERING` and pgbench's tables.
 */
export async function gatherWal(
  lab: Lab,
  server: LabServer,
  count: number,
  content: WalContent = 'pages',
): Promise<string[]> {
  if (content === 'records') {
    await server.sql(TRANSACTIONS);
    await server.sql('CHECKPOINT');
    // Every page was written to once, so that none goes into WAL whole any more.
    await server.sql('UPDATE pgbench_accounts SET abalance = 0 WHERE aid % 30 = 0');
    await server.sql('VACUUM');
  }
  await server.sql('SELECT pg_switch_wal()');
  const before = new Set(await readyNames(server));
  for (;;) {
    const names = (await readyNames(server)).filter((name) => !before.has(name));
    if (names.length >= count) {
      await settle(lab, server);
      return names.slice(0, count);
    }
    if (content === 'records') {
      const call = `CALL bench_transactions(${TRANSACTIONS_AT_ONCE})`;
      await Promise.all([server.sql(call), server.sql(call)]);
    } else {
      await server.sql('CHECKPOINT');
      await pgbench(lab, server, ['-n', '-c', '4', '-j', '2', '-T', `${CHECKPOINT_EVERY_S}`]);
    }
    lab.say(`${(await readyNames(server)).length} segments wait`);
  }
}

/**
 * Lets the server archive exactly these segments once more, with `command`, and returns the milliseconds from the moment
 * it was told to until the last one was acknowledged. Whatever else waits goes nowhere.
 */
export async function archiveAgain(
  lab: Lab,
  server: LabServer,
  names: readonly string[],
  command: string,
): Promise<number> {
  await setArchiveCommand(lab, server, '');
  const status = join(server.dataDirectory, 'pg_wal', 'archive_status');
  const wanted = new Set(names);
  for (const file of await readdir(status)) {
    const [name = '', kind] = file.split('.');
    if (wanted.has(name) && kind === 'done') await rename(join(status, file), join(status, `${name}.ready`));
    if (!wanted.has(name) && kind === 'ready') await rename(join(status, file), join(status, `${name}.done`));
  }
  await settle(lab, server);
  await setArchiveCommand(lab, server, command);
  const startedMs = performance.now();
  await untilNoneWaits(lab, server, 600_000);
  const wallMs = performance.now() - startedMs;
  await setArchiveCommand(lab, server, '');
  return wallMs;
}

async function untilNoneWaits(lab: Lab, server: LabServer, withinMs: number): Promise<void> {
  const deadline = performance.now() + withinMs;
  while ((await readyNames(server)).length > 0) {
    if (performance.now() > deadline) throw new Error(`wal was not archived within ${withinMs / 1000} s`);
    await sleep(10, undefined, { signal: lab.signal });
  }
}

async function readyNames(server: LabServer): Promise<string[]> {
  return (await readdir(join(server.dataDirectory, 'pg_wal', 'archive_status')))
    .filter((file) => file.endsWith('.ready'))
    .map((file) => file.slice(0, -'.ready'.length))
    .filter((name) => SEGMENT_NAME.test(name))
    .sort();
}

async function setArchiveCommand(lab: Lab, server: LabServer, command: string): Promise<void> {
  await server.sql(`ALTER SYSTEM SET archive_command = '${command.replaceAll("'", "''")}'`);
  await server.sql('SELECT pg_reload_conf()');
  // Sessions that start from now on see the new value at once, the archiver within milliseconds.
  await sleep(command === '' ? 200 : 0, undefined, { signal: lab.signal });
}
