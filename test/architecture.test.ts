/**
 * Which room of `src/` may import which. The table is the architecture: a new room, a new direction or a new package is
 * a decision, and is made here. Types count like values, dynamic imports like static ones.
 */
import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { posix } from 'node:path';
import { test } from 'node:test';

interface Room {
  /** Rooms it may import, besides itself. */
  imports: readonly string[];
  /** npm packages it may import. Node's own modules are open to all. */
  packages?: readonly string[];
}

/** The files directly under `src/`. */
const LEAVES = 'leaves';
const MATERIALS = [LEAVES, 'stream', 'seal', 'postgres', 'storage'];
const OPERATIONS = ['wal', 'backup', 'restore'];

const ROOMS: Record<string, Room> = {
  [LEAVES]: { imports: [] },
  stream: { imports: [LEAVES], packages: ['@napi-rs/blake-hash', '@node-rs/crc32'] },
  seal: { imports: [LEAVES, 'stream'] },
  postgres: { imports: [LEAVES, 'stream'], packages: ['pg'] },
  storage: { imports: [LEAVES, 'stream'] },
  repository: { imports: MATERIALS },
  // Operations do not import one another.
  wal: { imports: [...MATERIALS, 'repository'] },
  backup: { imports: [...MATERIALS, 'repository'] },
  restore: { imports: [...MATERIALS, 'repository'] },
  config: { imports: [LEAVES], packages: ['yaml', 'zod'] },
  cli: { imports: [...MATERIALS, 'repository', ...OPERATIONS, 'config'], packages: ['commander'] },
};

/** What tests beside the sources may import on top of their room's share, besides `test/`. */
const TEST_PACKAGES = ['node:test', 'fast-check', 'age-encryption'];

/** Text by path relative to `src/`. */
type Modules = ReadonlyMap<string, string>;

/** Every breach of the table, as lines a reader can act on. */
function violations(modules: Modules, rooms: Record<string, Room>): string[] {
  const found: string[] = [];
  const inhabited = new Set(Array.from(modules.keys(), roomOf));
  for (const room of Object.keys(rooms)) {
    if (!inhabited.has(room)) found.push(`the table has a room '${room}' that src/ has not`);
  }
  for (const [path, text] of modules) {
    const code = withoutComments(text);
    if (/^export\s+default\b|\bas\s+default\b/m.test(code)) found.push(`${path} has a default export`);
    const room = rooms[roomOf(path)];
    if (room === undefined) {
      found.push(`${path} lies in '${roomOf(path)}', which the table does not have`);
      continue;
    }
    for (const specifier of importsOf(code)) {
      const problem = problemOf(path, room, specifier);
      if (problem !== undefined) found.push(`${path} imports ${specifier}: ${problem}`);
    }
  }
  return found;
}

function problemOf(path: string, room: Room, specifier: string): string | undefined {
  if (specifier === UNREADABLE) return 'write the path as a literal, so that it can be checked';
  const isTest = path.endsWith('.test.ts');
  if (!specifier.startsWith('.')) {
    const name = packageOf(specifier);
    if (TEST_PACKAGES.includes(name)) return isTest ? undefined : 'it is for tests';
    if (specifier.startsWith('node:') || room.packages?.includes(name) === true) return undefined;
    return `'${name}' is not a package of room '${roomOf(path)}'`;
  }
  const target = posix.join(posix.dirname(path), specifier);
  if (target.startsWith('..')) {
    return isTest && target.startsWith('../test/') ? undefined : 'it lies outside src/';
  }
  if (target.endsWith('.test.ts')) return 'it is a test';
  const [from, to] = [roomOf(path), roomOf(target)];
  if (from === to) return undefined;
  if (posix.basename(target).startsWith('_')) return `it is private to room '${to}'`;
  return room.imports.includes(to) ? undefined : `room '${from}' may not import room '${to}'`;
}

function roomOf(path: string): string {
  const [first = '', ...rest] = path.split('/');
  return rest.length === 0 ? LEAVES : first;
}

function packageOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

/** Blanks comments. Strings and templates are stepped over, so that `'https://…'` is not taken for one. */
function withoutComments(text: string): string {
  const strings = /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`/.source;
  return text.replaceAll(
    new RegExp(`(${strings})|/\\*[^]*?\\*/|//[^\\n]*`, 'g'),
    (_, kept?: string) => kept ?? '',
  );
}

/** Stands for a dynamic import whose path is computed. */
const UNREADABLE = '(a computed path)';

