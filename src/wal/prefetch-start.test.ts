import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import type { FetchResult } from './fetch.ts';
import type { PrefetchOwner } from './prefetch-owner.ts';
import { planNextStep } from './prefetch-start.ts';

const NAME = '000000010000000000000007';
const server = { pid: 1, startedAt: 2 };
const complete: FetchResult = { kind: 'delivered', repository: 'a', sizeBytes: 1, hash: 'x', warnings: [] };
const tail: FetchResult = { kind: 'delivered', repository: 'a', sizeBytes: 1, warnings: [] };
const delivery = { name: NAME, words: '--config\nx\n', systemIdentifier: '7', result: complete };
const owner: PrefetchOwner = {
  process: { pid: 9, startTime: '8', bootId: 'b' },
  purpose: { postmaster: server, systemIdentifier: '7', timeline: '00000001', words: delivery.words },
};

test('planNextStep() starts a window behind a complete segment, once', () => {
  assert.deepEqual(planNextStep(delivery, server, undefined), { kind: 'start', purpose: owner.purpose });
  assert.deepEqual(planNextStep(delivery, server, owner), { kind: 'note', owner });
});

test('planNextStep() replaces a window that is filled for anything else', () => {
  const changes: Partial<PrefetchOwner['purpose']>[] = [
    { timeline: '00000002' },
    { words: '--config\ny\n' },
    { systemIdentifier: '8' },
    { postmaster: { pid: 1, startedAt: 3 } },
  ];
  for (const change of changes) {
    const other = { ...owner, purpose: { ...owner.purpose, ...change } };
    const step = planNextStep(delivery, server, other);
    assert.deepEqual(step, { kind: 'start', purpose: owner.purpose, replaces: other });
  }
});

test('planNextStep() starts nothing behind what is absent, failed, incomplete or no segment', () => {
  const absent: FetchResult = { kind: 'absent', reason: '', warnings: [] };
  const failed: FetchResult = { kind: 'failed', error: new HoldfastError('wal-gap', 'x'), warnings: [] };
  for (const result of [absent, failed]) {
    for (const name of [NAME, '00000002.history']) {
      assert.deepEqual(planNextStep({ ...delivery, name, result }, server, undefined), { kind: 'nothing' });
      // A standby asks for the next history file all the time.
      assert.deepEqual(planNextStep({ ...delivery, name, result }, server, owner), { kind: 'nothing' });
    }
  }
  for (const name of [`${NAME}.partial`, `${NAME}.00000028.backup`, 'x']) {
    assert.deepEqual(planNextStep({ ...delivery, name }, server, undefined), { kind: 'nothing' });
  }
  assert.deepEqual(planNextStep({ ...delivery, result: tail }, server, undefined), { kind: 'nothing' });
  assert.deepEqual(planNextStep(delivery, undefined, undefined), { kind: 'nothing' }, 'no server recovers');
  assert.deepEqual(planNextStep({ ...delivery, words: undefined }, server, undefined), { kind: 'nothing' });
});

test('planNextStep() discards the window when a history file or the last beginning of a segment is handed over', () => {
  const discard = { kind: 'discard', owner };
  assert.deepEqual(planNextStep({ ...delivery, name: '00000002.history' }, server, owner), discard);
  assert.deepEqual(planNextStep({ ...delivery, result: tail }, server, owner), discard);
});
