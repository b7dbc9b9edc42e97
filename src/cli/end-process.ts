import { existsSync } from 'node:fs';
import { flushCompileCache } from 'node:module';

const SHELL = '/bin/sh';

/**
 * Makes writing to a pipe wait for its reader, as writing to a file or a terminal does, so that nothing is on its way when
 * the process ends. Node leaves pipes non-blocking, for everybody who shares them: PostgreSQL's own log among them.
 */
export function writeThrough(stream: NodeJS.WriteStream): void {
  const { _handle: handle } = stream as { _handle?: { setBlocking?: (blocking: boolean) => unknown } };
  handle?.setBlocking?.(true);
}

/**
 * Ends this process with a status, at once, and never hangs. Node's own `process.exit` joins V8's threads, and one that
 * compiles and waits for a garbage collection just then is waited for for ever (nodejs/node issue 54918): PostgreSQL would
 * wait for its archive command as long. So the process becomes another program, which only ends; the kernel takes the
 * threads away. Streams made to `writeThrough` lose nothing.
 *
 * Where `NODE_OPTIONS` may ask for something at the end (a profile, a debugger) and where there is no shell, Node ends as
 * ever.
 */
export function endProcess(status: number): never {
  const asked = process.env['NODE_OPTIONS'] ?? process.env['NODE_V8_COVERAGE'];
  if (process.execve !== undefined && asked === undefined && existsSync(SHELL)) {
    process.emit('exit', status);
    flushCompileCache();
    process.execve(SHELL, ['sh', '-c', `exit ${status}`], {});
  }
  process.exit(status);
}
