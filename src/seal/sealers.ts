/**
 * Chooses how objects are sealed and opened. Each kind is loaded when it is needed: a setup without encryption loads
 * none of the cryptography.
 */
import { HoldfastError } from '../errors.ts';
import type { Identity } from './identity.ts';
import { noneOpener, noneSealer } from './none.ts';
import type { Opener, SealKind, Sealer } from './sealer.ts';

/**
 * The sealer for a configuration's recipients: none → stored in clear, `age1…` → age. Throws `config-invalid` for
 * anything else, and for what this version cannot do.
 */
export async function sealerFor(recipients: readonly string[]): Promise<Sealer> {
  if (recipients.length === 0) return noneSealer;
  for (const recipient of recipients) {
    if (recipient.startsWith('gpg:')) throw gpgUnavailable();
    if (!recipient.startsWith('age1')) throw unknownRecipient(recipient);
  }
  const { createAgeSealer } = await import('./age.ts');
  return createAgeSealer(recipients);
}

/** The opener for objects of a kind. `identities` may be empty: then opening a sealed object throws `key-missing`. */
export async function openerFor(kind: SealKind, identities: readonly Identity[]): Promise<Opener> {
  if (kind === 'none') return noneOpener;
  if (kind === 'gpg') throw gpgUnavailable();
  const { createAgeOpener } = await import('./age.ts');
  return createAgeOpener(identities);
}

/** How the object under `key` is sealed, told by what its key ends with. */
export function sealKindOf(key: string): SealKind {
  if (key.endsWith('.age')) return 'age';
  if (key.endsWith('.gpg')) return 'gpg';
  return 'none';
}

function gpgUnavailable(): HoldfastError {
  return new HoldfastError('config-invalid', 'sealing with gpg is not available in this version', {
    hint: 'seal for an age recipient (age1…); `holdfast key generate` makes one',
  });
}

function unknownRecipient(recipient: string): HoldfastError {
  // A secret key pasted in the wrong place must not reach a log.
  const secret = /secret|private|key-/i.test(recipient);
  return new HoldfastError(
    'config-invalid',
    secret
      ? 'a recipient looks like a secret key: recipients are public keys'
      : `recipient '${recipient}' is of no known kind`,
    { hint: 'recipients are `age1…`' },
  );
}