/** The specifiers that `code`, without comments, imports: statements, re-exports, `import()`, `require()`, types. */
function importsOf(code: string): string[] {
  const statements = Array.from(
    code.matchAll(/^(?:import|export)\b(?:[^'"`;=]*?\bfrom)?\s*(['"])([^'"\n]+)\1/gm),
    (match) => match[2] ?? '',
  );
  const calls = Array.from(
    code.matchAll(/(?<![.\w])(?:import|require)\s*\(\s*(?:(['"])([^'"\n]+)\1\s*[,)])?/g),
    (match) => match[2] ?? UNREADABLE,
  );
  return [...statements, ...calls];
}

async function readModules(): Promise<Modules> {
  const modules = new Map<string, string>();
  const root = new URL('../src/', import.meta.url);
  for await (const path of glob('**/*.ts', { cwd: root })) {
    modules.set(path, await readFile(new URL(path, root), 'utf8'));
  }
  return modules;
}

/** A source tree that obeys `ROOMS`, with some files more. */
function tree(extra: Record<string, string>): Modules {
  const rooms = Object.keys(ROOMS).filter((room) => room !== LEAVES);
  const sound = Object.fromEntries(rooms.map((room) => [`${room}/sound.ts`, `import '../errors.ts';\n`]));
  return new Map(Object.entries({ 'errors.ts': 'export const a = 1;\n', ...sound, ...extra }));
}

test('src/ keeps to the table of allowed imports', async () => {
  const modules = await readModules();
  assert.ok(modules.size > 20, `only ${modules.size} modules were read`);
  assert.deepEqual(violations(modules, ROOMS), []);
});

test('importsOf() reads every import statement of src/', async () => {
  let count = 0;
  for (const [path, text] of await readModules()) {
    const code = withoutComments(text);
    const written = code.match(
      /^import\b(?!\s*[.(])|^export\b(?=\s*(?:type\s*)?[{*][^;=]*?\bfrom\b)|\bimport\s*\(/gm,
    );
    const read = importsOf(code).length;
    assert.equal(read, written?.length ?? 0, path);
    count += read;
  }
  assert.ok(count > 60, `only ${count} imports were read`);
});

test('importsOf() reads all forms of import and nothing else', () => {
  const code = withoutComments(`
import 'node:a';
import b from "b";
import type { C } from './c.ts';
import {
  d,
  type D,
} from '../d.ts';
import * as e from 'e';
export { f } from './f.ts';
export type * from './g.ts';
// import h from 'h'; import('h')
/** from 'i', import('i') */
const url = 'https://j'; const k = await import('./k.ts');
type L = import('./l.ts').L;
const m = require('m');
const n = import(path);
const o = import(\`./o.ts\`);
export const from = 'p';
export function q() { return Array.from('q'); }
const r = import.meta.url;
`);
  const read = ['node:a', 'b', './c.ts', '../d.ts', 'e', './f.ts', './g.ts', './k.ts', './l.ts', 'm'];
  assert.deepEqual(importsOf(code), [...read, UNREADABLE, UNREADABLE]);
});

test('violations() passes a sound tree', () => {
  const extra = {
    'clock.ts': `import './errors.ts';\n`,
    'stream/hash.ts': `import { x } from '@napi-rs/blake-hash';\n`,
    'seal/_private.ts': `import { createHash } from 'node:crypto';\n`,
    'seal/public.ts': `import type { X } from './_private.ts';\n`,
    'seal/public.test.ts': `import * as fc from 'fast-check';\nimport '../../test/fixture.ts';\n`,
    'cli/commands/push.ts': `import '../../wal/sound.ts';\nconst c = await import('../../config/sound.ts');\n`,
  };
  assert.deepEqual(violations(tree(extra), ROOMS), []);
});

test('violations() flags each planted breach', () => {
  const planted: [path: string, text: string, expected: RegExp][] = [
    ['storage/a.ts', `import { x } from '../repository/sound.ts';`, /may not import room 'repository'/],
    ['storage/a.ts', `import type { X } from '../repository/sound.ts';`, /may not import room 'repository'/],
    ['backup/a.ts', `const x = await import('../wal/sound.ts');`, /may not import room 'wal'/],
    ['repository/a.ts', `type X = import('../cli/sound.ts').X;`, /may not import room 'cli'/],
    ['restore/a.ts', `export { x } from '../config/sound.ts';`, /may not import room 'config'/],
    ['seal/deep/a.ts', `import '../../postgres/sound.ts';`, /may not import room 'postgres'/],
    ['leaf.ts', `import './stream/sound.ts';`, /may not import room 'stream'/],
    ['cli/a.ts', `import { x } from '../wal/_private.ts';`, /private to room 'wal'/],
    ['wal/a.ts', `import pg from 'pg';`, /'pg' is not a package of room 'wal'/],
    ['seal/a.ts', `import { x } from '@node-rs/crc32/sub';`, /'@node-rs\/crc32' is not a package/],
    ['seal/a.ts', `import { readFile } from 'fs';`, /'fs' is not a package/],
    ['seal/a.ts', `import * as fc from 'fast-check';`, /it is for tests/],
    ['seal/a.ts', `import '../../test/fixture.ts';`, /outside src/],
    ['seal/a.test.ts', `import '../../bench/x.ts';`, /outside src/],
    ['seal/a.ts', `import './b.test.ts';`, /it is a test/],
    ['cli/a.ts', `const x = await import(name);`, /as a literal/],
    ['seal/a.ts', `export default 1;`, /default export/],
    ['seal/a.ts', `export { x as default };`, /default export/],
    ['daemon/a.ts', ``, /'daemon', which the table does not have/],
  ];
  for (const [path, text, expected] of planted) {
    const found = violations(tree({ [path]: `${text}\n` }), ROOMS);
    assert.equal(found.length, 1, `${text} in ${path}: ${found.join('; ')}`);
    assert.match(found[0] ?? '', expected);
  }
  assert.deepEqual(violations(tree({}), { ...ROOMS, attic: { imports: [] } }), [
    "the table has a room 'attic' that src/ has not",
  ]);
});
