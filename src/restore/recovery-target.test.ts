import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { describeInstant, formatInstant, parseInstant } from './instant.ts';
import { describeTarget, parseRecoveryRequest } from './recovery-target.ts';

const NOW = parseInstant('2026-01-02T12:00:00Z', 0n);
const reading = { now: NOW, localOffset: () => 60 };

test('parseInstant() reads the same moment in every accepted form', () => {
  const moment = parseInstant('2025-12-28T13:30:00Z', NOW);
  for (const text of [
    '2025-12-28 14:30:00+01',
    '2025-12-28 14:30:00 +01',
    '2025-12-28 14:30+01',
    '2025-12-28T14:30:00.000000+01:00',
    '2025-12-28 08:00:00-05:30',
    '2025-12-28 08:00:00-0530',
    '2025-12-28 13:30:00 UTC',
    '2025-12-28t13:30:00z'.toUpperCase(),
    '  2025-12-28 19:15:00+05:45 ',
  ]) {
    assert.equal(parseInstant(text, NOW), moment, text);
  }
});

test('parseInstant() keeps microseconds', () => {
  assert.equal(parseInstant('1970-01-01 00:00:00.000001Z', NOW), 1n);
  assert.equal(parseInstant('1970-01-01 00:00:00.1Z', NOW), 100_000n);
  assert.equal(parseInstant('1969-12-31 23:59:59.999999Z', NOW), -1n);
});

test('parseInstant() counts relative times back from now', () => {
  assert.equal(parseInstant('-15m', NOW), NOW - 900_000_000n);
  assert.equal(parseInstant('-1h30m', NOW), NOW - 5_400_000_000n);
  assert.equal(parseInstant('-1.5h', NOW), NOW - 5_400_000_000n);
  assert.equal(parseInstant('-500ms', NOW), NOW - 500_000n);
  assert.equal(parseInstant('-2d', NOW), NOW - 172_800_000_000n);
});

test('parseInstant() refuses a time without an offset and shows both readings', () => {
  assert.throws(
    () => parseInstant('2025-12-28 14:30:00', NOW, () => 60),
    (error: Error & { code?: string }) =>
      error.code === 'time-ambiguous' &&
      error.message.includes('2025-12-28T14:30:00Z') &&
      error.message.includes('2025-12-28T14:30:00+01:00'),
  );
  assert.throws(() => parseInstant('2025-12-28 14:30', NOW, () => -570), /14:30:00-09:30/);
  // Where the two are one, they are not shown as two.
  assert.throws(
    () => parseInstant('2025-12-28 14:30', NOW, () => 0),
    (error: Error) => error.message.includes('14:30:00Z') && !error.message.includes('14:30:00+00:00'),
  );
});

test('parseInstant() refuses what is no time', () => {
  for (const text of [
    '',
    'now',
    'yesterday',
    '15m',
    '+15m',
    '-15',
    '-m',
    '2025-02-29 00:00:00Z',
    '2025-13-01 00:00:00Z',
    '2025-12-28 24:00:00Z',
    '2025-12-28 14:60:00Z',
    '2025-12-28 14:30:00+16',
    '2025-12-28 14:30:00 CET',
    '2025-12-28Z',
    '2025-12-28 14:30:00Z; drop',
  ]) {
    assert.throws(() => parseInstant(text, NOW), { code: 'usage-invalid' }, text);
  }
});

test('formatInstant() and parseInstant() are inverse, with any offset', () => {
  const moment = fc.bigInt({ min: -2_000_000_000_000_000n, max: 200_000_000_000_000_000n });
  fc.assert(
    fc.property(moment, fc.integer({ min: -15 * 60, max: 15 * 60 }), (instant, minutes) => {
      const text = formatInstant(instant);
      assert.equal(parseInstant(text, NOW), instant);
      const clock = `${String(Math.floor(Math.abs(minutes) / 60)).padStart(2, '0')}:${String(Math.abs(minutes) % 60).padStart(2, '0')}`;
      const shifted = formatInstant(instant + BigInt(minutes) * 60_000_000n).slice(0, -1);
      assert.equal(parseInstant(`${shifted}${minutes < 0 ? '-' : '+'}${clock}`, NOW), instant);
    }),
  );
});

