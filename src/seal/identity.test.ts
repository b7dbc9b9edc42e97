import assert from 'node:assert/strict';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { inspect } from 'node:util';
import * as typage from 'age-encryption';
import { HoldfastError } from '../errors.ts';
import { passphraseIdentity } from './age-scrypt.ts';
import {
  createIdentityFile,
  generateIdentity,
  parseIdentities,
  permissionProblem,
  readIdentityFile,
} from './identity.ts';

let directory = '';
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'holdfast-identity-'));
});
after(() => rm(directory, { recursive: true }));

test('generateIdentity() makes distinct pairs whose recipient typage agrees with', async () => {
  const seen = new Set<string>();
  for (let turn = 0; turn < 20; turn += 1) {
    const { identity, recipient } = generateIdentity();
    assert.match(identity, /^AGE-SECRET-KEY-1[0-9A-Z]{58}$/);
    assert.equal(await typage.identityToRecipient(identity), recipient);
    seen.add(identity);
  }
  assert.equal(seen.size, 20);
});

test('createIdentityFile() writes a file for its owner alone and never over another', async () => {
  const path = join(directory, 'new.txt');
  const { recipient } = await createIdentityFile(path, new Date(0));
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  const [identity] = await readIdentityFile(path);
  assert.ok(identity?.kind === 'x25519' && identity.recipient === recipient);
  const text = await readFile(path, 'utf8');
  assert.ok(text.includes(`# public key: ${recipient}\n`) && text.includes('1970-01-01T00:00:00.000Z'));
  await assert.rejects(createIdentityFile(path, new Date(0)), { code: 'option-conflict' });
  assert.equal(await readFile(path, 'utf8'), text);
});

test('readIdentityFile() reads several keys, comments, blank lines and CRLF', async () => {
  const [one, two] = [generateIdentity(), generateIdentity()];
  const path = join(directory, 'several.txt');
  await writeFile(path, `# old\r\n${one.identity}\r\n\n  ${two.identity}  \n# end`, { mode: 0o600 });
  const recipients = (await readIdentityFile(path)).map(
    (identity) => 'recipient' in identity && identity.recipient,
  );
  assert.deepEqual(recipients, [one.recipient, two.recipient]);
});

test('readIdentityFile() refuses a file that others may read', async () => {
  const path = join(directory, 'open.txt');
  await createIdentityFile(path, new Date(0));
  for (const mode of [0o644, 0o604, 0o660, 0o602, 0o601]) {
    await chmod(path, mode);
    await assert.rejects(
      readIdentityFile(path),
      (error) =>
        error instanceof HoldfastError &&
        error.code === 'config-invalid' &&
        error.hint === `chmod 600 ${path}`,
      mode.toString(8),
    );
  }
  await chmod(path, 0o400);
  assert.equal((await readIdentityFile(path)).length, 1);
});

test('permissionProblem() lets a group read only what root owns', () => {
  assert.equal(permissionProblem(0o100600, 1000), undefined);
  assert.equal(permissionProblem(0o100640, 0), undefined);
  assert.notEqual(permissionProblem(0o100640, 1000), undefined);
  assert.notEqual(permissionProblem(0o100644, 0), undefined);
});

test('readIdentityFile() without a file or a key in it throws key-missing', async () => {
  await assert.rejects(readIdentityFile(join(directory, 'absent')), { code: 'key-missing' });
  const path = join(directory, 'empty.txt');
  await writeFile(path, '# nothing\n', { mode: 0o600 });
  await assert.rejects(readIdentityFile(path), { code: 'key-missing' });
});

test('parseIdentities() names the line that is no key and shows nothing of it', () => {
  const { identity, recipient } = generateIdentity();
  const misspelt = identity.replace(/.$/, (last) => (last === 'Q' ? 'P' : 'Q'));
  for (const line of [
    misspelt,
    identity.toLowerCase(),
    recipient,
    'AGE-PLUGIN-YUBIKEY-1QQQQ',
    'hunter2hunter2',
  ]) {
    assert.throws(
      () => parseIdentities(`# key\n${line}\n`, 'f'),
      (error) =>
        error instanceof HoldfastError &&
        error.code === 'config-invalid' &&
        error.message.includes('line 2') &&
        !inspect(error, { depth: 9 }).includes(line.slice(0, 24)),
      line,
    );
  }
  assert.throws(() => parseIdentities('age-encryption.org/v1\n-> scrypt …', 'f'), { code: 'config-invalid' });
});

test('an identity shows no secret when it is logged', () => {
  const { identity } = generateIdentity();
  const [parsed] = parseIdentities(identity, 'f');
  for (const shown of [inspect(parsed, { depth: 9, showHidden: true }), JSON.stringify(parsed)]) {
    assert.ok(!shown.includes(identity));
  }
  assert.ok(!inspect(passphraseIdentity('open sesame'), { depth: 9, showHidden: true }).includes('sesame'));
});
