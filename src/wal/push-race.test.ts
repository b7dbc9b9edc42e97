import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { readWalHeader, readWholeWalFile } from '../repository/wal-file.ts';
import { createLocalStorage } from '../storage/local.ts';
import { createWalLab, openTestRepository, SEGMENT_SIZE, SYSTEM_IDENTIFIER } from '../../test/wal-lab.ts';

const CHILD = fileURLToPath(new URL('../../test/wal-child.ts', import.meta.url));
const SCALE = Number(process.env['HOLDFAST_TEST_SCALE'] ?? 1);

interface Pusher extends AsyncDisposable {
  push(path: string): Promise<string>;
}

async function startPusher(root: string): Promise<Pusher> {
  const child = spawn(process.execPath, [CHILD, root], { stdio: ['pipe', 'pipe', 'inherit'] });
  const closed = new Promise((resolve) => child.once('close', resolve));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async (): Promise<string> => {
    const line = await lines.next();
    return line.done === true ? 'the process ended' : line.value;
  };
  assert.equal(await answer(), 'ready');
  return {
    push: async (path) => {
      child.stdin.write(`${path}\n`);
      return answer();
    },
    async [Symbol.asyncDispose]() {
      child.stdin.end();
      await closed;
    },
  };
}

test('pushWal() in two processes under one name: one content wins, the other is refused, nothing is overwritten', async () => {
  await using lab = await createWalLab();
  await using other = await createWalLab();
  const root = join(lab.directory, 'repository');
  await mkdir(root);
  const repository = await openTestRepository(createLocalStorage(root));
  await using one = await startPusher(root);
  await using two = await startPusher(root);
  const identity = { cluster: 'app', systemIdentifier: SYSTEM_IDENTIFIER };
  const wins = [0, 0];
  for (let round = 1; round <= 50 * SCALE; round += 1) {
    const contenders = [
      await lab.segment({ segment: round }),
      await other.segment({ segment: round, seed: 2 }),
    ];
    const [mine, theirs] = contenders;
    assert.ok(mine && theirs);
    // Whoever is told first has a head start.
    const second = round % 2 === 0 ? undefined : two.push(theirs.path);
    const answers = await Promise.all([one.push(mine.path), second ?? two.push(theirs.path)]);
    assert.deepEqual(answers.toSorted(), ['stored', 'wal-conflict'], `round ${round}: ${answers.join(', ')}`);
    const winner = answers.indexOf('stored');
    wins[winner] = (wins[winner] ?? 0) + 1;
    const header = await readWalHeader(repository, identity, mine.name);
    assert.ok(header);
    const bytes = await readWholeWalFile(repository, header, SEGMENT_SIZE);
    assert.ok(contenders[winner]?.bytes.equals(bytes), `round ${round}: ${answers.join(', ')}`);
    // Both know it ever after.
    const again = await Promise.all([one.push(theirs.path), two.push(mine.path)]);
    assert.deepEqual(again, winner === 0 ? ['wal-conflict', 'present'] : ['present', 'wal-conflict']);
  }
  assert.ok(Math.min(...wins) > 0, `the two never raced: ${wins.join(' to ')}`);
});
