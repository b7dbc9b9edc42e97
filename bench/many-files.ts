import { join } from 'node:path';

import { archiveWith, type Lab, type LabServer, withServer } from './lab.ts';
import type { Measured } from './measure.ts';
import { holdfastTool } from './tools.ts';

export interface ManyFilesResult {
  files: number;
  commands: { name: string; measured: Measured }[];
}

const TABLES_PER_DATABASE = 20_000;
const TABLES_PER_TRANSACTION = 1000;

/**
 * What Holdfast's commands need on a cluster of very many small relations: one row each, so that every file has a block.
 * That cluster runs without fsync: it is about memory, and it is Holdfast's files that are synced all the same.
 */
export async function measureManyFiles(lab: Lab, files: number): Promise<ManyFilesResult> {
  const settings = { fsync: 'off', autovacuum: 'off', archive_mode: 'on', archive_command: '/bin/true' };
  return withServer(lab, 'many', { ...settings, max_wal_size: '4GB' }, async (server) => {
    const databases = Math.ceil(files / TABLES_PER_DATABASE);
    await createTables(server, Math.ceil(files / databases));
    for (let number = 1; number < databases; number += 1) {
      await server.sql(`CREATE DATABASE many${number} TEMPLATE many STRATEGY file_copy`);
    }
    lab.say(`a cluster with ${databases * Math.ceil(files / databases)} tables made`);
    const holdfast = await holdfastTool(lab, server, 'many-repository');
    await holdfast.reset();
    await archiveWith(lab, server, holdfast.archiveCommand);
    const commands: ManyFilesResult['commands'] = [];
    const add = (name: string, measured: Measured): void => {
      commands.push({ name, measured });
      lab.say(
        `${name}: ${(measured.wallMs / 1000).toFixed(2)} s, ${Math.round(measured.peakBytes / 2 ** 20)} MiB`,
      );
    };
    add('backup base, the first', await holdfast.backup('full'));
    await server.sql('CHECKPOINT');
    add('backup base, nothing changed', await holdfast.backup('incremental'));
    const [count] = await server.sql<{ files: number }>(
      "SELECT count(*)::int AS files FROM pg_ls_dir('base') AS d, LATERAL pg_ls_dir('base/' || d)",
    );
    add('restore base', await holdfast.restore(await lab.fresh('many-restored')));
    await lab.run('rm', ['-r', join(lab.scratch, 'many-restored')]);
    add('list', await holdfast.command('list', 'bench'));
    return { files: count?.files ?? 0, commands };
  });
}

async function createTables(server: LabServer, tables: number): Promise<void> {
  await server.sql('CREATE DATABASE many');
  const url = server.instance.url({ database: 'many' });
  for (let first = 1; first <= tables; first += TABLES_PER_TRANSACTION) {
    const last = Math.min(tables, first + TABLES_PER_TRANSACTION - 1);
    await server.sql(
      `DO $$ BEGIN FOR n IN ${first}..${last} LOOP EXECUTE 'CREATE TABLE t' || n || ' AS SELECT ' || n || ' AS n'; END LOOP; END $$`,
      url,
    );
  }
}