test('describeInstant() adds local time where it differs', () => {
  const instant = parseInstant('2025-12-28T23:30:00Z', NOW);
  assert.equal(
    describeInstant(instant, () => 0),
    '2025-12-28T23:30:00Z',
  );
  assert.equal(
    describeInstant(instant, () => 60),
    '2025-12-28T23:30:00Z (2025-12-29 00:30:00 here)',
  );
  assert.equal(
    describeInstant(instant, () => -60),
    '2025-12-28T23:30:00Z (22:30:00 here)',
  );
});

test('parseRecoveryRequest() without options restores everything and promotes', () => {
  assert.deepEqual(parseRecoveryRequest({}, reading), {
    target: { kind: 'latest' },
    timeline: 'auto',
    action: 'promote',
    standby: false,
  });
});

test('parseRecoveryRequest() reads each kind of target', () => {
  const target = (options: Parameters<typeof parseRecoveryRequest>[0]): unknown =>
    parseRecoveryRequest(options, reading).target;
  assert.deepEqual(target({ target: 'immediate' }), { kind: 'immediate' });
  assert.deepEqual(target({ targetTime: '-1s', targetExclusive: true }), {
    kind: 'time',
    time: NOW - 1_000_000n,
    inclusive: false,
  });
  assert.deepEqual(target({ targetLsn: '0/3000060' }), { kind: 'lsn', lsn: 0x3000060n, inclusive: true });
  assert.deepEqual(target({ targetXid: '4294968037' }), { kind: 'xid', xid: 741, inclusive: true });
  assert.deepEqual(target({ targetName: 'it\'s "here"' }), { kind: 'name', name: 'it\'s "here"' });
});

test('parseRecoveryRequest() refuses every pair of targets', () => {
  const values = {
    target: 'immediate',
    targetTime: '-1m',
    targetLsn: '0/1',
    targetXid: '800',
    targetName: 'x',
  };
  const keys = Object.keys(values) as (keyof typeof values)[];
  for (const one of keys) {
    for (const other of keys) {
      if (one === other) continue;
      assert.throws(
        () => parseRecoveryRequest({ [one]: values[one], [other]: values[other] }, reading),
        { code: 'option-conflict' },
        `${one} and ${other}`,
      );
    }
  }
});

test('parseRecoveryRequest() refuses options that mean nothing together', () => {
  assert.throws(() => parseRecoveryRequest({ targetExclusive: true }, reading), { code: 'option-conflict' });
  assert.throws(() => parseRecoveryRequest({ targetName: 'x', targetExclusive: true }, reading), {
    code: 'option-conflict',
  });
  assert.throws(() => parseRecoveryRequest({ standby: true, targetAction: 'promote' }, reading), {
    code: 'option-conflict',
  });
});

test('parseRecoveryRequest() refuses values that are none', () => {
  for (const options of [
    { target: 'now' },
    { targetXid: '0' },
    { targetXid: '2' },
    { targetXid: '-5' },
    { targetXid: '0x10' },
    { targetXid: '99999999999999999999' },
    { targetLsn: '3000060' },
    { targetName: '' },
    { targetName: 'a\nb' },
    { targetName: 'ä'.repeat(32) },
    { targetTimeline: '0' },
    { targetTimeline: 'newest' },
    { targetTimeline: '4294967296' },
    { targetAction: 'stop' },
  ]) {
    assert.throws(
      () => parseRecoveryRequest(options, reading),
      { code: 'usage-invalid' },
      JSON.stringify(options),
    );
  }
});

test('parseRecoveryRequest() reads timelines in decimal and hexadecimal', () => {
  assert.equal(parseRecoveryRequest({ targetTimeline: '10' }, reading).timeline, 10);
  assert.equal(parseRecoveryRequest({ targetTimeline: '0x0A' }, reading).timeline, 10);
  assert.equal(parseRecoveryRequest({ targetTimeline: 'current' }, reading).timeline, 'current');
});

test('parseRecoveryRequest() leaves a standby without a target following the archive', () => {
  assert.equal(parseRecoveryRequest({ standby: true }, reading).action, undefined);
  assert.equal(parseRecoveryRequest({ standby: true, targetLsn: '0/1' }, reading).action, 'pause');
});

test('describeTarget() names a time in UTC', () => {
  assert.equal(
    describeTarget({ kind: 'time', time: 1n, inclusive: true }),
    'time 1970-01-01T00:00:00.000001Z',
  );
});
