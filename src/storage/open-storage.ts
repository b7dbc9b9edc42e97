import { fileURLToPath } from 'node:url';

import { HoldfastError } from '../errors.ts';
import { createLocalStorage } from './local.ts';
import type { Storage } from './storage.ts';

const SUPPORTED = 'file:///absolute/directory';

/**
 * The store a repository's URL names. Throws `config-invalid` for what is not supported; nothing is contacted or touched
 * before the first operation. Messages never repeat the URL as a whole: it may carry secrets.
 */
export function openStorage(url: string): Storage {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(url)?.[1]?.toLowerCase();
  if (scheme === undefined) {
    throw invalid('a repository is given by a URL, and this has no scheme', `write it as ${SUPPORTED}`);
  }
  if (scheme !== 'file') {
    throw invalid(`repositories on ${scheme}: are not supported`, `supported: ${SUPPORTED}`);
  }
  return createLocalStorage(localPath(url));
}

function localPath(url: string): string {
  const spelling = `write it as ${SUPPORTED}, with three slashes`;
  if (!/^file:\/\//i.test(url)) throw invalid('the path of a file: URL must be absolute', spelling);
  let path: string;
  try {
    const parsed = new URL(url);
    if (parsed.host !== '') throw invalid(`"${parsed.host}" stands where a file: URL has no host`, spelling);
    if (parsed.search !== '' || parsed.hash !== '') {
      throw invalid('a file: URL takes no ? or # part', 'write ? as %3F and # as %23 if the path has them');
    }
    path = fileURLToPath(parsed);
  } catch (error) {
    if (error instanceof HoldfastError) throw error;
    throw invalid('the file: URL cannot be understood', spelling, error);
  }
  if (path === '/')
    throw invalid('the file system root cannot be a repository', 'name a directory of its own');
  if (path.includes('\0')) throw invalid('the path of the file: URL has a NUL character', spelling);
  return path;
}

function invalid(message: string, hint: string, cause?: unknown): HoldfastError {
  return new HoldfastError('config-invalid', message, { hint, cause });
}
