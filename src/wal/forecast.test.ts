import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { lsnOf } from '../postgres/lsn.ts';
import {
  chooseRate,
  forecastWal,
  proposeKeepSize,
  rateOf,
  settingOfBytes,
  timeUntil,
  type WalSample,
} from './forecast.ts';

const bytes = fc.bigInt({ min: 0n, max: 1n << 50n });
const rate = fc.double({ min: 0.001, max: 1e12, noNaN: true });

function sample(lsn: bigint, at: bigint): WalSample {
  return { lsn: lsnOf(lsn), at };
}

test('rateOf() is what a steady writer writes, however it is sampled', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 1 << 30 }),
      fc.array(fc.integer({ min: 1, max: 3600 }), { minLength: 1, maxLength: 10 }),
      (perSecond, seconds) => {
        const samples = [sample(1000n, 0n)];
        for (const step of seconds) {
          const last = samples.at(-1) ?? sample(0n, 0n);
          samples.push(sample(last.lsn + BigInt(perSecond * step), last.at + BigInt(step) * 1_000_000n));
        }
        const found = rateOf(samples) ?? -1;
        assert.ok(Math.abs(found - perSecond) <= perSecond * 1e-9, String(found));
      },
    ),
  );
});

test('rateOf() knows nothing from one sample, from a clock that stood still or from WAL that went back', () => {
  assert.equal(rateOf([]), undefined);
  assert.equal(rateOf([sample(1n, 1n)]), undefined);
  assert.equal(rateOf([sample(1n, 1n), sample(2n, 1n)]), undefined);
  assert.equal(rateOf([sample(2n, 1n), sample(1n, 2n)]), undefined);
  assert.equal(rateOf([sample(2n, 1n), sample(2n, 2n)]), 0);
});

test('chooseRate() takes the higher one and says where it is from', () => {
  assert.equal(chooseRate(undefined, undefined), undefined);
  assert.deepEqual(chooseRate(5, undefined), { bytesPerSecond: 5, source: 'now' });
  assert.deepEqual(chooseRate(undefined, 5), { bytesPerSecond: 5, source: 'stored' });
  assert.deepEqual(chooseRate(0, 7), { bytesPerSecond: 7, source: 'stored' });
  assert.deepEqual(chooseRate(8, 7), { bytesPerSecond: 8, source: 'now' });
});

test('timeUntil() never says longer for fewer bytes or a higher rate, and nothing for no rate', () => {
  const orLong = (ms: number | undefined): number => ms ?? Number.POSITIVE_INFINITY;
  fc.assert(
    fc.property(bytes, bytes, rate, rate, (a, b, slow, fast) => {
      const [less, more] = a < b ? [a, b] : [b, a];
      const [low, high] = slow < fast ? [slow, fast] : [fast, slow];
      assert.ok(orLong(timeUntil(less, low)) <= orLong(timeUntil(more, low)));
      assert.ok(orLong(timeUntil(more, high)) <= orLong(timeUntil(more, low)));
      const ms = timeUntil(more, high);
      assert.ok(ms === undefined || ms >= 0);
    }),
  );
  assert.equal(timeUntil(1000n, 0), undefined);
  assert.equal(timeUntil(1000n, undefined), undefined);
  assert.equal(timeUntil(1000n, 0.000001), undefined, 'more than a year');
  assert.equal(timeUntil(1000n, 100), 10_000);
  assert.equal(timeUntil(-5n, 100), 0);
});

test('forecastWal() needs to know the bytes of each', () => {
  const all = { freeBytes: 1000n, safeWalSize: 500n, bytesPerSecond: 100 };
  assert.deepEqual(forecastWal(all), { fullInMs: 10_000, slotLostInMs: 5000 });
  assert.deepEqual(forecastWal({ ...all, freeBytes: undefined, safeWalSize: undefined }), {
    fullInMs: undefined,
    slotLostInMs: undefined,
  });
});

test('proposeKeepSize() leaves half of the disk, and settingOfBytes() says exactly that', () => {
  fc.assert(
    fc.property(bytes, bytes, (freeBytes, walDirectoryBytes) => {
      const proposed = proposeKeepSize({ freeBytes, walDirectoryBytes });
      const half = (freeBytes + walDirectoryBytes) / 2n;
      assert.ok(proposed <= half || proposed === 64n << 20n);
      assert.ok(proposed * 2n > half || half < 64n << 20n);
      const [, number = '', unit = ''] = /^(\d+)(GB|MB)$/.exec(settingOfBytes(proposed)) ?? [];
      assert.equal(BigInt(number) << (unit === 'GB' ? 30n : 20n), proposed);
    }),
  );
  assert.equal(
    settingOfBytes(proposeKeepSize({ freeBytes: 100n << 30n, walDirectoryBytes: 1n << 30n })),
    '50GB',
  );
  assert.equal(settingOfBytes(proposeKeepSize({ freeBytes: 600n << 20n, walDirectoryBytes: 0n })), '256MB');
});
