import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);
const COUNT = Math.round(20_000 * SCALE);
const MOST_MIB = 256;

interface Outcome {
  peakMiB: number;
  files?: number;
  newBlocks?: number;
}

test(`a backup, the next one and a restore of ${COUNT} files stay within ${MOST_MIB} MiB each`, async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'hf-many-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  const child = join(import.meta.dirname, 'many-files-child.ts');
  // As bin/holdfast starts it.
  const options = ['--max-semi-space-size=4'];
  const run = async (what: string): Promise<Outcome> => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      ...options,
      child,
      what,
      String(COUNT),
      directory,
    ]);
    const outcome = JSON.parse(stdout) as Outcome;
    t.diagnostic(`${what}: ${stdout.trim()}`);
    assert.ok(outcome.peakMiB <= MOST_MIB, `${what} took ${outcome.peakMiB} MiB`);
    return outcome;
  };
  assert.equal((await run('store')).newBlocks, COUNT + 1);
  assert.equal((await run('again')).newBlocks, 0);
  assert.equal((await run('restore')).files, COUNT + 1);
});
