/**
 * One base backup with a block size that the command line does not offer; prints what it took as JSON.
 * `node bench/block-size-backup.ts REPOSITORY STATE SERVER-URL BLOCK-BYTES`
 */
import { takeBaseBackup } from '../src/backup/base-backup.ts';
import { systemClock } from '../src/clock.ts';
import { connect } from '../src/postgres/connection.ts';
import { inspectServer } from '../src/postgres/inspect-server.ts';
import { openRepository } from '../src/repository/repository.ts';
import { openerFor, sealerFor } from '../src/seal/sealers.ts';
import { createLocalStorage } from '../src/storage/local.ts';

const [root = '', stateDirectory = '', url = '', blockBytes = ''] = process.argv.slice(2);
const repository = await openRepository('local', createLocalStorage(root), {
  sealer: await sealerFor([]),
  opener: (kind) => openerFor(kind, []),
});
await using connection = await connect(url);
const facts = await inspectServer(connection);
const startedMs = performance.now();
const { stored } = await takeBaseBackup({
  repository,
  identity: { cluster: 'bench', systemIdentifier: facts.systemIdentifier },
  server: {
    url,
    version: facts.versionNumber,
    versionText: facts.versionText,
    role: 'primary',
    reason: 'the only one',
  },
  label: '',
  pinned: false,
  stateDirectory,
  programVersion: 'bench',
  clock: systemClock,
  walTimeoutMs: 60_000,
  blockSizeBytes: Number(blockBytes),
  report: () => undefined,
});
console.log(JSON.stringify({ wallMs: performance.now() - startedMs, newBytes: stored.newBytes }));
