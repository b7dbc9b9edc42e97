/**
 * Where a repository's objects lie: keys and bytes, nothing of backups.
 *
 * Keys are relative, `/`-separated, each component matching `[A-Za-z0-9._-]+` and never `.` or `..`; implementations
 * refuse any other key (`assertion`). Objects are immutable by convention: nothing rewrites a key except where a caller
 * asks for replacement.
 *
 * Errors: `object-missing`, `storage-denied`, `storage-full`, `storage-unavailable` (retryable), `cancelled`.
 */
export interface Storage {
  /** For messages: the URL without secrets. */
  readonly description: string;
  readonly features: StorageFeatures;

  /**
   * Stores one object. Resolves only when it is durable and visible whole (local: file and directories fsynced).
   * A failure or a crash at any moment leaves either no object or a whole one under `key`, never a part.
   * With `ifAbsent`, an existing object is left alone and `created` is false: exactly one of several racing callers
   * gets `created: true`. Without it an existing object is replaced atomically.
   * A source that throws aborts the put; nothing becomes visible.
   */
  put(key: string, source: Buffer | AsyncIterable<Buffer>, options?: PutOptions): Promise<PutResult>;

  /**
   * Reads an object, or `range` of it (clamped to nothing: reading past the end throws `object-damaged`).
   * Throws `object-missing` on the first read where there is none. Chunks are at most 1 MiB and owned by the reader.
   */
  get(key: string, options?: GetOptions): AsyncIterable<Buffer>;

  /** Size of an object; undefined only where absence is certain (any doubt throws). */
  head(key: string, options?: { signal?: AbortSignal }): Promise<ObjectInfo | undefined>;

  /**
   * All objects whose key starts with `prefix`, in byte order of keys, in constant memory. A listing that fails midway
   * throws: it never ends early as if complete. Unfinished puts are never listed.
   */
  list(prefix: string, options?: ListOptions): AsyncIterable<ObjectInfo>;

  /** Deletes; an absent key is a success. Resolves when the deletion is durable. */
  delete(key: string, options?: { signal?: AbortSignal }): Promise<void>;

  /**
   * Makes sure that an object seen by `head` or `list` survives a power cut (a writer may have died between publishing
   * and syncing). Throws `object-missing` where there is none.
   */
  confirm(key: string): Promise<void>;

  /**
   * Frees what writers that died left unpublished and untouched for longer than `olderThanMs`. Never touches an object.
   * Absent where a store leaves nothing behind.
   */
  removeStale?(
    olderThanMs: number,
    options?: { signal?: AbortSignal },
  ): Promise<{ files: number; sizeBytes: number }>;
}

export interface StorageFeatures {
  /** `put … ifAbsent` is atomic between processes and hosts. */
  readonly conditionalPut: boolean;
  /** `get` with a range costs about the range, not the object. */
  readonly rangedGet: boolean;
}

export interface PutOptions {
  ifAbsent?: boolean;
  signal?: AbortSignal;
}

export interface PutResult {
  created: boolean;
  sizeBytes: number;
}

export interface GetOptions {
  range?: { offset: number; length: number };
  signal?: AbortSignal;
}

export interface ListOptions {
  /** Skip keys ≤ this one. */
  after?: string;
  signal?: AbortSignal;
}

export interface ObjectInfo {
  key: string;
  sizeBytes: number;
}
