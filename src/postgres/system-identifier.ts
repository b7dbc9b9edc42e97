import { HoldfastError } from '../errors.ts';

/**
 * The number initdb gives a cluster and its standbys keep; the decimal text of an unsigned 64-bit number other than 0,
 * as `pg_control_system()` and IDENTIFY_SYSTEM print it. Only ever compared, so it stays text.
 */
export type SystemIdentifier = string & { readonly __brand: 'SystemIdentifier' };

const DECIMAL = /^[1-9][0-9]{0,19}$/;
const MAX = 0xffff_ffff_ffff_ffffn;

/** Reads the decimal form (no sign, no leading zeros); anything else is `usage-invalid`. Safe as a path component. */
export function parseSystemIdentifier(text: string): SystemIdentifier {
  if (!DECIMAL.test(text) || BigInt(text) > MAX) {
    throw new HoldfastError('usage-invalid', `"${text}" is not a system identifier`, {
      hint: 'select system_identifier from pg_control_system()',
    });
  }
  return text as SystemIdentifier;
}

/** The text form of the number found in WAL headers and pg_control. Throws `assertion` for 0 and beyond 64 bits. */
export function formatSystemIdentifier(value: bigint): SystemIdentifier {
  if (value <= 0n || value > MAX) {
    throw new HoldfastError('assertion', `no system identifier can have the value ${value}`);
  }
  return value.toString() as SystemIdentifier;
}
