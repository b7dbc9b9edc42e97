import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';

import { configurationJsonSchema } from './json-schema.ts';

test('docs/holdfast.schema.json is what configurationJsonSchema() says', async () => {
  const published = await readFile(new URL('../../docs/holdfast.schema.json', import.meta.url), 'utf8');
  assert.deepEqual(
    JSON.parse(published),
    JSON.parse(JSON.stringify(configurationJsonSchema())),
    'run: npm run schema',
  );
});
