import { isatty } from 'node:tty';

import { HoldfastError } from '../errors.ts';
import { endProcess, writeThrough } from './end-process.ts';
import { exitStatus } from './exit.ts';
import { formatError } from './report-error.ts';
import type { Sink } from './output.ts';
import { splitCommand } from './split-command.ts';
import type { WalKind } from './wal-program.ts';

/**
 * The program. PostgreSQL runs `wal push` and `wal fetch` once per segment, so these load a small program of their
 * own; everything else loads its one command.
 */
// Meant for this process, not for the servers and programs it starts, which may run as another user.
delete process.env['NODE_COMPILE_CACHE'];

const words = process.argv.slice(2);
const controller = new AbortController();
const WAL_COMMANDS: Readonly<Record<string, WalKind>> = {
  'wal push': 'push',
  'wal fetch': 'fetch',
  'wal prefetch': 'prefetch',
};
const { name, rest } = splitCommand(words, Object.keys(WAL_COMMANDS));
const wal = Object.hasOwn(WAL_COMMANDS, name) ? WAL_COMMANDS[name] : undefined;
const world = {
  stdout: sink(process.stdout),
  stderr: sink(process.stderr),
  environment: process.env,
  directory: process.cwd(),
  signal: controller.signal,
};

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    if (controller.signal.aborted) void fail(new HoldfastError('cancelled', 'cancelled'));
    controller.abort(new HoldfastError('cancelled', `cancelled by ${signal}`));
  });
}
// The reader of a pipe went away (`holdfast list | head`): there is nobody left to tell.
process.stdout.on('error', () => endProcess(0));
process.on('uncaughtException', (error) => void fail(error));
process.on('unhandledRejection', (error) => void fail(error));

try {
  if (wal === undefined) {
    const { runProgram } = await import('./program.ts');
    await runProgram(words, world);
    endProcess(0);
  }
  const { runWalProgram } = await import('./wal-program.ts');
  endProcess(await runWalProgram(wal, rest, world));
} catch (error) {
  await fail(error);
}

/** Whatever was said is out: streams are made to write through. */
async function fail(error: unknown): Promise<never> {
  if (wal === undefined) {
    const style = { json: words.includes('--json'), verbose: words.includes('--verbose') };
    world.stderr.write(formatError(error, style));
    endProcess(exitStatus(error));
  }
  const { walFailure } = await import('./wal-program.ts');
  endProcess(walFailure(wal, error, rest, world));
}

function sink(stream: NodeJS.WriteStream & { fd: number }): Sink {
  writeThrough(stream);
  return {
    write: (text) => void stream.write(text),
    isTerminal: isatty(stream.fd),
    columns: () => stream.columns,
  };
}
