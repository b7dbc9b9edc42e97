import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { makeBackupId, timeOfBackupId } from './backup-id.ts';

test('makeBackupId() rises whatever the clock does', () => {
  const date = fc.date({ min: new Date('2000-01-01'), max: new Date('2099-01-01'), noInvalidDate: true });
  fc.assert(
    fc.property(fc.array(date, { minLength: 2, maxLength: 20 }), (clock) => {
      let last: string | undefined;
      for (const now of clock) {
        const id = makeBackupId(now, last, Buffer.from([0xff, 0]));
        if (last !== undefined) assert.ok(id > last, `${id} after ${last}`);
        assert.ok(timeOfBackupId(id) !== undefined);
        last = id;
      }
    }),
  );
});

test('timeOfBackupId() undoes makeBackupId() and knows nothing of other texts', () => {
  const now = new Date('2026-02-03T04:05:06.789Z');
  const id = makeBackupId(now, undefined, Buffer.from([0x0a, 0xbc, 0xde]));
  assert.equal(id, '20260203T040506Z-0abc');
  assert.equal(timeOfBackupId(id)?.toISOString(), '2026-02-03T04:05:06.000Z');
  for (const text of ['', 'latest', '20260203T040506Z', '20261341T040506Z-0abc', `${id}x`]) {
    assert.equal(timeOfBackupId(text), undefined, text);
  }
});
