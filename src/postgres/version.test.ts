import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  SUPPORTED_MAJORS,
  VERSION_FACTS,
  majorOfCatalogVersion,
  majorOfServerVersion,
  majorOfWalMagic,
  parseVersionOutput,
} from './version.ts';

test('VERSION_FACTS tells the majors apart by WAL magic and by catalog version', () => {
  for (const major of SUPPORTED_MAJORS) {
    assert.equal(majorOfWalMagic(VERSION_FACTS[major].walMagic), major);
    assert.equal(majorOfCatalogVersion(VERSION_FACTS[major].catalogVersion), major);
  }
  assert.equal(majorOfWalMagic(0xd10d), undefined);
  assert.throws(() => majorOfCatalogVersion(202107181), { code: 'version-unsupported' });
});

test('majorOfServerVersion() refuses what is too old or too new', () => {
  assert.equal(majorOfServerVersion(150018), 15);
  assert.equal(majorOfServerVersion(180004), 18);
  for (const number of [140020, 190000, 90624, 0]) {
    assert.throws(() => majorOfServerVersion(number), { code: 'version-unsupported' });
  }
});

test('parseVersionOutput() reads releases and betas', () => {
  assert.deepEqual(parseVersionOutput('postgres (PostgreSQL) 15.18 (Debian 15.18-1)'), {
    major: 15,
    text: '15.18',
  });
  assert.deepEqual(parseVersionOutput('pg_dump (PostgreSQL) 19beta2\n'), { major: 19, text: '19beta2' });
  assert.equal(parseVersionOutput('psql 15'), undefined);
});
