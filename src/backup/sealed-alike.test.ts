import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isSealedAlike } from './sealed-alike.ts';

const ada = 'age1ada';
const bob = 'age1bob';
const cases: [name: string, earlier: string[] | 'none', now: string[] | 'none', expected: boolean][] = [
  ['both in clear', 'none', 'none', true],
  ['encryption turned on', 'none', [ada], false],
  ['encryption turned off', [ada], 'none', false],
  ['the same recipients in another order', [ada, bob], [bob, ada], true],
  ['a recipient removed', [ada, bob], [ada], true],
  ['a recipient added', [ada], [ada, bob], false],
  ['a recipient replaced', [ada], [bob], false],
];

for (const [name, earlier, now, expected] of cases) {
  test(`isSealedAlike() with ${name}: ${expected ? 'packs may be shared' : 'everything is stored anew'}`, () => {
    assert.equal(isSealedAlike(sealOf(earlier), sealOf(now)), expected);
  });
}

function sealOf(recipients: string[] | 'none'): { kind: 'none' | 'age'; recipients: string[] } {
  return recipients === 'none' ? { kind: 'none', recipients: [] } : { kind: 'age', recipients };
}
