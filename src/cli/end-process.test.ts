import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';

/** A program that runs `body` with `endProcess` and `writeThrough` at hand. */
async function program(t: TestContext, body: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-end-'));
  t.after(async () => rm(directory, { recursive: true }));
  const file = join(directory, 'program.mjs');
  const source = new URL('./end-process.ts', import.meta.url).href;
  await writeFile(file, `import { endProcess, writeThrough } from '${source}';\n${body}\n`);
  return file;
}

const environment = { PATH: process.env['PATH'] };

test('endProcess() ends with the status, under NODE_OPTIONS too, after the listeners of the end', async (t) => {
  const file = await program(
    t,
    "process.on('exit', (status) => process.stdout.write(`end ${status}`));\nendProcess(Number(process.argv[2]));",
  );
  for (const status of [0, 1, 66, 126, 130]) {
    for (const more of [{}, { NODE_OPTIONS: '--no-warnings' }]) {
      const env = { ...environment, ...more };
      const ended = spawnSync(process.execPath, [file, `${status}`], { env, encoding: 'utf8' });
      assert.deepEqual([ended.status, ended.stdout, ended.stderr], [status, `end ${status}`, '']);
    }
  }
});

test('endProcess() loses nothing that was written to a slow pipe, however much', async (t) => {
  const file = await program(
    t,
    `for (const stream of [process.stdout, process.stderr]) writeThrough(stream);
process.stdout.write('x'.repeat(500_000) + 'end');
endProcess(3);`,
  );
  const child = spawn('sh', ['-c', `"$0" "$1" | (sleep 0.5; wc -c)`, process.execPath, file], {
    env: environment,
  });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  await new Promise((resolve) => child.on('close', resolve));
  assert.equal(output.trim(), '500003');
});

test('writeThrough() leaves a pipe that others write to as they know it, while the program runs and after', async (t) => {
  const flags = "'flags:' && cat /proc/self/fdinfo/2";
  const file = await program(
    t,
    `import { readFileSync } from 'node:fs';
for (const stream of [process.stdout, process.stderr]) writeThrough(stream);
process.stderr.write('x');
process.stdout.write(readFileSync('/proc/self/fdinfo/2', 'utf8'));
endProcess(0);`,
  );
  const words = ['-c', `"$0" "$1" && echo ${flags}`, process.execPath, file];
  const { stdout, stderr } = spawnSync('sh', words, { env: environment, encoding: 'utf8' });
  assert.equal(stderr, 'x');
  const modes = [...stdout.matchAll(/^flags:\t(\d+)$/gm)].map((match) => Number.parseInt(match[1] ?? '', 8));
  assert.equal(modes.length, 2, stdout);
  for (const mode of modes) assert.equal(mode & 0o4000, 0, 'it was left non-blocking');
});

test('endProcess() keeps what Node compiled', async (t) => {
  const file = await program(t, 'endProcess(0);');
  const cache = join(file, '..', 'cache');
  const env = { ...environment, NODE_COMPILE_CACHE: cache };
  assert.equal(spawnSync(process.execPath, [file], { env }).status, 0);
  assert.ok((await readdir(cache, { recursive: true })).length > 1);
});
