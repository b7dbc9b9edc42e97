import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import { createMemoryStorage } from '../storage/memory.ts';
import { openTestRepository } from '../../test/wal-lab.ts';
import { type ClusterChoice, chooseCluster, listHistories } from './choose-cluster.ts';
import type { Repository } from './repository.ts';

const MINE = '7000000000000000001';
const OTHER = '7000000000000000002';

/** A repository that holds something of each `name/identifier`. */
async function holding(...histories: string[]): Promise<Repository> {
  const keys = histories.flatMap((history) => [
    `clusters/${history}/base/20261122T100000Z.json`,
    `clusters/${history}/wal/00000001/00000000/000000010000000000000001.json`,
  ]);
  return openTestRepository(createMemoryStorage(new Map(keys.map((key) => [key, Buffer.from('x')]))));
}

async function chosen(choice: ClusterChoice, ...repositories: Repository[]): Promise<string> {
  try {
    return (await chooseCluster(repositories, MINE, choice)).cluster;
  } catch (error) {
    assert.ok(error instanceof HoldfastError && error.code === 'cluster-mismatch', String(error));
    assert.ok(error.hint);
    return 'refused';
  }
}

test('chooseCluster() takes the name that holds the identifier, in any of the repositories', async () => {
  const configured = ['app', 'shop', 'logs'];
  assert.equal(await chosen({ configured }, await holding(`shop/${MINE}`, `app/${OTHER}`)), 'shop');
  assert.equal(await chosen({ configured }, await holding(), await holding(`logs/${MINE}`)), 'logs');
  assert.equal(await chosen({ configured: ['app'] }, await holding(`app/${MINE}`, `app/${OTHER}`)), 'app');
});

test('chooseCluster() begins a history only where there is no doubt about the name', async () => {
  const empty = await holding();
  assert.equal(await chosen({ configured: ['app'] }, empty), 'app');
  assert.equal(await chosen({ configured: ['app', 'shop'] }, empty), 'refused');
  assert.equal(await chosen({ configured: ['app', 'shop'], named: 'shop' }, empty), 'shop');
  // One name is taken, but that does not make this server the other one.
  assert.equal(await chosen({ configured: ['app', 'shop'] }, await holding(`app/${OTHER}`)), 'refused');
});

test('chooseCluster() refuses a second initdb with a copied configuration and command line', async () => {
  const taken = await holding(`app/${OTHER}`);
  assert.equal(await chosen({ configured: ['app'] }, taken), 'refused');
  assert.equal(await chosen({ configured: ['app'], named: 'app' }, taken), 'refused');
  assert.equal(await chosen({ configured: ['app'], named: 'app', adopt: OTHER }, taken), 'refused');
  assert.equal(await chosen({ configured: ['app'] }, await holding(), taken), 'refused');
});

test('chooseCluster() adopts exactly the identifier it is told, or a new name', async () => {
  const taken = await holding(`app/${OTHER}`);
  assert.equal(await chosen({ configured: ['app'], adopt: MINE }, taken), 'app');
  assert.equal(await chosen({ configured: ['app', 'shop'], adopt: MINE }, taken), 'refused');
  assert.equal(await chosen({ configured: ['app', 'app18'], named: 'app18' }, taken), 'app18');
});

test('chooseCluster() does not split a history when the configuration calls the cluster by a new name', async () => {
  const known = await holding(`app/${MINE}`);
  assert.equal(await chosen({ configured: ['renamed'] }, known), 'refused');
  assert.equal(await chosen({ configured: ['renamed'], named: 'renamed' }, known), 'renamed');
  const twice = await holding(`app/${MINE}`, `shop/${MINE}`);
  assert.equal(await chosen({ configured: ['app', 'shop'] }, twice), 'refused');
  assert.equal(await chosen({ configured: ['app', 'shop'], named: 'shop' }, twice), 'shop');
});

test('chooseCluster() accepts a history that another process begins at this moment', async () => {
  const repository = await holding();
  const inner = repository.storage;
  const begun = await holding(`app/${MINE}`);
  let lists = 0;
  const storage = {
    ...inner,
    list: (prefix: string, options = {}) => {
      lists += 1;
      return (lists > 1 ? begun.storage : inner).list(prefix, options);
    },
  };
  assert.equal(await chosen({ configured: ['app'] }, { ...repository, storage }), 'app');
  assert.ok(lists > 1);
});

test('listHistories() gives each history once, also where one is a prefix of another', async () => {
  const histories = ['a-b/7', 'a/7', 'a/70', 'a/700', 'a/71', 'a/8', 'a0/7'];
  const listed = await Array.fromAsync(listHistories(await holding(...histories.toReversed())));
  assert.deepEqual(
    listed.map(({ cluster, systemIdentifier }) => `${cluster}/${systemIdentifier}`),
    histories,
  );
});
