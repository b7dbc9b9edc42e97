import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { openStorage } from './open-storage.ts';

test('openStorage() of a file: URL names its directory, escapes decoded, and touches nothing', () => {
  assert.equal(openStorage('file:///no/such/directory').description, 'file:///no/such/directory');
  assert.equal(openStorage('file:///with%20space/').description, 'file:///with%20space');
  assert.equal(openStorage('FILE:///a').description, 'file:///a');
  assert.equal(openStorage('file://localhost/a').description, 'file:///a');
});

test('openStorage() refuses every other URL with config-invalid and a way to write it', () => {
  const urls = [
    '',
    '/var/backups',
    'backups',
    'file:relative',
    'file:/var/backups',
    'file://backups/holdfast',
    'file://./backups',
    'file:///',
    'file:///a?region=x',
    'file:///a#b',
    'file:///a%2Fb',
    'file:///a%00b',
    's3://bucket/prefix',
    'https://example.org/',
  ];
  for (const url of urls) {
    assert.throws(
      () => openStorage(url),
      (error) => {
        assert.ok(error instanceof HoldfastError, url);
        assert.equal(error.code, 'config-invalid', url);
        assert.notEqual(error.hint, undefined, url);
        return true;
      },
      url,
    );
  }
});

test('openStorage() names what is supported and never repeats a secret in a URL', () => {
  assert.throws(
    () => openStorage('sftp://user:hunter2@host/dir?token=hunter2'),
    (error) => {
      assert.ok(error instanceof HoldfastError);
      assert.match(`${error.message}; ${error.hint}`, /sftp: are not supported; supported: file:\/\/\//);
      assert.doesNotMatch(JSON.stringify([error.message, error.hint, error.context]), /hunter2/);
      return true;
    },
  );
});
