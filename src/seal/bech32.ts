/**
 * Bech32 as BIP 173 defines it, without its limit of 90 characters: how age writes its keys. Strings are all lower or
 * all upper case; the checksum is that of the lower-case form.
 */
const ALPHABET = 'qpzry9x8gf2tvdw0s3jn54khce6mua7l';
const GENERATOR = [0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3];
const CHECKSUM_LENGTH = 6;

/** The lower-case Bech32 text of `bytes` under the lower-case human-readable part `prefix`. */
export function encodeBech32(prefix: string, bytes: Uint8Array): string {
  const words = regroup(bytes, 8, 5, true);
  if (words === undefined) throw new Error('bytes always regroup with padding');
  const sum = polymod([...expandPrefix(prefix), ...words, ...Array<number>(CHECKSUM_LENGTH).fill(0)]) ^ 1;
  const checksum = Array.from({ length: CHECKSUM_LENGTH }, (_, index) => (sum >>> (5 * (5 - index))) & 31);
  return `${prefix}1${[...words, ...checksum].map((word) => ALPHABET[word]).join('')}`;
}

/** Prefix (lower-cased) and bytes of a Bech32 text; undefined where it is not one, or its checksum does not fit. */
export function decodeBech32(text: string): { prefix: string; bytes: Buffer } | undefined {
  const lower = text.toLowerCase();
  if (text !== lower && text !== text.toUpperCase()) return undefined;
  const separator = lower.lastIndexOf('1');
  if (separator < 1 || lower.length - separator - 1 < CHECKSUM_LENGTH) return undefined;
  const prefix = lower.slice(0, separator);
  if (!/^[\x21-\x7e]+$/.test(prefix)) return undefined;
  const words = Array.from(lower.slice(separator + 1), (character) => ALPHABET.indexOf(character));
  if (words.includes(-1)) return undefined;
  if (polymod([...expandPrefix(prefix), ...words]) !== 1) return undefined;
  const bytes = regroup(words.slice(0, -CHECKSUM_LENGTH), 5, 8, false);
  return bytes === undefined ? undefined : { prefix, bytes: Buffer.from(bytes) };
}

function expandPrefix(prefix: string): number[] {
  const codes = Array.from(prefix, (character) => character.charCodeAt(0));
  return [...codes.map((code) => code >> 5), 0, ...codes.map((code) => code & 31)];
}

function polymod(words: readonly number[]): number {
  let sum = 1;
  for (const word of words) {
    const top = sum >>> 25;
    sum = ((sum & 0x1ffffff) << 5) ^ word;
    for (const [bit, mask] of GENERATOR.entries()) if ((top >>> bit) & 1) sum ^= mask;
  }
  return sum;
}

/** Regroups bits. Without padding, left-over bits must be fewer than a group and all zero. */
function regroup(values: Iterable<number>, from: number, to: number, pad: boolean): number[] | undefined {
  const result: number[] = [];
  let held = 0;
  let bits = 0;
  for (const value of values) {
    held = (held << from) | value;
    bits += from;
    while (bits >= to) {
      bits -= to;
      result.push((held >>> bits) & ((1 << to) - 1));
    }
    held &= (1 << bits) - 1;
  }
  if (pad) {
    if (bits > 0) result.push((held << (to - bits)) & ((1 << to) - 1));
  } else if (bits >= from || held !== 0) {
    return undefined;
  }
  return result;
}
