/** Debian's `age` as the oracle of the format: each side opens what the other sealed. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { createAgeOpener, createAgeSealer } from '../../src/seal/age.ts';
import { createIdentityFile, readIdentityFile } from '../../src/seal/identity.ts';

const CHUNK = 65536;
const SIZES = [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 16 * CHUNK, 40 * CHUNK + 7];
const plain = randomBytes(Math.max(...SIZES));

let directory = '';
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'holdfast-age-'));
});
after(() => rm(directory, { recursive: true }));

interface Run {
  status: number | null;
  stdout: Buffer;
  stderr: string;
}

function run(command: string, args: string[], input: Buffer): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: 'pipe', timeout: 30_000 });
    const stdout: Buffer[] = [];
    let stderr = '';
    child.stdout.on('data', (piece: Buffer) => stdout.push(piece));
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    // It may refuse its input before having read it all.
    child.stdin.on('error', () => undefined);
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout: Buffer.concat(stdout), stderr }));
    child.stdin.end(input);
  });
}

async function age(args: string[], input: Buffer): Promise<Buffer> {
  const { status, stdout, stderr } = await run('age', args, input);
  assert.equal(status, 0, stderr);
  return stdout;
}

async function* once(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes;
}

async function whole(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(stream));
}

test('age opens what createAgeSealer() seals, for each of several recipients', async () => {
  const paths = ['one.txt', 'two.txt'].map((name) => join(directory, name));
  const recipients: string[] = [];
  for (const path of paths) recipients.push((await createIdentityFile(path, new Date())).recipient);
  const sealer = createAgeSealer(recipients);
  for (const size of SIZES) {
    const object = await whole(sealer.seal(once(plain.subarray(0, size))));
    for (const path of paths) {
      const back = await age(['--decrypt', '--identity', path], object);
      assert.ok(back.equals(plain.subarray(0, size)), `size ${size}`);
    }
  }
});

test('createAgeOpener() opens what age seals, with a key of age-keygen, whole and by range', async () => {
  const path = join(directory, 'keygen.txt');
  await writeFile(path, (await run('age-keygen', [], Buffer.alloc(0))).stdout, { mode: 0o600 });
  const recipient = /^# public key: (age1\S+)$/m.exec(await readFile(path, 'utf8'))?.[1] ?? '';
  const identities = await readIdentityFile(path);
  assert.deepEqual(
    identities.map((identity) => identity.kind === 'x25519' && identity.recipient),
    [recipient],
  );
  const opener = createAgeOpener(identities);
  for (const size of SIZES) {
    const object = await age(['--encrypt', '--recipient', recipient], plain.subarray(0, size));
    assert.ok((await whole(opener.open(once(object)))).equals(plain.subarray(0, size)), `size ${size}`);
    const source = {
      sizeBytes: object.length,
      read: (offset: number, length: number) => once(object.subarray(offset, offset + length)),
    };
    const half = Math.floor(size / 2);
    const range = await whole(opener.openRange(source, half, size - half));
    assert.ok(range.equals(plain.subarray(half, size)), `second half of ${size}`);
  }
});

test('age-keygen derives the recipient that createIdentityFile() writes', async () => {
  const path = join(directory, 'ours.txt');
  const { recipient } = await createIdentityFile(path, new Date());
  const { stdout } = await run('age-keygen', ['-y', path], Buffer.alloc(0));
  assert.equal(stdout.toString().trim(), recipient);
});

test('age refuses what createAgeOpener() refuses', async () => {
  const path = join(directory, 'both.txt');
  const { recipient } = await createIdentityFile(path, new Date());
  const opener = createAgeOpener(await readIdentityFile(path));
  const object = await whole(createAgeSealer([recipient]).seal(once(plain.subarray(0, 2 * CHUNK))));
  const flipped = Buffer.from(object);
  flipped.writeUInt8(flipped.readUInt8(object.length - 20) ^ 1, object.length - 20);
  const damaged = {
    flipped,
    cut: object.subarray(0, object.length - CHUNK - 16),
    longer: Buffer.concat([object, flipped]),
  };
  for (const [name, bytes] of Object.entries(damaged)) {
    await assert.rejects(whole(opener.open(once(bytes))), { code: 'object-damaged' }, name);
    assert.notEqual((await run('age', ['--decrypt', '--identity', path], bytes)).status, 0, name);
  }
});
