import { crc32c as native } from '@node-rs/crc32';

/**
 * CRC-32C (Castagnoli), PostgreSQL's checksum for WAL records, `pg_control` and backup manifests. `seed` is the value so
 * far when bytes arrive in pieces (0 at the start).
 */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return native(bytes, seed);
}
