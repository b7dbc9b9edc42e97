import assert from 'node:assert/strict';
import { test } from 'node:test';

import { splitCommand } from './split-command.ts';

const NAMES = ['check', 'backup base', 'wal push', 'wal fetch', 'list'];

test('splitCommand() finds names of one and two words, wherever options stand', () => {
  const cases: [string, string, string][] = [
    ['check app', 'check', 'app'],
    ['backup base app --label x', 'backup base', 'app --label x'],
    ['--config f wal push p', 'wal push', '--config f p'],
    ['--json list', 'list', '--json'],
    ['wal --config wal push p', 'wal push', '--config wal p'],
    ['list list', 'list', 'list'],
  ];
  for (const [words, name, rest] of cases) {
    assert.deepEqual(splitCommand(words.split(' '), NAMES), { name, rest: rest.split(' ') }, words);
  }
});

test('splitCommand() gives back the words that name nothing', () => {
  assert.deepEqual(splitCommand(['wal', 'psh', '--json'], NAMES), { name: 'wal psh', rest: ['--json'] });
  assert.deepEqual(splitCommand(['--version'], NAMES), { name: '', rest: ['--version'] });
  assert.deepEqual(splitCommand([], NAMES), { name: '', rest: [] });
  assert.deepEqual(splitCommand(['--', 'list'], NAMES), { name: '', rest: ['--', 'list'] });
});
