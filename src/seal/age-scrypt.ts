/** age's passphrase recipient (https://c2sp.org/age, section "The scrypt recipient type"). */
import { type KeyObject, createSecretKey, randomBytes, scrypt } from 'node:crypto';
import { promisify } from 'node:util';
import { damaged, decodeBase64, encodeBase64, unwrapFileKey, wrapFileKey } from './age-format.ts';
import type { Stanza } from './age-format.ts';

/** A passphrase, kept as a key object, which shows nothing when logged. */
export interface PassphraseIdentity {
  kind: 'passphrase';
  secret: KeyObject;
}

/** Base-two logarithm of the work factor of new stanzas, as age has it: about a second and 256 MiB of memory. */
export const DEFAULT_WORK_FACTOR = 18;
/** More is refused when opening: 1 GiB of memory, which whoever wrote the object makes the reader spend. */
const MAX_WORK_FACTOR = 20;

const STANZA_KIND = 'scrypt';
const SALT_BYTES = 16;
const BLOCK_SIZE = 8;

const scryptAsync = promisify(
  (
    password: Buffer,
    salt: Buffer,
    options: { N: number; r: number; p: number; maxmem: number },
    done: (error: Error | null, key: Buffer) => void,
  ) => scrypt(password, salt, 32, options, done),
);

/** An identity that opens what was sealed with `passphrase`. */
export function passphraseIdentity(passphrase: string): PassphraseIdentity {
  return { kind: 'passphrase', secret: createSecretKey(passphrase, 'utf8') };
}

/** Wraps a file key with a passphrase, under a new salt. The stanza must be the only one of its header. */
export async function wrapWithPassphrase(
  identity: PassphraseIdentity,
  fileKey: Buffer,
  workFactor: number,
): Promise<Stanza> {
  const salt = randomBytes(SALT_BYTES);
  const wrapKey = await wrapKeyOf(identity, salt, workFactor);
  return {
    args: [STANZA_KIND, encodeBase64(salt), String(workFactor)],
    body: wrapFileKey(wrapKey, fileKey),
  };
}

/**
 * The file key that a scrypt stanza wraps; undefined where there is none or the passphrase is another. The header must
 * have passed `checkScryptAlone`. Throws `object-damaged` for a malformed stanza and for one that asks for too much work.
 */
export async function unwrapWithPassphrase(
  identity: PassphraseIdentity,
  stanzas: readonly Stanza[],
): Promise<Buffer | undefined> {
  const [stanza] = stanzas;
  if (stanza?.args[0] !== STANZA_KIND) return undefined;
  const [, saltText = '', workText = ''] = stanza.args;
  const salt = decodeBase64(saltText);
  if (stanza.args.length !== 3 || salt?.length !== SALT_BYTES || !/^[1-9][0-9]{0,2}$/.test(workText)) {
    throw damaged('its scrypt stanza is malformed');
  }
  const workFactor = Number(workText);
  if (workFactor > MAX_WORK_FACTOR) throw damaged(`its scrypt work factor is too high: 2^${workFactor}`);
  return unwrapFileKey(await wrapKeyOf(identity, salt, workFactor), stanza.body);
}

/**
 * Throws `object-damaged` where a scrypt stanza stands beside another: whoever opens with a passphrase expects that
 * only those who know it could have sealed.
 */
export function checkScryptAlone(stanzas: readonly Stanza[]): void {
  if (stanzas.length > 1 && stanzas.some(({ args }) => args[0] === STANZA_KIND)) {
    throw damaged('it mixes a passphrase with other recipients');
  }
}

async function wrapKeyOf(identity: PassphraseIdentity, salt: Buffer, workFactor: number): Promise<Buffer> {
  const N = 2 ** workFactor;
  const labelled = Buffer.concat([Buffer.from('age-encryption.org/v1/scrypt'), salt]);
  // Node counts 128 * N * r and a little for p.
  const maxmem = 128 * BLOCK_SIZE * (N + 64);
  return scryptAsync(identity.secret.export(), labelled, { N, r: BLOCK_SIZE, p: 1, maxmem });
}
