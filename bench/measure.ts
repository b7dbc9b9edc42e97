import { type ChildProcess, spawn } from 'node:child_process';
import { openSync, closeSync, readFileSync } from 'node:fs';

import { cancellation } from '../src/cancellation.ts';
import type { ServerUser } from '../src/postgres/server-user.ts';

/** What one program took, from its start to its end. */
export interface Measured {
  wallMs: number;
  /** User and system time of the program and its children, as the kernel counts it (in ticks of 10 ms). */
  cpuMs: number;
  /** Sum of the memory high-water marks (`VmHWM`) of the program's processes. */
  peakBytes: number;
  stdout: string;
}

export interface RunOptions {
  user: ServerUser | undefined;
  directory: string;
  environment: Readonly<Record<string, string>>;
  signal: AbortSignal;
  /** Standard output goes to /dev/null instead of into `stdout`. */
  discard?: boolean;
  /** Do not look into /proc while it runs: for programs that take milliseconds. */
  onlyTime?: boolean;
  /** Called with the resident memory of the program's processes, some fifty times a second. */
  resident?: (bytes: number) => void;
}

/** How often the program's processes are looked at. High-water marks only grow, so little is missed between. */
const POLL_MS = 20;
const TICK_MS = 10;
const GRACE_MS = 10_000;

/**
 * Runs a program in a process group of its own and measures it. Any exit status but 0 throws, with the end of what it
 * wrote to standard error. When `signal` aborts, the whole group is ended before this rejects.
 */
export async function measure(
  program: string,
  words: readonly string[],
  options: RunOptions,
): Promise<Measured> {
  const { user, directory, environment, signal } = options;
  if (signal.aborted) throw cancellation(signal);
  const sink = options.discard === true ? openSync('/dev/null', 'w') : 'pipe';
  const startedMs = performance.now();
  const child = spawn(program, words, {
    cwd: directory,
    env: environment,
    detached: true,
    stdio: ['ignore', sink, 'pipe'],
    ...(user !== undefined && { uid: user.uid, gid: user.gid }),
  });
  if (typeof sink === 'number') closeSync(sink);
  let stdout = '';
  let stderr = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-4000);
  });
  const watch =
    options.onlyTime === true || child.pid === undefined ? undefined : watchTree(child.pid, options.resident);
  let killing: NodeJS.Timeout | undefined;
  const end = (): void => {
    endGroup(child, 'SIGTERM');
    killing = setTimeout(() => endGroup(child, 'SIGKILL'), GRACE_MS);
  };
  signal.addEventListener('abort', end, { once: true });
  let wallMs = 0;
  try {
    const status = await new Promise<number | string>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => {
        wallMs = performance.now() - startedMs;
      });
      child.once('close', (code, by) => resolve(code ?? by ?? 'unknown'));
    });
    if (signal.aborted) throw cancellation(signal);
    if (status !== 0) {
      throw new Error(
        `${program} ${words.join(' ')} ended with ${status}:\n${stderr.trim() || stdout.trim()}`,
      );
    }
  } finally {
    signal.removeEventListener('abort', end);
    clearTimeout(killing);
    watch?.stop();
  }
  return { wallMs, cpuMs: watch?.cpuMs() ?? 0, peakBytes: watch?.peakBytes() ?? 0, stdout };
}

function endGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // It has ended by itself.
  }
}

interface Watch {
  stop(): void;
  cpuMs(): number;
  peakBytes(): number;
}

/** Follows a process and everything below it in /proc (see proc(5)). */
function watchTree(root: number, resident: ((bytes: number) => void) | undefined): Watch {
  const cpu = new Map<number, number>();
  const peak = new Map<number, number>();
  let residentBytes = 0;
  const look = (pid: number): void => {
    const status = readProc(pid, 'status');
    const stat = readProc(pid, 'stat');
    const highWater = /^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1];
    residentBytes += Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
    // Behind the program's name, which may hold anything: state is field 3, utime 14, stime 15.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (highWater !== undefined) peak.set(pid, Math.max(peak.get(pid) ?? 0, Number(highWater) * 1024));
    if (fields.length > 12) cpu.set(pid, (Number(fields[11]) + Number(fields[12])) * TICK_MS);
    for (const child of readProc(pid, `task/${pid}/children`).split(' ')) {
      if (child !== '') look(Number(child));
    }
  };
  const timer = setInterval(() => {
    residentBytes = 0;
    look(root);
    resident?.(residentBytes);
  }, POLL_MS);
  const sum = (values: Map<number, number>): number => [...values.values()].reduce((a, b) => a + b, 0);
  return { stop: () => clearInterval(timer), cpuMs: () => sum(cpu), peakBytes: () => sum(peak) };
}

function readProc(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'utf8');
  } catch {
    return '';
  }
}
