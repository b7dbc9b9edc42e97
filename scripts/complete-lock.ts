import { readFile, writeFile } from 'node:fs/promises';

import { completeLock, type LockFile } from './lock-file.ts';

/**
 * Adds to package-lock.json the optional packages of other platforms that npm left out because it could not look them up
 * (a mirror that serves one platform does that). `npm ci` refuses a lock file without them on every machine.
 */
const path = new URL('../package-lock.json', import.meta.url);
const lock = JSON.parse(await readFile(path, 'utf8')) as LockFile;
const added = completeLock(lock);
await writeFile(path, `${JSON.stringify(lock, null, 2)}\n`);
process.stdout.write(added.length === 0 ? 'package-lock.json is complete\n' : `added ${added.join(', ')}\n`);
