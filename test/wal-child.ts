/**
 * A process that pushes WAL files for tests: `node test/wal-child.ts REPOSITORY`. Each line on stdin is the path of a
 * file; the answer is a line on stdout, `stored`, `present`, `repaired`, or the code of the error.
 */
import { writeSync } from 'node:fs';
import { createInterface } from 'node:readline';

import { errorText, HoldfastError } from '../src/errors.ts';
import { createLocalStorage } from '../src/storage/local.ts';
import { pushWal } from '../src/wal/push.ts';
import { openTestRepository } from './wal-lab.ts';

const repository = await openTestRepository(createLocalStorage(process.argv[2] ?? ''));

async function push(path: string): Promise<string> {
  try {
    const result = await pushWal({
      path,
      repositories: [repository],
      cluster: { configured: ['app'] },
      host: `process ${process.pid}`,
      now: () => new Date(),
    });
    return result.stored[0]?.outcome ?? 'nothing';
  } catch (error) {
    return error instanceof HoldfastError ? error.code : errorText(error);
  }
}

writeSync(1, 'ready\n');
for await (const path of createInterface({ input: process.stdin })) writeSync(1, `${await push(path)}\n`);
