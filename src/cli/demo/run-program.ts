import { spawn } from 'node:child_process';

import { cancellation } from '../../cancellation.ts';
import { HoldfastError } from '../../errors.ts';
import type { ServerUser } from '../../postgres/server-user.ts';

export interface Program {
  launcher: string;
  directory: string;
  user: ServerUser | undefined;
  environment: Readonly<Record<string, string | undefined>>;
  signal: AbortSignal;
}

/** Longest a command of the demonstration may take. */
const DEADLINE_MS = 100_000;

/**
 * Runs one holdfast command as a user would type it. What it prints is given to `say`, line by line; standard output is
 * returned as well. An exit status that is not expected, a signal or a missed deadline throws.
 */
export async function runProgram(
  program: Program,
  words: readonly string[],
  say: (line: string) => void,
  expected: readonly number[] = [0],
): Promise<string> {
  const { launcher, directory, user, environment, signal } = program;
  const child = spawn(launcher, words, {
    cwd: directory,
    env: { ...environment, HOME: directory },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(user !== undefined && { uid: user.uid, gid: user.gid }),
  });
  const stop = (): void => void child.kill('SIGTERM');
  signal.addEventListener('abort', stop, { once: true });
  const deadline = setTimeout(() => child.kill('SIGKILL'), DEADLINE_MS);
  let printed = '';
  const wantsJson = words.includes('--json');
  const relay = (stream: NodeJS.ReadableStream, keep: boolean): void => {
    let rest = '';
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => {
      if (keep) printed += text;
      if (keep && wantsJson) return;
      const lines = (rest + text).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) say(line);
    });
    stream.on('end', () => {
      if (rest !== '') say(rest);
    });
  };
  relay(child.stdout, true);
  relay(child.stderr, false);
  try {
    const ended = await new Promise<{ code: number | null; by: string | null }>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, by) => resolve({ code, by }));
    });
    if (signal.aborted) throw cancellation(signal);
    if (ended.code === null || !expected.includes(ended.code)) {
      const how = ended.by === null ? `with status ${ended.code}` : `by ${ended.by}`;
      throw new HoldfastError('assertion', `"holdfast ${words.join(' ')}" ended ${how}`);
    }
    return printed;
  } finally {
    clearTimeout(deadline);
    signal.removeEventListener('abort', stop);
  }
}
