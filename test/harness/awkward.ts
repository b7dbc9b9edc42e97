/** A database with everything in it that backups get wrong, and what must be equal in a restored one. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, mkdir, open, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

import type { BaseBackupSink } from '../../src/postgres/base-backup-reader.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import { giveToServer, type TestCluster } from './cluster.ts';

export interface Awkward {
  /** Locations of the tablespaces outside the data directory. */
  locations: string[];
  /** Relative to the data directory, as bytes: a file and a directory that no server makes. */
  oddFile: Buffer;
  emptyDirectory: string;
}

const ODD_DATABASE = `we"ird 'name'\nof a database`;
const ODD_TABLE = `ta"ble 'of'\nlines`;

/**
 * Fills a running cluster. `holes` adds a relation of more than 1 GiB that is almost all zeros. Needs
 * `max_prepared_transactions`.
 */
export async function makeAwkward(cluster: TestCluster, options: { holes: boolean }): Promise<Awkward> {
  const locations = [join(cluster.scratch, 'space one'), join(cluster.scratch, `zwei "größe" \\ und\nZeile`)];
  for (const location of locations) await mkdir(location);
  await giveToServer(cluster.scratch);
  const client = await cluster.connect();
  for (const [index, location] of locations.entries()) {
    await client.query(`CREATE TABLESPACE "space ${index}" LOCATION E'${location.replaceAll('\\', '\\\\')}'`);
  }
  // PostgreSQL 15 leaves tablespaces in place out of its base backups.
  if (cluster.major > 15) {
    await client.query('SET allow_in_place_tablespaces = on');
    await client.query(`CREATE TABLESPACE inplace LOCATION ''`);
    await client.query('CREATE TABLE in_place TABLESPACE inplace AS SELECT generate_series(1, 5000) AS i');
  }
  await client.query(`CREATE DATABASE ${quoted(ODD_DATABASE)} TABLESPACE "space 1"`);
  await client.query(TABLES);
  await client.query(
    `BEGIN; INSERT INTO plain VALUES (-1, 'prepared'); PREPARE TRANSACTION 'it''s "two" phase'`,
  );
  await client.end();
  await cluster.sql(
    `CREATE TABLE ${quoted(ODD_TABLE)} AS SELECT i, md5(i::text) FROM generate_series(1, 999) i`,
    ODD_DATABASE,
  );
  if (options.holes) await makeHoles(cluster);

  const oddFile = Buffer.from([0x6f, 0x64, 0x64, 0xff, 0xfe, 0x0a, 0x27, 0x22, 0x20, 0x7e]);
  await writeFile(Buffer.concat([Buffer.from(`${cluster.dataDir}/`), oddFile]), 'kept all the same');
  const emptyDirectory = 'an empty directory';
  await mkdir(join(cluster.dataDir, emptyDirectory));
  await giveToServer(cluster.dataDir);
  return { locations, oddFile, emptyDirectory };
}

const TABLES = `
  CREATE TABLE plain (id int PRIMARY KEY, note text);
  INSERT INTO plain SELECT i, repeat('note ' || i, 3) FROM generate_series(1, 20000) AS i;
  CREATE TABLE toasted (id int, big text);
  ALTER TABLE toasted ALTER COLUMN big SET STORAGE EXTERNAL;
  INSERT INTO toasted SELECT i, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 800) j)
    FROM generate_series(1, 40) AS i;
  CREATE TABLE parts (at date NOT NULL, value int) PARTITION BY RANGE (at);
  CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
  CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-07-01') TO ('2027-01-01') TABLESPACE "space 0";
  INSERT INTO parts SELECT date '2026-01-01' + i % 365, i FROM generate_series(1, 5000) AS i;
  CREATE INDEX ON parts (value);
  CREATE UNLOGGED TABLE forgotten (id serial, text text);
  INSERT INTO forgotten (text) SELECT 'unlogged' FROM generate_series(1, 3000);
  CREATE SEQUENCE counted START 17;
  SELECT nextval('counted'), nextval('counted');
  CREATE MATERIALIZED VIEW seen AS SELECT id % 10 AS digit, count(*) FROM plain GROUP BY 1;
  CREATE MATERIALIZED VIEW unseen AS SELECT 1 AS one WITH NO DATA;
  CREATE TABLE nothing_in_it ();
  CREATE TABLE emptied AS SELECT generate_series(1, 5000) AS i;
  TRUNCATE emptied;
  SELECT lo_from_bytea(0, decode(repeat('c0ffee', 20000), 'hex')), lo_from_bytea(0, '');
  CREATE TABLE elsewhere (id int PRIMARY KEY USING INDEX TABLESPACE "space 1") TABLESPACE "space 0";
  INSERT INTO elsewhere SELECT generate_series(1, 8000);
`;

/** Rows at the start and behind 1 GiB of zero pages: a relation of two files, nearly all holes. */
async function makeHoles(cluster: TestCluster): Promise<void> {
  const [row] = await cluster.sql<{ path: string }>(`
    CREATE TABLE holes (id int, text text) WITH (autovacuum_enabled = off);
    INSERT INTO holes SELECT i, 'first' FROM generate_series(1, 1000) AS i;
    CHECKPOINT;
    SELECT pg_relation_filepath('holes') AS path`);
  const path = join(cluster.dataDir, row?.path ?? '');
  await cluster.stop();
  await truncate(path, 2 ** 30);
  await (await open(`${path}.1`, 'w')).close();
  await truncate(`${path}.1`, 5 * 8192);
  await giveToServer(join(cluster.dataDir, 'base'));
  await cluster.start();
  await cluster.sql(`INSERT INTO holes SELECT i, 'last' FROM generate_series(1001, 2000) AS i; CHECKPOINT`);
  const [size] = await cluster.sql<{ size: string }>(`SELECT pg_relation_size('holes')::text AS size`);
  assert.ok(Number(size?.size) > 2 ** 30);
}

