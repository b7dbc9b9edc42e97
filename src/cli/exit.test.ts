import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ERRORS, HoldfastError, type ErrorCode } from '../errors.ts';
import { ABSENT_STATUS_VARIABLE, exitStatus, fetchExitStatus, pushExitStatus } from './exit.ts';

const CODES = Object.keys(ERRORS) as ErrorCode[];

test('exitStatus() is the status of the code, 130 for an abort, 1 for a defect', () => {
  for (const code of CODES) assert.equal(exitStatus(new HoldfastError(code, 'x')), ERRORS[code].exit);
  assert.equal(exitStatus(new DOMException('x', 'AbortError')), 130);
  assert.equal(exitStatus(new TypeError('x')), 1);
  assert.equal(exitStatus('text'), 1);
});

test('pushExitStatus() stays within 1 to 125 whatever failed', () => {
  const errors = [...CODES.map((code) => new HoldfastError(code, 'x')), new Error('x'), undefined, 'x'];
  for (const error of errors) {
    const status = pushExitStatus(error);
    assert.ok(status >= 1 && status <= 125, `${String(error)}: ${status}`);
  }
  assert.equal(pushExitStatus(new HoldfastError('cancelled', 'x')), 125);
  assert.equal(pushExitStatus(new HoldfastError('wal-conflict', 'x')), 40);
});

test('fetchExitStatus() is 1 for proven absence alone, and above 125 for every failure', () => {
  assert.equal(fetchExitStatus('fetched', {}), 0);
  assert.equal(fetchExitStatus('absent', {}), 1);
  assert.equal(fetchExitStatus('failed', {}), 126);
});

test('fetchExitStatus() uses the status the launcher asks for, within reason', () => {
  assert.equal(fetchExitStatus('absent', { [ABSENT_STATUS_VARIABLE]: '66' }), 66);
  for (const odd of ['', '0', '1', '126', '-3', '4.5', 'x']) {
    assert.equal(fetchExitStatus('absent', { [ABSENT_STATUS_VARIABLE]: odd }), 1, odd);
  }
  assert.equal(fetchExitStatus('failed', { [ABSENT_STATUS_VARIABLE]: '66' }), 126);
});
