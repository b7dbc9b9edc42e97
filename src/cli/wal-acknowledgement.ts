import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';

import { systemErrorCode } from '../errors.ts';
import { fileFacts, type PushedAhead } from '../wal/push-ahead.ts';

/** How long the launcher takes an acknowledgement for good; it knows the same number. */
const VALID_SECONDS = 30;
const FORMAT = 'holdfast wal acknowledgement 1';

/** What PostgreSQL's command says, as far as an acknowledgement depends on it. */
interface PushWords {
  config: string;
  cluster: string | undefined;
}

/** The folder of acknowledgements below this user's cache folder. `bin/holdfast` looks for it under the same name. */
export function acknowledgementDirectory(cacheDirectory: string): string {
  return join(cacheDirectory, 'wal-pushed');
}

/** What tells one content of the configuration from another, following links; undefined where it may just be changing. */
function configurationFacts(file: string, nowMs: number): string | undefined {
  try {
    const { mtimeMs, ctimeMs } = statSync(file);
    if (nowMs - Math.max(mtimeMs, ctimeMs) < 2000) return undefined;
    return fileFacts(statSync(file, { bigint: true }));
  } catch {
    return undefined;
  }
}

/** Word for `bin/holdfast` that files are stored, so that it need not start this program when PostgreSQL asks for them. */
export interface Acknowledgements {
  /**
   * Called only when every required repository has confirmed each of the files. Best effort: never throws.
   * `docs/decisions/0005-acknowledgements-by-the-launcher.md` says why this cannot answer for a file that is not stored.
   */
  leave: (files: readonly PushedAhead[]) => void;
}

/**
 * Finds out whether word can be left here for commands with these words; undefined where it cannot, or where the launcher
 * did not take the word there is for `path`, the file that is asked for now (it has no `stat` of GNU, say): then storing
 * more than is asked for would be work for nothing.
 */
export function prepareAcknowledgements(
  directory: string,
  words: PushWords,
  path: string,
  nowMs: () => number = Date.now,
): Acknowledgements | undefined {
  const { config, cluster = '' } = words;
  const configFacts = configurationFacts(config, nowMs());
  if (configFacts === undefined) return undefined;
  try {
    makePrivate(directory);
    bootTime();
    const own = join(directory, acknowledgementName(path, fileFacts(lstatSync(path, { bigint: true }))));
    if (existsSync(own)) return undefined;
  } catch {
    return undefined;
  }
  return {
    leave(files) {
      if (configurationFacts(config, nowMs()) !== configFacts) return;
      try {
        const given = bootTime();
        for (const { path: file, facts } of files) {
          if ([file, config, cluster].some((word) => word.includes('\n'))) continue;
          const lines = [FORMAT, given, facts, configFacts, file, config, cluster];
          const temporary = join(directory, `${process.pid}.tmp`);
          writeFileSync(temporary, `${lines.join('\n')}\n`, { mode: 0o600 });
          renameSync(temporary, join(directory, acknowledgementName(file, facts)));
        }
      } catch {
        // PostgreSQL asks, and this program answers.
      }
    },
  };
}

/** The inode is in the name, so that clusters of one user do not get into each other's way. */
function acknowledgementName(path: string, facts: string): string {
  return `${basename(path)}.${facts.split(' ', 1)[0]}`;
}

/** Removes acknowledgements that are used up or too old. Never throws. */
export function removeOldAcknowledgements(directory: string, nowMs: number): void {
  let names: string[] = [];
  try {
    names = readdirSync(directory);
  } catch {
    return;
  }
  for (const name of names) {
    try {
      const file = join(directory, name);
      const { size, mtimeMs } = lstatSync(file);
      const ageMs = nowMs - mtimeMs;
      if (size === 0 || ageMs < 0 || ageMs > VALID_SECONDS * 1000) unlinkSync(file);
    } catch {
      // Another process was faster.
    }
  }
}

/** Which boot this is and the seconds since: a clock that nobody sets, and that a shell reads without a process. */
function bootTime(): string {
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const [seconds = ''] = readFileSync('/proc/uptime', 'utf8').split('.', 1);
  return `${boot} ${seconds}`;
}

function makePrivate(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o700 });
    chmodSync(directory, 0o700);
  } catch (error) {
    if (systemErrorCode(error) !== 'EEXIST') throw error;
  }
  const info = lstatSync(directory);
  if (!info.isDirectory() || info.uid !== process.getuid?.() || (info.mode & 0o777) !== 0o700) {
    throw new Error(`${directory} is not this user's alone`);
  }
}