/** Everything a restored cluster must have in common with its source, as text: by database and relation. */
export async function digestCluster(cluster: TestCluster): Promise<string> {
  const lines: string[] = [];
  const say = async (what: string, text: string, database?: string): Promise<void> => {
    for (const row of await cluster.sql<object>(text, database))
      lines.push(`${what}: ${JSON.stringify(row)}`);
  };
  await say('role', 'SELECT rolname, rolsuper FROM pg_roles ORDER BY 1');
  await say('tablespace', 'SELECT oid::int, spcname FROM pg_tablespace ORDER BY 1');
  await say('prepared', 'SELECT gid, owner, database, transaction::text FROM pg_prepared_xacts ORDER BY 1');
  for (const name of await databases(cluster)) {
    lines.push(`database ${JSON.stringify(name)}`);
    const relations = await cluster.sql<{ name: string; kind: string }>(RELATIONS, name);
    for (const { name: relation, kind } of relations) {
      const text = kind === 'S' ? `SELECT last_value, is_called FROM ${relation}` : contentOf(relation);
      await say(relation, text, name);
    }
    await say(
      'large objects',
      `SELECT count(*), md5(string_agg(loid || ':' || pageno || md5(data), ',' ORDER BY loid, pageno)) FROM pg_largeobject`,
      name,
    );
    await say('large objects', 'SELECT count(*) FROM pg_largeobject_metadata', name);
    await say(
      'catalog',
      `SELECT md5(string_agg(c::text, ',' ORDER BY c.oid)) FROM
      (SELECT oid, relname, relnamespace, reltablespace, relkind, relpersistence, relnatts, relispopulated FROM pg_class) AS c`,
      name,
    );
  }
  return lines.join('\n');
}

const RELATIONS = `
  SELECT c.oid::regclass::text AS name, relkind AS kind FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
   WHERE relkind IN ('r', 'm', 'S') AND relpersistence = 'p' AND relispopulated
     AND nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema' ORDER BY 1`;

function contentOf(relation: string): string {
  return `SELECT count(*), md5(string_agg(m, '' ORDER BY m)) AS md5 FROM (SELECT md5(t::text) AS m FROM ONLY ${relation} AS t) AS rows`;
}

async function databases(cluster: TestCluster): Promise<string[]> {
  const rows = await cluster.sql<{ datname: string }>(
    'SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1',
  );
  return rows.map(({ datname }) => datname);
}

/** Checks every index against its table and every heap (amcheck), and every page's checksum (by the server itself). */
export async function assertSound(cluster: TestCluster): Promise<void> {
  for (const name of await databases(cluster)) {
    await cluster.sql('CREATE EXTENSION IF NOT EXISTS amcheck', name);
    await cluster.sql(
      `SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_index i ON indexrelid = c.oid JOIN pg_am a ON a.oid = relam
        WHERE relkind = 'i' AND amname = 'btree' AND relpersistence = 'p' AND indisvalid`,
      name,
    );
    const findings = await cluster.sql(
      `SELECT c.oid::regclass::text AS relation, v.* FROM pg_class c, LATERAL verify_heapam(c.oid) AS v
        WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p' AND relam <> 0 AND pg_relation_size(c.oid) < 2 ^ 28`,
      name,
    );
    assert.deepEqual(findings, []);
  }
  await using connection = await connectReplication(cluster.url);
  await connection.baseBackup({ label: 'checksums' }, NOWHERE);
}

const NOWHERE: BaseBackupSink = {
  begin: () => undefined,
  entry: () => undefined,
  data: () => undefined,
  entryEnd: () => undefined,
  manifest: () => undefined,
  progress: () => undefined,
};

/** The hash of `pg_dump` of every database; undefined where this machine has none of the cluster's major version. */
export async function hashDumps(cluster: TestCluster): Promise<string | undefined> {
  const hashes: string[] = [];
  for (const name of await databases(cluster)) {
    const dump = await runTool(cluster, 'pg_dump', [
      '--no-unlogged-table-data',
      `--dbname=${connectionOf(name)}`,
    ]);
    if (dump === undefined) return undefined;
    // Newer minor versions put a random key into every dump.
    const text = dump.replaceAll(/^\\(un)?restrict .*$/gm, '');
    hashes.push(`${name}: ${createHash('sha256').update(text).digest('hex')}`);
  }
  return hashes.join('\n');
}

/** PostgreSQL's own check of everything; does nothing where this machine has none of the cluster's major version. */
export async function runAmcheck(cluster: TestCluster): Promise<void> {
  await runTool(cluster, 'pg_amcheck', [
    '--all',
    '--heapallindexed',
    '--install-missing',
    '--exclude-table=*.holes',
  ]);
}

async function runTool(cluster: TestCluster, name: string, options: string[]): Promise<string | undefined> {
  const path = join(cluster.binaries.directory, name);
  const there = await access(path).then(
    () => true,
    () => false,
  );
  if (!there) return undefined;
  const server = ['--host', cluster.socketDir, '--port', String(cluster.port), '--username', 'postgres'];
  return (await promisify(execFile)(path, [...server, ...options], { maxBuffer: 2 ** 28 })).stdout;
}

function connectionOf(database: string): string {
  return `dbname='${database.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
