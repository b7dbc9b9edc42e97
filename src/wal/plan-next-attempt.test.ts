import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { isDue, planNextAttempt } from './plan-next-attempt.ts';

const start = Date.UTC(2026, 0, 1);

test('planNextAttempt() doubles the time between attempts, from 10 s to 5 min', () => {
  const since = new Date(start).toISOString();
  let at = new Date(start);
  const waits: number[] = [];
  for (let attempt = 0; attempt < 8; attempt += 1) {
    const next = planNextAttempt(attempt === 0 ? undefined : { since }, at);
    waits.push((next.getTime() - at.getTime()) / 1000);
    at = next;
  }
  assert.deepEqual(waits, [10, 10, 20, 40, 80, 160, 300, 300]);
});

test('planNextAttempt() and isDue() never wait longer than 5 minutes, whatever the clock did', () => {
  const anyTime = fc.integer({ min: 0, max: 2 * start }).map((ms) => new Date(ms));
  fc.assert(
    fc.property(anyTime, anyTime, fc.string(), (since, now, nonsense) => {
      for (const text of [since.toISOString(), nonsense]) {
        const next = planNextAttempt({ since: text }, now);
        const waitMs = next.getTime() - now.getTime();
        assert.ok(waitMs >= 10_000 && waitMs <= 300_000);
        assert.equal(isDue({ tryAgainAt: next.toISOString() }, now), false);
        assert.equal(isDue({ tryAgainAt: next.toISOString() }, next), true);
      }
      assert.equal(isDue({ tryAgainAt: new Date(now.getTime() + 300_001).toISOString() }, now), true);
      assert.equal(isDue({ tryAgainAt: 'nonsense' }, now), true);
    }),
  );
});
