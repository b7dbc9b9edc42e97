import { assert } from '../errors.ts';

/** What the names of unfinished puts begin with. No component of a key may, so that no object is mistaken for one. */
export const TEMPORARY_PREFIX = '.tmp-';

/** S3 allows 1,024 bytes and file systems 255 a name; a key that one store takes must fit every other. */
const KEY_MAX_LENGTH = 900;
const COMPONENT_MAX_LENGTH = 255;
const COMPONENT = /^[A-Za-z0-9._-]+$/;

/** Whether `name` can be one `/`-separated part of a key. */
export function isKeyComponent(name: string): boolean {
  return (
    COMPONENT.test(name) &&
    name.length <= COMPONENT_MAX_LENGTH &&
    name !== '.' &&
    name !== '..' &&
    !name.startsWith(TEMPORARY_PREFIX)
  );
}

/** Throws `assertion` for anything that is not a key as `Storage` defines it: keys are made by code, never by users. */
export function checkKey(key: string): void {
  const valid = key.length <= KEY_MAX_LENGTH && key.split('/').every((part) => isKeyComponent(part));
  assert(valid, `${JSON.stringify(key)} is not a valid storage key`);
}

/** Like `checkKey` for the prefix of a listing, whose last part may be empty or the beginning of a name. */
export function checkPrefix(prefix: string): void {
  const parts = prefix.split('/');
  const last = parts.pop() ?? '';
  const valid =
    prefix.length <= KEY_MAX_LENGTH &&
    parts.every((part) => isKeyComponent(part)) &&
    (last === '' || COMPONENT.test(last));
  assert(valid, `${JSON.stringify(prefix)} is not a valid prefix of storage keys`);
}

/** A key's directory (`''` at the top) and its last part. */
export function splitKey(key: string): { directory: string; name: string } {
  const slash = key.lastIndexOf('/');
  return slash < 0
    ? { directory: '', name: key }
    : { directory: key.slice(0, slash), name: key.slice(slash + 1) };
}
