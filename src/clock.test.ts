import assert from 'node:assert/strict';
import { test } from 'node:test';

import { systemClock, timerDelay } from './clock.ts';
import { HoldfastError } from './errors.ts';

test('systemClock.sleep() waits at least as long as asked, by the monotonic clock', async () => {
  for (const ms of [0, 0.4, 1, 25]) {
    const start = systemClock.monotonicMs();
    await systemClock.sleep(ms);
    assert.ok(systemClock.monotonicMs() - start >= ms);
  }
  await systemClock.sleep(-5);
});

test('systemClock.sleep() of more than a timer can hold does not return at once', async () => {
  for (const ms of [2 ** 31 - 1, 2 ** 31, 2 ** 40, Infinity]) {
    const controller = new AbortController();
    let woke = false;
    const sleeping = systemClock.sleep(ms, controller.signal).finally(() => {
      woke = true;
    });
    await systemClock.sleep(20);
    assert.equal(woke, false, `${ms} ms passed in 20`);
    controller.abort();
    await assert.rejects(sleeping, { code: 'cancelled' });
  }
});

test('timerDelay() never gives a delay that a timer would turn into 1 ms', () => {
  assert.equal(timerDelay(2 ** 31), 2 ** 31 - 1);
  assert.equal(timerDelay(Infinity), 2 ** 31 - 1);
  assert.equal(timerDelay(0.2), 1);
  assert.equal(timerDelay(1500.5), 1501);
});

test('systemClock.sleep() throws at once when aborted, with the reason where it is one of ours', async () => {
  const reason = new HoldfastError('connection-lost', 'the connection went away');
  await assert.rejects(systemClock.sleep(60_000, AbortSignal.abort(reason)), (error) => error === reason);
  await assert.rejects(systemClock.sleep(0, AbortSignal.abort()), { code: 'cancelled' });
  const start = systemClock.monotonicMs();
  await assert.rejects(systemClock.sleep(60_000, AbortSignal.timeout(10)), { code: 'cancelled' });
  assert.ok(systemClock.monotonicMs() - start < 5000);
});

test('systemClock.sleep() leaves no listener on a signal that lives on', async () => {
  const { signal } = new AbortController();
  let listeners = 0;
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = (...values: Parameters<typeof add>) => {
    listeners += 1;
    add(...values);
  };
  signal.removeEventListener = (...values: Parameters<typeof remove>) => {
    listeners -= 1;
    remove(...values);
  };
  for (let count = 0; count < 5; count += 1) await systemClock.sleep(1, signal);
  assert.equal(listeners, 0);
});

test('systemClock.sleep() refuses what is not a number', async () => {
  await assert.rejects(systemClock.sleep(Number.NaN), { code: 'assertion' });
});
