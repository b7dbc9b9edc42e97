import assert from 'node:assert/strict';
import { chmod, copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { connect } from '../../src/postgres/connection.ts';
import { connectReplication } from '../../src/postgres/replication.ts';
import { type TestCluster, createCluster, giveToServer } from '../harness/cluster.ts';
import { freePort } from '../harness/free-port.ts';

/** A key for nothing but these tests; the certificate is for `localhost` and signed by itself. */
const VECTORS = join(import.meta.dirname, '../vectors/tls');
const ROOT = encodeURIComponent(join(VECTORS, 'server.crt'));

async function tlsCluster(options: { hostLines: string; ssl: boolean }): Promise<TestCluster> {
  const cluster = await createCluster({
    port: await freePort(),
    start: false,
    settings: options.ssl ? { ssl: 'on' } : {},
  });
  for (const name of ['server.key', 'server.crt']) {
    await copyFile(join(VECTORS, name), join(cluster.dataDir, name));
    await chmod(join(cluster.dataDir, name), 0o600);
  }
  await writeFile(join(cluster.dataDir, 'pg_hba.conf'), `local all all trust\n${options.hostLines}\n`);
  await giveToServer(cluster.dataDir);
  await cluster.start();
  return cluster;
}

async function usesTls(url: string): Promise<boolean> {
  await using connection = await connect(url);
  const [row] = await connection.query<{ ssl: boolean }>(
    'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()',
  );
  assert.ok(row !== undefined);
  return row.ssl;
}

const ANY = 'host all,replication all 127.0.0.1/32 trust';

void describe('connect() with TLS', () => {
  void it('connect() follows sslmode as libpq does', async () => {
    await using cluster = await tlsCluster({ hostLines: ANY, ssl: true });
    const url = (host: string, query: string): string =>
      `postgres://postgres@${host}:${cluster.port}/postgres${query}`;
    assert.equal(await usesTls(url('127.0.0.1', '')), true);
    assert.equal(await usesTls(url('127.0.0.1', '?sslmode=disable')), false);
    assert.equal(await usesTls(url('127.0.0.1', '?sslmode=require')), true);
    assert.equal(await usesTls(url('localhost', `?sslmode=verify-full&sslrootcert=${ROOT}`)), true);
    assert.equal(await usesTls(url('127.0.0.1', `?sslmode=verify-ca&sslrootcert=${ROOT}`)), true);
    await assert.rejects(connect(url('127.0.0.1', `?sslmode=verify-full&sslrootcert=${ROOT}`)), {
      code: 'connection-failed',
      message: /altnames/,
    });
    await assert.rejects(connect(url('localhost', '?sslmode=verify-full')), {
      code: 'connection-failed',
      message: /self-signed/,
    });
  });

  void it('connect() without sslmode takes a plain connection where there is no other', async () => {
    await using plain = await tlsCluster({ hostLines: ANY, ssl: false });
    const url = `postgres://postgres@127.0.0.1:${plain.port}/postgres`;
    assert.equal(await usesTls(url), false);
    await assert.rejects(connect(`${url}?sslmode=require`), { code: 'connection-failed', message: /SSL/ });

    await using picky = await tlsCluster({ hostLines: ANY.replace('host', 'hostnossl'), ssl: true });
    assert.equal(await usesTls(`postgres://postgres@127.0.0.1:${picky.port}/postgres`), false);
  });

  void it('baseBackup() comes whole through TLS', async () => {
    await using cluster = await tlsCluster({ hostLines: ANY.replace('host', 'hostssl'), ssl: true });
    await using connection = await connectReplication(
      `postgres://postgres@127.0.0.1:${cluster.port}/postgres?sslmode=require`,
    );
    let expected = 0;
    let arrived = 0;
    let manifest = '';
    await connection.baseBackup(
      { label: 'tls' },
      {
        begin: () => undefined,
        entry: (entry) => {
          expected += entry.sizeBytes;
        },
        data: (chunk) => {
          arrived += chunk.length;
        },
        entryEnd: () => undefined,
        manifest: (chunk) => {
          manifest += chunk.toString('latin1');
        },
        progress: () => undefined,
      },
    );
    assert.ok(arrived > 10_000_000);
    assert.equal(arrived, expected);
    assert.match(manifest, /"Manifest-Checksum": "[0-9a-f]{64}"\}\s*$/);
  });
});
