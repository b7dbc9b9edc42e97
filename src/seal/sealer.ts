/**
 * Sealing: every object of a repository is sealed by itself, for recipients (public keys). A host that only writes
 * needs a `Sealer`; reading needs an `Opener`, which holds identities (secret keys).
 */
export type SealKind = 'none' | 'age' | 'gpg';

export interface Sealer {
  readonly kind: SealKind;
  /** What a sealed object's key ends with: '', '.age', '.gpg'. */
  readonly suffix: '' | '.age' | '.gpg';
  /** Public descriptions of the recipients, for records and `show`. Empty for `none`. */
  readonly recipients: readonly string[];
  /** Encrypts a stream under fresh keys (two calls never share one). Streams: holds no more than a few chunks. */
  seal(plain: AsyncIterable<Buffer>): AsyncIterable<Buffer>;
}

/** Ranged reading of a sealed object, for openers that can use it. */
export interface RangeSource {
  sizeBytes: number;
  read(offset: number, length: number): AsyncIterable<Buffer>;
}

export interface Opener {
  readonly kind: SealKind;
  /**
   * Decrypts a stream. Only authenticated bytes are ever yielded; truncation, reordering or a flipped bit throws
   * `object-damaged`; no fitting identity throws `key-wrong`.
   */
  open(sealed: AsyncIterable<Buffer>): AsyncIterable<Buffer>;
  /** Bytes [offset, offset+length) of the plaintext, where the format allows it without reading everything before. */
  openRange?(source: RangeSource, offset: number, length: number): AsyncIterable<Buffer>;
}
