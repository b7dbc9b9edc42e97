import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { GROUPS } from './command.ts';
import { commandHelp, GLOBAL_OPTIONS, programHelp } from './help.ts';
import { COMMANDS, loadAll } from './registry.ts';
import { VERSION } from './version.ts';

test('COMMANDS lists every command under its own name, each with examples', async () => {
  const all = await loadAll();
  assert.deepEqual(
    all.map((command) => command.name),
    COMMANDS.map((command) => command.name),
  );
  for (const command of all) {
    assert.ok(GROUPS.includes(command.group), command.name);
    assert.ok(command.examples.length > 0, `${command.name} has no example`);
    assert.match(command.summary, /^[a-z].*[^.]$/, `${command.name}: no sentence, no full stop`);
  }
});

test('commandHelp() names every option, argument and example', async () => {
  for (const command of await loadAll()) {
    const help = commandHelp(command);
    for (const option of [...command.options, ...GLOBAL_OPTIONS]) {
      assert.ok(help.includes(`  ${option.flags} `), `${command.name}: ${option.flags}`);
    }
    for (const argument of command.arguments) assert.ok(help.includes(argument.name.toUpperCase()));
    for (const example of command.examples) assert.ok(help.includes(example.command));
  }
});

test('options take no name that a global one has', async () => {
  const reserved = GLOBAL_OPTIONS.map((option) => option.flags.split(' ')[0]);
  for (const command of await loadAll()) {
    for (const option of command.options)
      assert.ok(!reserved.includes(option.flags.split(' ')[0] ?? ''), option.flags);
  }
});

test('programHelp() has every command under a heading', async () => {
  const all = await loadAll();
  const help = programHelp(all);
  for (const command of all) assert.ok(help.includes(`  ${command.name}`), command.name);
});

test('VERSION is that of package.json', async () => {
  const text = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  assert.equal(VERSION, (JSON.parse(text) as { version: string }).version);
});
