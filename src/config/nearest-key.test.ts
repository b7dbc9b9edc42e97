import assert from 'node:assert/strict';
import { test } from 'node:test';

import { nearestKey } from './nearest-key.ts';

const KEYS = ['prefer', 'maxLag', 'maxWait', 'fallback', 'wal'];

test('nearestKey() finds slips, swaps and other spellings', () => {
  const cases: [string, string][] = [
    ['max_lag', 'maxLag'],
    ['max-wait', 'maxWait'],
    ['perfer', 'prefer'],
    ['falback', 'fallback'],
    ['wall', 'wal'],
  ];
  for (const [given, meant] of cases) assert.equal(nearestKey(given, KEYS), meant, given);
});

test('nearestKey() suggests nothing where nothing is near', () => {
  for (const given of ['', 'x', 'compression', 'retention'])
    assert.equal(nearestKey(given, KEYS), undefined, given);
});
