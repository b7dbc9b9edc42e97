/** Identities (secret keys) and the file that holds them: age's format, one key a line, `#` starts a comment line. */
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { HoldfastError, systemErrorCode } from '../errors.ts';
import type { PassphraseIdentity } from './age-scrypt.ts';
import { type X25519Identity, generateX25519, parseX25519Identity } from './age-x25519.ts';

export type Identity = X25519Identity | PassphraseIdentity;

const MAX_FILE_BYTES = 1024 * 1024;

/** A new key pair: the secret `AGE-SECRET-KEY-1…` and the public `age1…`. */
export function generateIdentity(): { identity: string; recipient: string } {
  return generateX25519();
}

/**
 * Makes a key pair and writes it to a new file that only its owner can read, as `age-keygen` does. Resolves when the
 * file is durable: backups sealed for the recipient depend on it. Throws `option-conflict` where `path` exists.
 */
export async function createIdentityFile(path: string, created: Date): Promise<{ recipient: string }> {
  const { identity, recipient } = generateIdentity();
  const text = `# created: ${created.toISOString()}\n# public key: ${recipient}\n${identity}\n`;
  let file: FileHandle;
  try {
    file = await open(path, 'wx', 0o600);
  } catch (cause) {
    if (systemErrorCode(cause) !== 'EEXIST') throw cause;
    throw new HoldfastError('option-conflict', `identity file ${path} exists already`, {
      hint: 'use it, or name another file: overwriting it would lose every backup sealed for it',
      cause,
    });
  }
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  const directory = await open(dirname(path), 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
  return { recipient };
}

/**
 * The identities of a file. Throws `key-missing` where there is no file or no key in it, `config-invalid` for a line
 * that is no key and for a file that others may read. Messages name lines, never what they hold.
 */
export async function readIdentityFile(path: string): Promise<Identity[]> {
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    const reason = systemErrorCode(cause) === 'ENOENT' ? 'does not exist' : 'cannot be read';
    throw new HoldfastError('key-missing', `identity file ${path} ${reason}`, {
      hint: 'set encryption.identity to the file that holds the secret key, readable by the user Holdfast runs as',
      cause,
    });
  }
  try {
    const { mode, uid, size } = await file.stat();
    const problem = permissionProblem(mode, uid);
    if (problem !== undefined) {
      throw new HoldfastError('config-invalid', `identity file ${path} is not kept secret: ${problem}`, {
        hint: `chmod 600 ${path}`,
      });
    }
    if (size > MAX_FILE_BYTES)
      throw new HoldfastError('config-invalid', `${path} is no identity file: too large`);
    return parseIdentities(await file.readFile('utf8'), path);
  } finally {
    await file.close();
  }
}

/**
 * Why a file's permissions do not fit a secret, or undefined. The rule is PostgreSQL's own for a server's SSL key
 * (manual, "Secure TCP/IP Connections with SSL"): 0600, or 0640 where root owns it.
 */
export function permissionProblem(mode: number, uid: number): string | undefined {
  if ((mode & 0o007) !== 0) return 'every user of this machine has access to it';
  if ((mode & 0o030) !== 0) return 'its group may change it';
  if ((mode & 0o040) !== 0 && uid !== 0) return 'its group may read it and its owner is not root';
  return undefined;
}

/** Reads the text of an identity file; `name` is for messages. Throws as `readIdentityFile`. */
export function parseIdentities(text: string, name: string): Identity[] {
  if (text.startsWith('age-encryption.org/') || text.startsWith('-----BEGIN AGE')) {
    throw new HoldfastError('config-invalid', `identity file ${name} is itself encrypted`, {
      hint: `age --decrypt --output identity.txt ${name}`,
    });
  }
  const identities: Identity[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    const key = line.trim();
    if (key === '' || key.startsWith('#')) continue;
    const identity = parseX25519Identity(key);
    if (identity === undefined) {
      throw new HoldfastError(
        'config-invalid',
        `line ${index + 1} of identity file ${name} is ${lineProblem(key)}`,
        { hint: 'each line is a comment (#) or one AGE-SECRET-KEY-1… as `age-keygen` writes it' },
      );
    }
    identities.push(identity);
  }
  if (identities.length === 0) {
    throw new HoldfastError('key-missing', `identity file ${name} holds no key`, {
      hint: 'make one with `holdfast key generate` or `age-keygen`',
    });
  }
  return identities;
}

function lineProblem(line: string): string {
  if (line.startsWith('AGE-SECRET-KEY-1')) return 'a misspelt key: its checksum does not fit';
  if (line.startsWith('AGE-')) return 'a kind of key that is not supported: only X25519 keys are';
  if (line.startsWith('age1')) return 'a public key, not a secret one';
  return 'not an age secret key';
}
