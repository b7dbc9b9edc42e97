import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { formatError } from './report-error.ts';

const KNOWN = new HoldfastError('cluster-unknown', 'there is no cluster "x"', {
  hint: 'it names: app',
  context: { cluster: 'x' },
});

test('formatError() prints message and hint', () => {
  assert.equal(
    formatError(KNOWN, { json: false, verbose: false }),
    'holdfast: there is no cluster "x"\nhint: it names: app\n',
  );
});

test('formatError() prints one JSON object with the exit status', () => {
  assert.deepEqual(JSON.parse(formatError(KNOWN, { json: true, verbose: false })), {
    error: {
      code: 'cluster-unknown',
      message: 'there is no cluster "x"',
      hint: 'it names: app',
      exitCode: 2,
      context: { cluster: 'x' },
    },
  });
});

test('formatError() gives the status it is told, as PostgreSQL will see it', () => {
  const text = formatError(KNOWN, { json: true, verbose: false }, 126);
  assert.match(text, /"exitCode":126/);
});

test('formatError() shows the stack of a defect only with --verbose', () => {
  const defect = new TypeError('boom', { cause: new Error('deeper') });
  const quiet = formatError(defect, { json: false, verbose: false });
  assert.match(quiet, /^holdfast: boom\nhint: this is a defect/);
  assert.doesNotMatch(quiet, /report-error\.test/);
  const verbose = formatError(defect, { json: false, verbose: true });
  assert.match(verbose, /report-error\.test/);
  assert.match(verbose, /caused by Error: deeper/);
});

test('formatError() calls an abort a cancellation', () => {
  assert.equal(
    formatError(new DOMException('x', 'AbortError'), { json: false, verbose: false }),
    'holdfast: cancelled\n',
  );
});
