import assert from 'node:assert/strict';
import { test } from 'node:test';

import { cacheDirectory, defaultStateDirectory } from './state-directory.ts';

test('defaultStateDirectory() follows XDG_STATE_HOME where it is absolute', () => {
  assert.equal(defaultStateDirectory({ XDG_STATE_HOME: '/x' }, '/home/u'), '/x/holdfast');
  assert.equal(defaultStateDirectory({ XDG_STATE_HOME: 'x' }, '/home/u'), '/home/u/.local/state/holdfast');
  assert.equal(defaultStateDirectory({}, '/home/u'), '/home/u/.local/state/holdfast');
});

test('cacheDirectory() follows XDG_CACHE_HOME where it is absolute', () => {
  assert.equal(cacheDirectory({ XDG_CACHE_HOME: '/x' }, '/home/u'), '/x/holdfast');
  assert.equal(cacheDirectory({}, '/home/u'), '/home/u/.cache/holdfast');
});
