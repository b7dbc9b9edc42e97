import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { completeLock, type LockFile, missingPackages } from '../scripts/lock-file.ts';

const text = await readFile(new URL('../package-lock.json', import.meta.url), 'utf8');

test('package-lock.json names the optional packages of every platform, or npm ci refuses it', () => {
  const lock = JSON.parse(text) as LockFile;
  assert.ok(Object.keys(lock.packages).length > 50);
  assert.deepEqual(
    missingPackages(lock).map(({ name }) => name),
    [],
    'run "npm run lock"',
  );
});

test('package-lock.json names no place to download from', () => {
  assert.doesNotMatch(text, /"resolved": "https?:/);
});

test('completeLock() adds what is missing, with where it can run', () => {
  const lock: LockFile = {
    packages: {
      '': {},
      'node_modules/tool': {
        dev: true,
        optionalDependencies: { '@tool/linux-x64-musl': '1.2.3', '@tool/win32-arm64-msvc': '1.2.3' },
      },
      'node_modules/@tool/linux-x64-musl': { version: '1.2.3' },
    },
  };
  assert.deepEqual(completeLock(lock), ['@tool/win32-arm64-msvc']);
  assert.deepEqual(lock.packages['node_modules/@tool/win32-arm64-msvc'], {
    version: '1.2.3',
    os: ['win32'],
    cpu: ['arm64'],
    dev: true,
    optional: true,
  });
  assert.deepEqual(completeLock(lock), []);
});
