import assert from 'node:assert/strict';
import { test } from 'node:test';

import { standbyNames, synchronousMatch } from './synchronous-standby.ts';

test('standbyNames() reads every form of synchronous_standby_names', () => {
  const forms: [string, string[]][] = [
    ['', []],
    ['a', ['a']],
    ['a, b ,c', ['a', 'b', 'c']],
    ['2 (a, b)', ['a', 'b']],
    ['FIRST 2 (a, b)', ['a', 'b']],
    ['any 1(a,"B c","d""e")', ['a', 'B c', 'd"e']],
    ['*', ['*']],
    ['FIRST 1 (a, *)', ['a', '*']],
    ['1 (2, a$1)', ['2', 'a$1']],
    ['"(,)"', ['(,)']],
  ];
  for (const [setting, names] of forms) assert.deepEqual(standbyNames(setting), names, setting);
});

test('synchronousMatch() tells a name from a star, without case', () => {
  assert.equal(synchronousMatch('', 'holdfast'), 'none');
  assert.equal(synchronousMatch('db2', 'holdfast'), 'none');
  assert.equal(synchronousMatch('holdfast2', 'holdfast'), 'none');
  assert.equal(synchronousMatch('ANY 1 (db2, Holdfast)', 'holdfast'), 'named');
  assert.equal(synchronousMatch('holdfast, *', 'holdfast'), 'named');
  assert.equal(synchronousMatch('db2, *', 'holdfast'), 'any');
  assert.equal(synchronousMatch('"*"', 'holdfast'), 'any');
  assert.equal(synchronousMatch('first', 'first'), 'named');
});
