import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fitLine, progressLine, RateWindow, timeLeftMs } from './progress.ts';

test('RateWindow measures the last ten seconds only', () => {
  const window = new RateWindow();
  assert.equal(window.rate(), undefined);
  window.add(0, 0);
  assert.equal(window.rate(), undefined);
  window.add(1000, 500);
  assert.equal(window.rate(), 500);
  for (let second = 2; second <= 30; second += 1) window.add(second * 1000, 500 + second * 2000);
  assert.equal(Math.round(window.rate() ?? 0), 2000);
});

test('RateWindow starts again where a count does', () => {
  const window = new RateWindow();
  window.add(0, 1000);
  window.add(1000, 2000);
  window.add(2000, 10);
  assert.equal(window.rate(), undefined);
});

test('progressLine() shows what is known', () => {
  const MIB = 1024 ** 2;
  assert.equal(progressLine('copy', { doneBytes: 5 * MIB }, undefined), 'copy  5.00 MiB');
  assert.equal(
    progressLine('copy', { doneBytes: 256 * MIB, totalBytes: 1024 * MIB, detail: 'base/1' }, 64 * MIB),
    'copy  256 MiB of 1.00 GiB (25%)  64.0 MiB/s  12 s left  base/1',
  );
});

test('timeLeftMs() is never negative and unknown without a rate', () => {
  assert.equal(timeLeftMs({ doneBytes: 20, totalBytes: 10 }, 1), 0);
  assert.equal(timeLeftMs({ doneBytes: 1, totalBytes: 10 }, 0), undefined);
  assert.equal(timeLeftMs({ doneBytes: 1 }, 5), undefined);
});

test('fitLine() cuts to the width and lets no control character through', () => {
  assert.equal(fitLine('abcdefghijklmnop', 12), 'abcdefghij…');
  assert.equal(fitLine('a\u001B[31mb\nc', 80), 'a?[31mb?c');
});
