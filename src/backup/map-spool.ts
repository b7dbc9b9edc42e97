import { HoldfastError } from '../errors.ts';
import { ByteReader, ByteWriter } from '../repository/byte-codec.ts';
import { decodeEntry, encodeEntry, entryKey, fileKey, type MapEntry } from '../repository/block-map.ts';
import { ExternalSort } from '../stream/external-sort.ts';

/** What PostgreSQL's backup manifest says of one file. */
export interface ManifestFile {
  path: string;
  sizeBytes: number;
  crc32c: number;
}

/**
 * Takes the entries of a new block map in the order the server sends files, and gives them in the order of the map, in
 * bounded memory. On the way every file is compared with PostgreSQL's own manifest.
 */
export class MapSpool implements AsyncDisposable {
  readonly #entries: ExternalSort;
  readonly #manifest: ExternalSort;
  readonly #runs: string[] = [];
  readonly #runNumbers = new Map<string, number>();

  constructor(scratchDirectory: string) {
    this.#entries = new ExternalSort(scratchDirectory);
    this.#manifest = new ExternalSort(scratchDirectory);
  }

  add(entry: MapEntry): Promise<void> | undefined {
    const out = new ByteWriter(256);
    encodeEntry(out, entry, (run) => this.#runNumber(run));
    return this.#entries.add(entryKey(entry), Buffer.from(out.finish()));
  }

  addManifestFile(file: ManifestFile): Promise<void> | undefined {
    const value = Buffer.allocUnsafe(12);
    value.writeDoubleLE(file.sizeBytes, 0);
    value.writeUInt32LE(file.crc32c, 8);
    return this.#manifest.add(fileKey(file.path), value);
  }

  /**
   * The entries, in order, once. Throws `checksum-mismatch` at the first file that is not what PostgreSQL says it sent,
   * that it sent and we do not have, or that we have and it does not know.
   */
  async *entries(): AsyncGenerator<MapEntry> {
    const manifest = this.#manifest.sorted();
    try {
      let expected = await manifest.next();
      for await (const { key, value } of this.#entries.sorted()) {
        const entry = decodeEntry(new ByteReader(value), this.#runs);
        if (entry.kind === 'file') {
          if (expected.done === true || expected.value.key > key)
            throw differs(entry.path, 'it is not in the manifest');
          if (expected.value.key < key) throw differs(pathOf(expected.value.key), 'it did not arrive');
          compare(entry, expected.value.value);
          expected = await manifest.next();
        }
        yield entry;
      }
      if (expected.done !== true) throw differs(pathOf(expected.value.key), 'it did not arrive');
    } finally {
      await manifest.return(undefined);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#entries[Symbol.asyncDispose]();
    await this.#manifest[Symbol.asyncDispose]();
  }

  #runNumber(run: string): number {
    const known = this.#runNumbers.get(run);
    if (known !== undefined) return known;
    this.#runNumbers.set(run, this.#runs.length);
    return this.#runs.push(run) - 1;
  }
}

function compare(entry: { path: string; sizeBytes: number; crc32c: number }, manifest: Buffer): void {
  const sizeBytes = manifest.readDoubleLE(0);
  if (sizeBytes !== entry.sizeBytes)
    throw differs(entry.path, `${entry.sizeBytes} bytes arrived of ${sizeBytes}`);
  if (manifest.readUInt32LE(8) !== entry.crc32c) throw differs(entry.path, 'its checksum is another');
}

function pathOf(key: string): string {
  return key.slice(0, -1);
}

function differs(path: string, how: string): HoldfastError {
  return new HoldfastError(
    'checksum-mismatch',
    `what arrived is not what PostgreSQL's backup manifest says: ${JSON.stringify(path)}: ${how}`,
    { hint: 'take the backup again; if it happens again, check the network and the memory of both machines' },
  );
}
