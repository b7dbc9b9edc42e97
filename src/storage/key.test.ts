import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { HoldfastError } from '../errors.ts';
import { checkKey, checkPrefix, isKeyComponent, splitKey } from './key.ts';

const component = fc.stringMatching(/^[A-Za-z0-9._-]{1,20}$/).filter(isKeyComponent);
const anyKey = fc.array(component, { minLength: 1, maxLength: 8 }).map((parts) => parts.join('/'));

test('checkKey() takes any key of valid parts, and checkPrefix() any beginning of one', () => {
  fc.assert(
    fc.property(anyKey, fc.nat(200), (key, length) => {
      checkKey(key);
      checkPrefix(key.slice(0, length));
    }),
  );
});

test('checkKey() refuses whatever could leave the root or be read in two ways', () => {
  fc.assert(
    fc.property(
      fc.string({ unit: fc.constantFrom('.', '/', 'a', '\\', '\0', ' ', '~', '%', 'é') }),
      (text) => {
        const harmless = text
          .split('/')
          .every((part) => /^[.a]+$/.test(part) && part !== '.' && part !== '..');
        if (harmless) checkKey(text);
        else assert.throws(() => checkKey(text), HoldfastError);
      },
    ),
    { numRuns: 2000 },
  );
});

test('splitKey() parts a key at its last slash', () => {
  assert.deepEqual(splitKey('a/b/c'), { directory: 'a/b', name: 'c' });
  assert.deepEqual(splitKey('a'), { directory: '', name: 'a' });
});
