import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import type { CommandSpec } from './command.ts';
import { parseCommand, type ParsedCommand } from './parse-command.ts';
import { parsePlain } from './parse-plain.ts';

const SPEC: CommandSpec = {
  name: 'restore thing',
  group: 'Restore',
  summary: 'a command for tests',
  arguments: [
    { name: 'cluster', summary: 'x' },
    { name: 'other', summary: 'x', optional: true },
  ],
  options: [
    { flags: '--target-time <time>', summary: 'x' },
    { flags: '--repository <name>', summary: 'x', repeatable: true },
    { flags: '--dry-run', summary: 'x' },
  ],
  examples: [],
  run: async () => undefined,
};

const PARSERS: [string, (spec: CommandSpec, words: readonly string[]) => ParsedCommand][] = [
  ['parseCommand', parseCommand],
  ['parsePlain', parsePlain],
];

for (const [name, parse] of PARSERS) {
  test(`${name}() reads arguments, values, lists and flags in any order`, () => {
    const words =
      '--dry-run app --repository a --target-time=2025-01-01 --repository b --json --config f'.split(' ');
    const parsed = parse(SPEC, words);
    assert.deepEqual(parsed.arguments, ['app']);
    assert.deepEqual(
      { ...parsed.options },
      { dryRun: true, repository: ['a', 'b'], targetTime: '2025-01-01', json: true, config: 'f' },
    );
  });

  test(`${name}() refuses missing and excess arguments, unknown options, values left out and given twice`, () => {
    const cases: [string[], RegExp][] = [
      [[], /missing required argument "cluster"/],
      [['a', 'b', 'c'], /too many arguments/],
      [['a', '--nonsense'], /unknown option "--nonsense"/i],
      [['a', '--target-time'], /--target-time/],
      [['a', '--target-time', '1', '--target-time', '2'], /--target-time is given twice/],
    ];
    for (const [words, wanted] of cases) {
      assert.throws(
        () => parse(SPEC, words),
        (error: unknown) =>
          error instanceof HoldfastError && error.code === 'usage-invalid' && wanted.test(error.message),
        words.join(' '),
      );
    }
  });
}

test('parseCommand() suggests the option that was meant', () => {
  assert.throws(() => parseCommand(SPEC, ['app', '--dryrun']), { hint: /did you mean --dry-run\?/ });
});

test('parseCommand() holds values to their choices', () => {
  const spec = {
    ...SPEC,
    options: [{ flags: '--source <which>', summary: 'x', choices: ['auto', 'primary'] }],
  };
  assert.equal(parseCommand(spec, ['app', '--source', 'auto']).options['source'], 'auto');
  assert.throws(() => parseCommand(spec, ['app', '--source', 'best']), {
    code: 'usage-invalid',
    message: /auto, primary/,
  });
});
