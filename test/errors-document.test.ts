import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { ERRORS } from '../src/errors.ts';

const document = await readFile(new URL('../docs/errors.md', import.meta.url), 'utf8');

test('docs/errors.md lists every code, in the order of ERRORS, with its exit status and whether to try again', () => {
  const rows = Array.from(
    document.matchAll(/^\| `([a-z-]+)` \| (\d+) \| (yes|no) \| (.+) \| (.+) \|$/gm),
    (row) => [row[1], Number(row[2]), row[3] === 'yes'],
  );
  const codes = Object.entries(ERRORS).map(([code, { exit, retryable }]) => [code, exit, retryable]);
  assert.deepEqual(rows, codes);
});

test('docs/errors.md explains every exit status', () => {
  const explained = Array.from(document.matchAll(/^\| (\d+) \| [^|]+ \|$/gm), (row) => Number(row[1]));
  const used = [0, ...Object.values(ERRORS).map(({ exit }) => exit)];
  assert.deepEqual(explained, [...new Set(used)]);
});
