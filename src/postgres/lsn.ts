import { HoldfastError } from '../errors.ts';

/**
 * A position in the WAL: a byte offset since the cluster was made, an unsigned 64-bit number. Compare with `<`, `===`.
 * PostgreSQL manual, section "pg_lsn Type".
 */
export type Lsn = bigint & { readonly __brand: 'Lsn' };

const MAX_LSN = 0xffff_ffff_ffff_ffffn;
const LSN_TEXT = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

/** Brands a number as an LSN. Throws `assertion` outside 0 … 2^64-1. */
export function lsnOf(value: bigint): Lsn {
  if (value < 0n || value > MAX_LSN)
    throw new HoldfastError('assertion', `no lsn can have the value ${value}`);
  return value as Lsn;
}

/** From its upper and lower 32 bits. */
export function lsnOfHalves(high: number, low: number): Lsn {
  const value = high * 0x1_0000_0000 + low;
  return (Number.isSafeInteger(value) ? BigInt(value) : (BigInt(high) << 32n) + BigInt(low)) as Lsn;
}

/**
 * Reads PostgreSQL's text form, two hexadecimal halves of up to eight digits (`0/3000060`); leading zeros and either
 * case are accepted, anything else is `usage-invalid`.
 */
export function parseLsn(text: string): Lsn {
  const match = LSN_TEXT.exec(text);
  if (match === null) {
    throw new HoldfastError('usage-invalid', `"${text}" is not an lsn`, {
      hint: 'write an lsn as PostgreSQL prints it, such as 0/3000060',
    });
  }
  return ((BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)) as Lsn;
}

/** The form PostgreSQL 15 to 18 prints for `pg_lsn`: upper-case, no leading zeros (`0/3000060`). */
export function formatLsn(lsn: Lsn): string {
  const high = (lsn >> 32n).toString(16).toUpperCase();
  const low = (lsn & 0xffff_ffffn).toString(16).toUpperCase();
  return `${high}/${low}`;
}
