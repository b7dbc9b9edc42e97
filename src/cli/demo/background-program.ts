import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import { HoldfastError } from '../../errors.ts';
import type { Program } from './run-program.ts';

/** A command that runs until it is told to end; killed where it is left behind. */
export interface BackgroundProgram extends AsyncDisposable {
  /** Asks it to end and waits for it. Throws where it ended otherwise, or does not end within 20 s. */
  stop(): Promise<void>;
}

const READY_MS = 30_000;
const STOP_MS = 20_000;

/**
 * Starts one holdfast command that stays. Resolves when it has printed a line that `isReady` knows; throws where it ends
 * before that. What it prints is given to `say`. It is killed when the program's signal is aborted.
 */
export async function startProgram(
  program: Program,
  words: readonly string[],
  say: (line: string) => void,
  isReady: (line: string) => boolean,
): Promise<BackgroundProgram> {
  const { launcher, directory, user, environment, signal } = program;
  const child = spawn(launcher, words, {
    cwd: directory,
    env: { ...environment, HOME: directory },
    stdio: ['ignore', 'ignore', 'pipe'],
    ...(user !== undefined && { uid: user.uid, gid: user.gid }),
    signal,
    killSignal: 'SIGKILL',
  });
  const ended = new Promise<string>((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, by) => resolve(by === null ? `with status ${code}` : `by ${by}`));
  });
  const lines = createInterface({ input: child.stderr });
  await new Promise<void>((resolve, reject) => {
    const give = (how: string): void =>
      reject(new HoldfastError('assertion', `"holdfast ${words.join(' ')}" ${how}`));
    const late = setTimeout(() => give('was not ready in time'), READY_MS);
    lines.on('line', (line) => {
      say(line);
      if (!isReady(line)) return;
      clearTimeout(late);
      resolve();
    });
    void ended.then((how) => {
      clearTimeout(late);
      give(`ended ${how}`);
    });
  });
  return {
    async stop() {
      child.kill('SIGTERM');
      const forced = setTimeout(() => child.kill('SIGKILL'), STOP_MS);
      const how = await ended;
      clearTimeout(forced);
      if (how !== 'with status 0') {
        throw new HoldfastError('assertion', `"holdfast ${words.join(' ')}" ended ${how}`);
      }
    },
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL');
      await ended;
    },
  };
}
