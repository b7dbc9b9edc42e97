import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { join, posix } from 'node:path';
import { test } from 'node:test';

import {
  anchors,
  documents,
  fencedBlocks,
  linkTargets,
  readDocument,
  ROOT,
  shellCommands,
} from './markdown.ts';

/** Why a link of a document leads nowhere, or undefined. `read` gives a document's text, or undefined. */
async function faultOf(
  document: string,
  target: string,
  read: (path: string) => Promise<string | undefined>,
): Promise<string | undefined> {
  if (/^[a-z][a-z0-9+.-]*:/.test(target)) return undefined;
  if (target.startsWith('/')) return 'it begins at the root of a file system';
  const [path = '', anchor] = target.split('#', 2);
  const file = path === '' ? document : posix.normalize(posix.join(posix.dirname(document), decodeURI(path)));
  if (file.startsWith('..')) return 'it leads out of the checkout';
  const text = await read(file);
  if (text === undefined) return `${file} is not there`;
  if (anchor === undefined) return undefined;
  return anchors(text).includes(anchor) ? undefined : `${file} has no heading #${anchor}`;
}

async function readAny(path: string): Promise<string | undefined> {
  const info = await stat(join(ROOT, path)).catch(() => undefined);
  if (info === undefined) return undefined;
  return info.isFile() && path.endsWith('.md') ? readDocument(path) : '';
}

test('every link of every document leads somewhere', async () => {
  const faults: string[] = [];
  let links = 0;
  for (const document of await documents()) {
    for (const target of linkTargets(await readDocument(document))) {
      links += 1;
      const fault = await faultOf(document, target, readAny);
      if (fault !== undefined) faults.push(`${document}: (${target}): ${fault}`);
    }
  }
  assert.deepEqual(faults, []);
  assert.ok(links > 10, 'links are found at all');
});

test('a link is at fault that leads to no file, no heading or out of the checkout', async () => {
  const files: Record<string, string> = {
    'docs/a.md': '# One\n\n## Two, `three` (four)\n\n## Two three four\n\n```\n# no heading\n```\n',
    'README.md': 'x',
  };
  const fault = (target: string): Promise<string | undefined> =>
    faultOf('docs/a.md', target, (path) => Promise.resolve(files[path]));
  assert.equal(await fault('https://example.org/x#y'), undefined);
  assert.equal(await fault('../README.md'), undefined);
  assert.equal(await fault('#one'), undefined);
  assert.equal(await fault('a.md#two-three-four-1'), undefined);
  for (const bad of ['b.md', '../../x.md', '/etc/x', '#two', '#no-heading', '../README.md#x']) {
    assert.notEqual(await fault(bad), undefined, bad);
  }
});

test('linkTargets() takes links of the prose, not of code', () => {
  const text = 'a [b](c.md#d), `[x](y)`\n```\n[no](z.md)\n```\n[e](https://f.g/h_(i)) ![k](l.png)';
  assert.deepEqual(linkTargets(text), ['c.md#d', 'https://f.g/h_(i)', 'l.png']);
});

test('fencedBlocks() finds blocks in lists too, with language, line and heading', () => {
  const text = '# A\n```sh\nx\n```\n1. y\n\n   ## B\n\n   ```\n   z\n     w\n   ```\n';
  assert.deepEqual(
    fencedBlocks(text).map(({ line, language, text: inside, heading }) => [line, language, inside, heading]),
    [
      [2, 'sh', 'x', 'A'],
      [9, '', 'z\n  w', 'A'],
    ],
  );
  assert.throws(() => fencedBlocks('```sh\nx\n'), /has no end/);
});

test('shellCommands() splits as a shell does, and refuses what it does not know', () => {
  assert.deepEqual(shellCommands("a b  # c d\n\n# e\nf \"g h\" 'i\"j' && k\\ l \\\n  m='n o'p#q"), [
    ['a', 'b'],
    ['f', 'g h', 'i"j'],
    ['k l', 'm=n op#q'],
  ]);
  for (const unknown of ['a | b', 'a > b', 'a; b', 'a $b', 'a "$b"', "a 'b", 'ls *']) {
    assert.throws(() => shellCommands(unknown), unknown);
  }
});
