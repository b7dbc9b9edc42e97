import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { HoldfastError } from './errors.ts';
import { createLogger, LOG_LEVELS, type LoggerOptions } from './log.ts';

const NOW = new Date('2025-12-28T13:30:00.000Z');
const SOURCE = fileURLToPath(new URL('log.ts', import.meta.url));

function capture(options: LoggerOptions = {}): { lines: string[]; logger: ReturnType<typeof createLogger> } {
  const lines: string[] = [];
  const write = (line: string): void => void lines.push(line);
  return { lines, logger: createLogger({ now: () => NOW, write, ...options }) };
}

test('createLogger() writes its level and all that are more important', () => {
  for (const [index, level] of LOG_LEVELS.entries()) {
    const { lines, logger } = capture({ level });
    for (const each of LOG_LEVELS) logger[each](each);
    assert.equal(lines.length, index + 1);
  }
});

test('createLogger() writes text that a person reads', () => {
  const { lines, logger } = capture();
  logger
    .child({ cluster: 'app' })
    .warn('segment is missing', { lsn: '0/3000060', size: 16n, note: 'a b', none: undefined });
  assert.deepEqual(lines, [
    '2025-12-28T13:30:00.000Z warn  segment is missing cluster=app lsn=0/3000060 size=16 note="a b"\n',
  ]);
});

test('createLogger() writes JSON lines whose own keys no field can replace', () => {
  const { lines, logger } = capture({ format: 'json' });
  logger.info('stored', {
    sizeBytes: 5n,
    at: NOW,
    level: 'error',
    message: 'forged',
    raw: Buffer.from('abc'),
  });
  assert.deepEqual(JSON.parse(lines[0] ?? ''), {
    sizeBytes: '5',
    at: NOW.toISOString(),
    raw: '3 bytes',
    time: NOW.toISOString(),
    level: 'info',
    message: 'stored',
  });
});

test('createLogger() writes an error with its code, hint, context and causes', () => {
  const cause = Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
  const error = new HoldfastError('storage-full', 'cannot write', {
    hint: 'free space',
    context: { key: 'a' },
    cause,
  });
  const text = capture();
  text.logger.error('push failed', { error });
  assert.match(
    text.lines[0] ?? '',
    /error="cannot write \(storage-full\); hint: free space; cause: no space left on device \(ENOSPC\)"/,
  );
  const json = capture({ format: 'json' });
  json.logger.error('push failed', { error });
  assert.deepEqual((JSON.parse(json.lines[0] ?? '') as { error: unknown }).error, {
    message: 'cannot write',
    code: 'storage-full',
    hint: 'free space',
    context: { key: 'a' },
    cause: { message: 'no space left on device', code: 'ENOSPC' },
  });
});

test('createLogger() lets text from outside neither forge lines nor steer a terminal', () => {
  const hostile = 'x\n2025 error forged\r\u001b[2J\u0085\u2028\u202e';
  for (const format of ['text', 'json'] as const) {
    const { lines, logger } = capture({ format });
    logger.info(hostile, { database: hostile });
    assert.equal(lines.length, 1);
    // oxlint-disable-next-line eslint/no-control-regex
    assert.doesNotMatch((lines[0] ?? '').slice(0, -1), /[\u0000-\u001f]/);
    if (format === 'text') assert.doesNotMatch(lines[0] ?? '', /[\u0085\u2028\u202e]/);
  }
});

test('createLogger() survives values that lead back to themselves', () => {
  const loop: { self?: unknown } = {};
  loop.self = loop;
  const error = new Error('loop');
  error.cause = error;
  const { lines, logger } = capture();
  logger.info('loop', { loop, error });
  assert.equal(lines.length, 1);
});

test('createLogger() writes to stderr at once, and nothing to stdout', async () => {
  const script = `import { createLogger } from ${JSON.stringify(SOURCE)}; createLogger().info('last words'); process.exit(3);`;
  const failed = promisify(execFile)(process.execPath, ['--input-type=module', '-e', script]);
  await assert.rejects(failed, { code: 3, stdout: '', stderr: /info {2}last words\n$/ });
});

test('createLogger() writes lines larger than a pipe whole, and does not mind a reader that is gone', async () => {
  const script = `import { createLogger } from ${JSON.stringify(SOURCE)};
    const logger = createLogger();
    for (let i = 0; i < 20; i += 1) logger.info('x'.repeat(100_000));
    process.exit(7);`;
  for (const reads of [true, false]) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let received = 0;
    if (reads) child.stderr.on('data', (chunk: Buffer) => (received += chunk.length));
    else child.stderr.destroy();
    const code = await new Promise((resolve) => child.once('close', resolve));
    assert.equal(code, 7);
    if (reads) assert.ok(received >= 2_000_000);
  }
});
