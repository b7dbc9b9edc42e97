import { spawn } from 'node:child_process';
import { HoldfastError, errorText, systemErrorCode } from '../errors.ts';

export interface RunToolOptions {
  /** Unprivileged user to run as; only root may give one. */
  user?: { uid: number; gid: number } | undefined;
  env?: NodeJS.ProcessEnv;
  deadlineMs: number;
  signal?: AbortSignal | undefined;
}

export interface ToolResult {
  /** undefined where a signal ended the child. */
  code: number | undefined;
  signal: NodeJS.Signals | undefined;
  stdout: string;
  stderr: string;
}

/** The last 64 KiB of each stream are kept; the rest is read and dropped so that the child never blocks. */
const KEPT_OUTPUT = 64 * 1024;

/**
 * Runs a short-lived program to its end, with both pipes drained, in `/` (a directory every user may enter).
 * A program that outlives `deadlineMs` is killed and `server-error` is thrown; one that cannot be started throws
 * `postgres-missing`. Any exit status is returned, not judged.
 */
export async function runTool(
  program: string,
  argumentList: readonly string[],
  options: RunToolOptions,
): Promise<ToolResult> {
  options.signal?.throwIfAborted();
  return await new Promise<ToolResult>((resolve, reject) => {
    const child = spawn(program, argumentList, {
      cwd: '/',
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(options.env === undefined ? {} : { env: options.env }),
      ...(options.user === undefined ? {} : { uid: options.user.uid, gid: options.user.gid }),
    });
    let stdout = '';
    let stderr = '';
    let failure: Error | undefined;
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout = (stdout + text).slice(-KEPT_OUTPUT);
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-KEPT_OUTPUT);
    });
    const end = (reason: Error): void => {
      failure ??= reason;
      child.kill('SIGKILL');
    };
    const timer = setTimeout(() => {
      end(new HoldfastError('server-error', `${program} did not end within ${options.deadlineMs} ms`));
    }, options.deadlineMs);
    const onAbort = (): void => {
      end(new HoldfastError('cancelled', `${program} was cancelled`));
    };
    options.signal?.addEventListener('abort', onAbort, { once: true });
    const settle = (): void => {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    };
    child.once('error', (error) => {
      settle();
      reject(
        new HoldfastError('postgres-missing', `cannot run ${program}: ${errorText(error)}`, {
          cause: error,
          context: { program, reason: systemErrorCode(error) ?? null },
        }),
      );
    });
    child.once('close', (code, signal) => {
      settle();
      if (failure === undefined) {
        resolve({ code: code ?? undefined, signal: signal ?? undefined, stdout, stderr });
      } else {
        reject(failure);
      }
    });
  });
}
