/** A cluster whose WAL is received as it comes, down to the tails, and restores of it through the program. */
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client } from 'pg';

import { stopInstance } from '../../src/postgres/instance.ts';
import { type Lsn, lsnOf, parseLsn } from '../../src/postgres/lsn.ts';
import { timelineOf } from '../../src/postgres/timeline.ts';
import { segmentOfLsn, walSegmentName } from '../../src/postgres/wal-segment.ts';
import { initializeRepository } from '../../src/repository/repository.ts';
import { createIdentityFile, type Identity, readIdentityFile } from '../../src/seal/identity.ts';
import { openerFor, sealerFor } from '../../src/seal/sealers.ts';
import { createLocalStorage } from '../../src/storage/local.ts';
import { storePiece } from '../tail-lab.ts';
import { type BackupLab, createBackupLab } from './backup.ts';
import { giveToServer, scratchDirectory } from './cluster.ts';
import { reachableLauncher } from './launcher.ts';
import { ORACLE_SETTINGS } from './restore.ts';

const SEGMENT_SIZE = 2 ** 20;

export interface TailBench extends AsyncDisposable {
  readonly lab: BackupLab;
  readonly configFile: string;
  /** For `restore_command`, without anything recovery has to reach. */
  readonly fetch: string;
  /** A directory that does not exist yet. */
  place(): string;
  /** The program's own words, in JSON; ends in a rejection where the program would not end with 0. */
  holdfast(...words: string[]): Promise<Record<string, unknown>>;
  /** The rows of the oracle in the server that a restore started, which is then stopped. */
  rowsOf(restored: Record<string, unknown>, dataDirectory: string): Promise<number[]>;
}

export async function createTailBench(seal: 'none' | 'age'): Promise<TailBench> {
  const directory = await scratchDirectory();
  const root = join(directory, 'repository');
  await mkdir(root);
  const identityFile = join(directory, 'identity.txt');
  const recipients: string[] = [];
  let identities: Identity[] = [];
  if (seal === 'age') {
    recipients.push((await createIdentityFile(identityFile, new Date())).recipient);
    identities = await readIdentityFile(identityFile);
  }
  const keys = {
    sealer: await sealerFor(recipients),
    opener: (kind: 'none' | 'age' | 'gpg') => openerFor(kind, identities),
  };
  const { repository } = await initializeRepository('local', createLocalStorage(root), keys, new Date());
  const configFile = join(directory, 'holdfast.yaml');
  await writeFile(
    configFile,
    `clusters:
  lab: { servers: ["postgres://holdfast@localhost/postgres"] }
repositories:
  local: { url: "file://${root}" }
state: ${directory}/state
${seal === 'age' ? `encryption: { recipients: [${recipients.join(', ')}], identity: ${identityFile} }\n` : ''}`,
  );
  const launcher = await reachableLauncher();
  const sources = join(launcher, '..', '..', 'src');
  const program = (await import(join(sources, 'cli', 'program.ts'))) as Pick<
    typeof import('../../src/cli/program.ts'),
    'runProgram'
  >;
  const lab = await createBackupLab({ segmentSizeMb: 1, repository, settings: ORACLE_SETTINGS });
  let places = 0;
  return {
    lab,
    configFile,
    fetch: `HOLDFAST_SOURCE=1 XDG_CACHE_HOME=${directory}/cache '${launcher}' wal fetch %f %p --config ${configFile}`,
    place: () => join(directory, `restored-${(places += 1)}`),
    async holdfast(...words) {
      // The lab writes as this user; the program reads as the server's.
      await giveToServer(directory);
      let out = '';
      const sink = (write: (text: string) => void) => ({ write, isTerminal: false, columns: () => 80 });
      await program.runProgram([...words, '--config', configFile, '--json'], {
        stdout: sink((text) => {
          out += text;
        }),
        stderr: sink(() => undefined),
        environment: process.env,
        directory,
        signal: new AbortController().signal,
      });
      return JSON.parse(out.trimEnd().split('\n').at(-1) ?? '') as Record<string, unknown>;
    },
    async rowsOf(restored, dataDirectory) {
      const { url, socketDirectory } = restored['server'] as { url: string; socketDirectory?: string };
      const client = new Client({ connectionString: url });
      client.on('error', () => undefined);
      await client.connect();
      try {
        const { rows } = await client.query<{ id: number }>('SELECT id FROM oracle ORDER BY id');
        return rows.map(({ id }) => id);
      } finally {
        await client.end();
        await stopInstance(dataDirectory, 'immediate');
        if (socketDirectory !== undefined) await rm(socketDirectory, { recursive: true, force: true });
      }
    },
    async [Symbol.asyncDispose]() {
      await lab[Symbol.asyncDispose]();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/**
 * Stores what the lab's server has flushed, as a receiver would: whole segments, and of the current one what it has no
 * tail of yet. Returns up to where; `short`: so many bytes less.
 */
export async function receive(lab: BackupLab, short = 0): Promise<Lsn> {
  const { cluster, repository, identity } = lab;
  const [row] = await cluster.sql<{ lsn: string; timeline: number }>(
    `SELECT lsn::text, ('x' || left(pg_walfile_name(lsn + 1), 8))::bit(32)::int AS timeline
       FROM pg_current_wal_flush_lsn() AS lsn`,
  );
  const end = lsnOf(parseLsn(row?.lsn ?? '0/0') - BigInt(short));
  await lab.pushWal();
  const segment = segmentOfLsn(end, SEGMENT_SIZE);
  const name = walSegmentName(timelineOf(row?.timeline ?? 1), segment, SEGMENT_SIZE);
  const bytes = await readFile(join(cluster.dataDir, 'pg_wal', name));
  const to = Number(end % BigInt(SEGMENT_SIZE));
  const from = stored.get(`${cluster.dataDir} ${name}`) ?? 0;
  if (to > from) await storePiece(repository, identity, name, bytes, from, to);
  stored.set(`${cluster.dataDir} ${name}`, to);
  return end;
}

const stored = new Map<string, number>();
