import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { resolveSecret } from './secrets.ts';

test('resolveSecret() reads the environment and files, and takes other text as it is', async () => {
  const baseDirectory = await mkdtemp(join(tmpdir(), 'holdfast-secret-'));
  try {
    await writeFile(join(baseDirectory, 'url'), 'postgres://u:p@h/d\n');
    const sources = { environment: { TOKEN: 'abc' }, baseDirectory };
    assert.equal(await resolveSecret('env:TOKEN', sources), 'abc');
    assert.equal(await resolveSecret('file:url', sources), 'postgres://u:p@h/d');
    assert.equal(await resolveSecret(`file:${baseDirectory}/url`, sources), 'postgres://u:p@h/d');
    assert.equal(await resolveSecret('file:///var/backups', sources), 'file:///var/backups');
    assert.equal(await resolveSecret('postgres://h/d', sources), 'postgres://h/d');
  } finally {
    await rm(baseDirectory, { recursive: true });
  }
});

test('resolveSecret() names the reference where there is nothing behind it', async () => {
  const sources = { environment: { EMPTY: '' }, baseDirectory: '/nonexistent' };
  await assert.rejects(resolveSecret('env:EMPTY', sources), {
    code: 'config-invalid',
    message: /EMPTY is not set/,
  });
  await assert.rejects(resolveSecret('file:token', sources), {
    code: 'config-invalid',
    message: /\/nonexistent\/token/,
  });
});
