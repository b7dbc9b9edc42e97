import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { HoldfastError } from '../errors.ts';
import { generateIdentity, parseIdentities } from './identity.ts';
import { openerFor, sealKindOf, sealerFor } from './sealers.ts';

async function* once(text: string): AsyncGenerator<Buffer> {
  yield Buffer.from(text);
}

test('sealerFor() and openerFor() without recipients pass bytes through', async () => {
  const sealer = await sealerFor([]);
  assert.deepEqual([sealer.kind, sealer.suffix, sealer.recipients], ['none', '', []]);
  const opener = await openerFor('none', []);
  const bytes = Buffer.concat(await Array.fromAsync(opener.open(sealer.seal(once('clear')))));
  assert.equal(bytes.toString(), 'clear');
});

test('openerFor(none) reads ranges and refuses one beyond the end', async () => {
  const opener = await openerFor('none', []);
  const source = {
    sizeBytes: 5,
    read: (offset: number, length: number) => once('clear'.slice(offset, offset + length)),
  };
  const range = (offset: number, length: number) =>
    Array.fromAsync(opener.openRange?.(source, offset, length) ?? once('no ranges'));
  assert.deepEqual(await range(1, 3), [Buffer.from('lea')]);
  assert.deepEqual(await range(5, 0), []);
  await assert.rejects(range(3, 3), { code: 'object-damaged' });
});

test('sealerFor(age1…) seals for those recipients', async () => {
  const { identity, recipient } = generateIdentity();
  const sealer = await sealerFor([recipient]);
  assert.deepEqual([sealer.kind, sealer.suffix, sealer.recipients], ['age', '.age', [recipient]]);
  const opener = await openerFor('age', parseIdentities(identity, 'test'));
  const bytes = Buffer.concat(await Array.fromAsync(opener.open(sealer.seal(once('sealed')))));
  assert.equal(bytes.toString(), 'sealed');
});

test('sealerFor() refuses gpg, unknown kinds and misspelt keys', async () => {
  const { recipient } = generateIdentity();
  for (const list of [
    ['gpg:admin@example.org'],
    [recipient, 'gpg:admin@example.org'],
    ['ssh-ed25519 AAAA'],
    [''],
  ]) {
    await assert.rejects(sealerFor(list), { code: 'config-invalid' });
  }
  await assert.rejects(openerFor('gpg', []), { code: 'config-invalid' });
  await assert.rejects(sealerFor([`${recipient}q`]), { code: 'config-invalid' });
});

test('sealerFor() repeats no secret key that was given as a recipient', async () => {
  const { identity } = generateIdentity();
  for (const secret of [identity, identity.toLowerCase()]) {
    await assert.rejects(
      sealerFor([secret]),
      (error) => error instanceof HoldfastError && !`${error.message}${error.hint}`.includes(secret),
    );
  }
});

test('sealKindOf() tells the kind by the key', () => {
  assert.deepEqual(['a/b.zst', 'a/b.zst.age', 'a/b.gpg', 'a.age/b'].map(sealKindOf), [
    'none',
    'age',
    'gpg',
    'none',
  ]);
});

test('sealerFor([]) loads no cryptography', async () => {
  const program = `
    import { sealerFor } from ${JSON.stringify(new URL('./sealers.ts', import.meta.url).href)};
    const crypto = () => process.moduleLoadList.includes('NativeModule crypto');
    const before = crypto();
    await sealerFor([]);
    const none = crypto();
    await sealerFor([${JSON.stringify(generateIdentity().recipient)}]);
    console.log(before, none, crypto());`;
  const run = promisify(execFile);
  const { stdout } = await run(process.execPath, ['--input-type=module', '--eval', program]);
  assert.equal(stdout, 'false false true\n');
});
