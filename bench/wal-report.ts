/**
 * `npm run bench:wal`: streaming, pushing and recovering WAL beside pgBackRest, and what a crash of primary and receiver
 * costs, one bench after the other; writes the part about WAL of docs/performance.md. About half an hour. Needs PostgreSQL
 * 15 and pgbackrest. The benches' own settings (see each) are taken from the environment.
 */
import { spawn } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { withWalPart } from './wal-page.ts';
import type { FetchResult, LossResult, PushResult, StreamResult, WalReport } from './wal-results.ts';

const report: WalReport = {
  date: new Date().toISOString().slice(0, 10),
  stream: (await run('wal-stream.ts')) as StreamResult,
  push: (await run('wal-push.ts')) as PushResult,
  fetch: (await run('wal-fetch.ts')) as FetchResult,
  loss: (await run('wal-loss.ts')) as LossResult,
};
const page = join(import.meta.dirname, '..', 'docs', 'performance.md');
await writeFile(page, withWalPart(await readFile(page, 'utf8'), report));
console.error('docs/performance.md written');

/** The JSON that a bench prints; what it says on the way goes through. */
async function run(name: string): Promise<unknown> {
  console.error(`== ${name}`);
  const child = spawn(process.execPath, [join(import.meta.dirname, name)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  child.stdout.setEncoding('utf8');
  let printed = '';
  child.stdout.on('data', (text: string) => (printed += text));
  const code = await new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  if (code !== 0) throw new Error(`${name} ended with status ${String(code)}`);
  return JSON.parse(printed);
}
