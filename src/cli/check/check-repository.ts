import { randomBytes, randomUUID } from 'node:crypto';
import { stat, statfs } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

import type { RepositoryConfiguration } from '../../config/configuration.ts';
import { formatSize } from '../../config/sizes.ts';
import { HoldfastError } from '../../errors.ts';
import type { Repository } from '../../repository/repository.ts';
import { openNamed, type RepositoryOpener } from '../open-repository.ts';
import type { Findings } from './finding.ts';

const PROBE_BYTES = 200_000;
const FREE_FAIL_BYTES = 256 * 1024 ** 2;
const FREE_WARN_SHARE = 0.1;

/**
 * Writes, lists, reads back and deletes one sealed probe object. Returns the open repository, or undefined where it
 * cannot be used; findings say why. Leaves nothing behind, except when it is killed: then one small object below
 * `check/`, which nothing else reads.
 */
export async function checkRepository(
  configured: RepositoryConfiguration,
  opener: RepositoryOpener,
  findings: Findings,
): Promise<Repository | undefined> {
  let repository: Repository;
  try {
    repository = await openNamed(configured, opener);
  } catch (error) {
    const unsupported =
      error instanceof HoldfastError && error.code === 'config-invalid' && !configured.required;
    if (!unsupported) findings.failure(error);
    else findings.warn(error.message, 'it is passed over; this version stores to file:// only');
    return undefined;
  }
  findings.ok(
    `${repository.storage.description} is a repository${configured.required ? '' : ' (not required)'}`,
  );
  try {
    await probe(repository, opener, findings);
  } catch (error) {
    findings.failure(error);
  }
  if (configured.url.startsWith('file:')) await checkDirectory(fileURLToPath(configured.url), findings);
  return repository;
}

async function probe(repository: Repository, opener: RepositoryOpener, findings: Findings): Promise<void> {
  const { storage, sealer } = repository;
  const signal = opener.signal === undefined ? {} : { signal: opener.signal };
  const key = `check/${randomUUID()}${sealer.suffix}`;
  const plain = randomBytes(PROBE_BYTES);
  const sealed = await gather(sealer.seal(chunks(plain)));
  try {
    const first = await storage.put(key, sealed, { ifAbsent: true, ...signal });
    const second = await storage.put(key, sealed, { ifAbsent: true, ...signal });
    if (!first.created || second.created) {
      findings.fail(
        'two writers of one object do not exclude each other',
        'use another file system or store',
      );
    }
    let listed = false;
    for await (const object of storage.list('check/', signal)) listed ||= object.key === key;
    const stored = await gather(storage.get(key, signal));
    if (!listed || !stored.equals(sealed)) {
      findings.fail(
        'an object that was written does not come back as it was',
        'use another file system or store',
      );
      return;
    }
    findings.ok('objects are written once, listed, read back and deleted');
    await roundTrip(repository, stored, plain, opener, findings);
  } finally {
    await storage.delete(key);
  }
  if ((await storage.head(key)) !== undefined) {
    findings.fail('an object that was deleted is still there', 'use another file system or store');
  }
}

async function roundTrip(
  repository: Repository,
  stored: Buffer,
  plain: Buffer,
  opener: RepositoryOpener,
  findings: Findings,
): Promise<void> {
  const { kind, recipients } = repository.sealer;
  if (kind === 'none') return;
  if (opener.configuration.identity === undefined) {
    findings.ok(
      `objects are sealed for ${recipients.length} recipient${recipients.length === 1 ? '' : 's'}; this host has no identity and cannot read them, which is right where nothing is restored`,
    );
    return;
  }
  const identity = await repository.opener(kind);
  const opened = await gather(identity.open(chunks(stored)));
  if (opened.equals(plain)) findings.ok('what is sealed here opens with the identity of this host');
  else findings.fail('what is sealed here does not open as it was', 'do not use this build of Holdfast');
}

/** PostgreSQL runs the archive command as its own user, who must be able to write too. */
async function checkDirectory(path: string, findings: Findings): Promise<void> {
  const [space, info] = await Promise.all([statfs(path), stat(path)]);
  const free = space.bavail * space.bsize;
  const total = space.blocks * space.bsize;
  const text = `${formatSize(free)} of ${formatSize(total)} are free at ${path}`;
  if (free < FREE_FAIL_BYTES) findings.fail(text, 'make room before the next backup');
  else if (free < total * FREE_WARN_SHARE) findings.warn(text, 'make room, or keep less');
  else findings.ok(text);
  if (process.getuid?.() === 0 && info.uid === 0 && (info.mode & 0o002) === 0) {
    findings.warn(
      `${path} belongs to root, and PostgreSQL's user, who runs the archive command, cannot write there`,
      `chown -R postgres: ${path}, and run Holdfast as that user: runuser -u postgres -- holdfast …`,
    );
  }
}

async function* chunks(bytes: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536);
}

async function gather(source: AsyncIterable<Buffer>): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of source) parts.push(Buffer.from(part));
  return Buffer.concat(parts);
}
