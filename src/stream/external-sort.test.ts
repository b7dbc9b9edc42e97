import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import * as fc from 'fast-check';

import { ExternalSort } from './external-sort.ts';

let scratch = '';
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'holdfast-sort-test-'));
});
after(() => rm(scratch, { recursive: true, force: true }));

test('ExternalSort gives what a stable in-memory sort gives, over any number of runs, and leaves nothing', async () => {
  const record = fc.record({
    key: fc
      .array(fc.integer({ min: 0, max: 255 }), { maxLength: 6 })
      .map((codes) => String.fromCharCode(...codes)),
    value: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(record, { maxLength: 120 }),
      fc.integer({ min: 200, max: 20_000 }),
      async (records, runBytes) => {
        {
          await using sort = new ExternalSort(scratch, runBytes);
          for (const { key, value } of records) await sort.add(key, value);
          const got = [];
          for await (const item of sort.sorted())
            got.push({ key: item.key, value: item.value.toString('hex') });
          const expected = records
            .toSorted((a, b) => Buffer.compare(Buffer.from(a.key, 'latin1'), Buffer.from(b.key, 'latin1')))
            .map(({ key, value }) => ({ key, value: value.toString('hex') }));
          assert.deepEqual(got, expected);
          assert.equal(sort.count, records.length);
        }
        assert.deepEqual(await readdir(scratch), []);
      },
    ),
    { numRuns: 200 },
  );
});

test('ExternalSort closes and removes its files when reading stops early', async () => {
  const openFiles = async (): Promise<number> => (await readdir('/proc/self/fd')).length;
  const before = await openFiles();
  {
    await using sort = new ExternalSort(scratch, 300);
    for (let i = 0; i < 50; i += 1) await sort.add(String(50 - i), Buffer.alloc(100));
    for await (const item of sort.sorted()) {
      assert.equal(item.key, '1');
      break;
    }
    assert.equal(await openFiles(), before);
  }
  assert.deepEqual(await readdir(scratch), []);
});
