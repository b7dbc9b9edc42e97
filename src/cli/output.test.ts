import assert from 'node:assert/strict';
import { test } from 'node:test';

import { jsonLine, Output } from './output.ts';

interface Captured {
  output: Output;
  out: () => string;
  err: () => string;
  tick: (ms: number) => void;
}

function capture(options: {
  json?: boolean;
  quiet?: boolean;
  verbose?: boolean;
  terminal?: boolean;
}): Captured {
  const { json = false, quiet = false, verbose = false, terminal = false } = options;
  let out = '';
  let err = '';
  let now = 0;
  const output = new Output({
    stdout: { write: (text) => void (out += text), isTerminal: false, columns: () => 80 },
    stderr: { write: (text) => void (err += text), isTerminal: terminal, columns: () => 60 },
    json,
    quiet,
    verbose,
    nowMs: () => now,
  });
  return { output, out: () => out, err: () => err, tick: (ms) => void (now += ms) };
}

test('Output.result() prints text or one JSON line, on stdout', () => {
  const text = capture({});
  text.output.result({ a: 1 }, () => 'done');
  assert.equal(text.out(), 'done\n');
  const json = capture({ json: true });
  json.output.result({ a: 1, when: new Date(0), big: 2n ** 60n }, () => 'done');
  assert.equal(json.out(), '{"a":1,"when":"1970-01-01T00:00:00.000Z","big":"1152921504606846976"}\n');
  assert.equal(json.err(), '');
});

test('Output notes go to stderr, less of them with --quiet, more with --verbose', () => {
  const plain = capture({});
  plain.output.note('n');
  plain.output.warn('w');
  plain.output.debug('d');
  assert.equal(plain.err(), 'n\nwarning: w\n');
  const quiet = capture({ quiet: true });
  quiet.output.note('n');
  quiet.output.warn('w');
  assert.equal(quiet.err(), 'warning: w\n');
  const verbose = capture({ verbose: true });
  verbose.output.debug('d');
  assert.equal(verbose.err(), 'd\n');
  assert.equal(plain.out() + quiet.out() + verbose.out(), '');
});

test('Output.progress() off a terminal prints a line at most every five seconds', () => {
  const { output, err, tick } = capture({});
  const progress = output.progress('copy');
  for (let second = 0; second < 12; second += 1) {
    progress.update({ doneBytes: second * 1024, totalBytes: 12 * 1024 });
    tick(1000);
  }
  progress.end();
  const lines = err().trimEnd().split('\n');
  assert.equal(lines.length, 2);
  assert.match(lines[0] ?? '', /^copy {2}5\.00 KiB of 12\.0 KiB \(41%\) {2}1\.00 KiB\/s {2}7\.0 s left$/);
});

test('Output.progress() on a terminal rewrites one line and clears it before anything else is said', () => {
  const { output, err, tick } = capture({ terminal: true });
  const progress = output.progress('copy');
  progress.update({ doneBytes: 1 });
  progress.update({ doneBytes: 2 });
  tick(100);
  progress.update({ doneBytes: 3 });
  output.note('hello');
  progress.end();
  assert.equal(err(), '\r\u001B[2Kcopy  1 B\r\u001B[2Kcopy  3 B  20 B/s\r\u001B[2Khello\n');
});

test('Output.progress() with --json gives events on stdout', () => {
  const { output, out, err, tick } = capture({ json: true, terminal: true });
  const progress = output.progress('copy');
  tick(5000);
  progress.update({ doneBytes: 10, totalBytes: 20 });
  assert.deepEqual(JSON.parse(out()), {
    event: 'progress',
    title: 'copy',
    doneBytes: 10,
    totalBytes: 20,
    bytesPerSecond: null,
    secondsLeft: null,
    detail: null,
  });
  assert.equal(err(), '');
});

test('Output.progress() says nothing with --quiet', () => {
  const { output, err, tick } = capture({ quiet: true });
  const progress = output.progress('copy');
  tick(60_000);
  progress.update({ doneBytes: 1 });
  progress.end();
  assert.equal(err(), '');
});

test('jsonLine() is one line whatever the text', () => {
  assert.equal(jsonLine({ text: 'a\nb' }), '{"text":"a\\nb"}\n');
});
