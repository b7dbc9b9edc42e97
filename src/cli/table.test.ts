import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatTable } from './table.ts';

test('formatTable() aligns columns and leaves no trailing blanks', () => {
  const rows = [
    { name: 'a', size: '1' },
    { name: 'longer', size: '1000' },
  ];
  const text = formatTable(rows, [
    { title: 'SIZE', value: (row) => row.size, align: 'right' },
    { title: 'NAME', value: (row) => row.name },
  ]);
  assert.equal(text, 'SIZE  NAME\n   1  a\n1000  longer');
});
