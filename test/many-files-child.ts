/**
 * Backs up and restores many small files in a process of its own, so that its peak memory can be asked for:
 * `node test/many-files-child.ts store|again|restore COUNT DIRECTORY`. Prints one JSON line.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';

import { listBackups } from '../src/repository/catalog.ts';
import { commitDataDirectory } from '../src/restore/data-tree.ts';
import { writeBackupFiles } from '../src/restore/write-files.ts';
import { createLocalStorage } from '../src/storage/local.ts';
import { testRepository } from './harness/backup.ts';
import { IDENTITY, storeFiles, type SyntheticEntry } from './harness/synthetic-backup.ts';

const FILES_PER_DIRECTORY = 1000;

/** 8 KiB each, as most relations of a cluster with many tables: a page with a few bytes in it. */
function* manyFiles(count: number): Generator<SyntheticEntry> {
  yield { path: 'base', directory: true };
  yield { path: 'global', directory: true };
  yield { path: 'global/pg_control', pieces: [Buffer.alloc(8192, 1)] };
  const page = Buffer.alloc(8192);
  for (let file = 0; file < count; file += 1) {
    const directory = `base/${Math.floor(file / FILES_PER_DIRECTORY)}`;
    if (file % FILES_PER_DIRECTORY === 0) yield { path: directory, directory: true };
    for (let at = 0; at < 256; at += 4) page.writeUInt32LE((file * 2654435761 + at * 40503) >>> 0, at);
    yield { path: `${directory}/${16_384 + file}`, pieces: [page] };
  }
}

const [what, count = '0', directory = ''] = process.argv.slice(2);
const storageDirectory = join(directory, 'repository');
await mkdir(storageDirectory, { recursive: true });
const repository = await testRepository({ storage: createLocalStorage(storageDirectory) });
const { backups } = await listBackups(repository, IDENTITY);
const previous = backups.at(-1);
const startedMs = performance.now();
let facts: object = {};
if (what === 'restore') {
  if (previous === undefined) throw new Error('there is no backup');
  const targetDirectory = join(directory, 'data');
  await mkdir(targetDirectory);
  facts = await writeBackupFiles({
    repository,
    record: previous,
    targetDirectory,
    tablespaceMapping: new Map(),
    delta: false,
    scratchDirectory: directory,
  });
  await commitDataDirectory(targetDirectory);
} else {
  const id = `2026010${backups.length + 1}T000000Z-0000`;
  const { record } = await storeFiles(repository, id, manyFiles(Number(count)), {
    blockSizeBytes: 32_768,
    ...(previous && { previous }),
  });
  facts = record.stored;
}
const peakMiB = process.resourceUsage().maxRSS / 1024;
console.log(JSON.stringify({ ...facts, peakMiB, elapsedMs: Math.round(performance.now() - startedMs) }));
