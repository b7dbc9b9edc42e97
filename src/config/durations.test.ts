import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { formatDuration, parseDuration } from './durations.ts';

test('parseDuration() reads units alone and in a row', () => {
  const cases: [string, number][] = [
    ['500ms', 500],
    ['5s', 5000],
    ['10m', 600_000],
    ['1.5h', 5_400_000],
    ['1h30m', 5_400_000],
    ['7d', 604_800_000],
    ['2 w', 1_209_600_000],
  ];
  for (const [text, ms] of cases) assert.equal(parseDuration(text), ms, text);
});

test('parseDuration() refuses a bare number, signs and unknown units', () => {
  for (const text of ['', '5', '-5s', '5 parsecs', '1h30', 's', '5s!', '0.0001ms']) {
    assert.throws(() => parseDuration(text), { code: 'config-invalid' }, text);
  }
});

test('parseDuration() adds up', () => {
  const part = fc.nat({ max: 10_000 });
  fc.assert(
    fc.property(part, part, (minutes, ms) => parseDuration(`${minutes}m${ms}ms`) === minutes * 60_000 + ms),
  );
});

test('formatDuration() shows the two largest units', () => {
  const cases: [number, string][] = [
    [340, '340 ms'],
    [4230, '4.2 s'],
    [9960, '10 s'],
    [59_600, '1 min'],
    [200_000, '3 min 20 s'],
    [7_500_000, '2 h 5 min'],
    [273_600_000, '3 d 4 h'],
  ];
  for (const [ms, text] of cases) assert.equal(formatDuration(ms), text);
});
