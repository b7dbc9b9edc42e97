import assert from 'node:assert/strict';
import { test } from 'node:test';

import { HoldfastError } from '../errors.ts';
import type { ServerFacts } from '../postgres/inspect-server.ts';
import { lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { failsWith } from '../../test/sealed-object.ts';
import { type Candidate, type Choice, type ChoicePolicy, chooseServer } from './choose-server.ts';

const POLICY: ChoicePolicy = { prefer: 'auto', maxLagBytes: 1000, fallback: 'primary', mayWait: true };

interface Looks {
  position?: number;
  timeline?: number;
  identifier?: string;
}

function facts(inRecovery: boolean, { position = 5000, timeline = 1, identifier = '7' }: Looks): ServerFacts {
  return {
    inRecovery,
    position: lsnOf(BigInt(position)),
    timeline: timelineOf(timeline),
    systemIdentifier: identifier,
  } as ServerFacts;
}

function primary(name: string, looks: Looks = {}): Candidate {
  return { url: `postgres://${name}`, name, facts: facts(false, looks) };
}

/** `lag` is what the standby itself believes. */
function standby(name: string, lag: number, looks: Looks = {}): Candidate {
  const position = lsnOf(BigInt(looks.position ?? 5000));
  const replay = { replayed: position, received: position, lagBytes: BigInt(lag), lastCommitAgeSeconds: 0 };
  return { url: `postgres://${name}`, name, facts: { ...facts(true, looks), replay } };
}

function away(name: string): Candidate {
  return { url: `postgres://${name}`, name, facts: undefined, problem: 'connection refused' };
}

function taken(choice: Choice): string {
  return choice.kind === 'take' ? choice.candidate.name : `wait: ${choice.reason}`;
}

function choose(candidates: Candidate[], policy: Partial<ChoicePolicy> = {}): string {
  return taken(chooseServer(candidates, { ...POLICY, ...policy }));
}

test('chooseServer() takes the standby that is least behind, if that is little enough', () => {
  assert.equal(choose([primary('p'), standby('a', 900), standby('b', 300)]), 'b');
  assert.equal(choose([standby('a', 900), standby('b', 901)]), 'a');
  assert.equal(choose([primary('p'), standby('a', 1000)]), 'a');
});

test('chooseServer() does not believe a standby that lost its connection and calls itself up to date', () => {
  const stale = standby('stale', 0, { position: 1000 });
  assert.equal(choose([primary('p'), stale], { mayWait: false }), 'p');
  assert.equal(choose([primary('p'), stale, standby('b', 500, { position: 4600 })]), 'b');
  assert.match(choose([primary('p'), stale]), /wait: stale is 4000 bytes behind/);
  // Ahead of where the primary was when it was asked, a moment before.
  assert.equal(choose([primary('p', { position: 4900 }), standby('a', 0)]), 'a');
});

test('chooseServer() does not take a standby that still follows the timeline before a failover', () => {
  const left = standby('left', 0, { timeline: 1, position: 9000 });
  const candidates = [primary('p', { timeline: 2 }), left];
  const choice = chooseServer(candidates, { ...POLICY, mayWait: false });
  assert.equal(taken(choice), 'p');
  assert.match(choice.reason, /left, is still on timeline 1/);
  assert.equal(choose([...candidates, standby('good', 10, { timeline: 2 })]), 'good');
});

test('chooseServer() waits for a lagging standby while it may, then takes the primary and warns', () => {
  const candidates = [primary('p'), standby('a', 1001)];
  assert.match(choose(candidates), /wait: a is 1001 bytes behind; 1000 bytes are allowed/);
  const choice = chooseServer(candidates, { ...POLICY, mayWait: false });
  assert.ok(choice.kind === 'take' && choice.candidate.name === 'p');
  assert.match(choice.warning ?? '', /from the primary: the best standby, a, is 1001 bytes behind/);
});

test('chooseServer() takes the only server without a warning', () => {
  const choice = chooseServer([primary('p')], POLICY);
  assert.ok(choice.kind === 'take' && choice.warning === undefined);
  assert.equal(choice.reason, 'the primary: the only server');
});

test('chooseServer() takes the primary where no standby can be reached, naming them', () => {
  for (const prefer of ['auto', 'standby'] as const) {
    const choice = chooseServer([away('s'), primary('p')], { ...POLICY, prefer });
    assert.ok(choice.kind === 'take' && choice.candidate.name === 'p');
    assert.match(choice.warning ?? '', /no standby can be reached: s \(connection refused\)/);
  }
});

test('chooseServer() with fallback fail never takes the primary in place of a standby', () => {
  const policy = { ...POLICY, prefer: 'standby', fallback: 'fail', mayWait: false } as const;
  for (const candidates of [[primary('p')], [primary('p'), standby('a', 5000)], [primary('p'), away('a')]]) {
    assert.throws(() => chooseServer(candidates, policy), failsWith('connection-failed'));
  }
  assert.equal(choose([primary('p'), standby('a', 5)], policy), 'a');
});

test('chooseServer() that was asked for the primary takes no standby', () => {
  assert.equal(choose([standby('a', 0), primary('p')], { prefer: 'primary' }), 'p');
  assert.throws(
    () => choose([standby('a', 0), away('p')], { prefer: 'primary' }),
    (error: unknown) => {
      assert.ok(error instanceof HoldfastError && error.code === 'connection-failed');
      assert.match(error.message, /no primary can be reached; p \(connection refused\)/);
      return true;
    },
  );
});

test('chooseServer() refuses two primaries and two clusters', () => {
  assert.throws(() => choose([primary('a'), primary('b')]), failsWith('cluster-mismatch'));
  const other = standby('b', 0, { identifier: '8' });
  assert.throws(() => choose([primary('a'), other]), failsWith('cluster-mismatch'));
});

test('chooseServer() with nothing that answers says why of each', () => {
  assert.throws(
    () => choose([away('a'), away('b')]),
    (error: unknown) => {
      assert.ok(error instanceof HoldfastError && error.code === 'connection-failed');
      assert.match(error.message, /a \(connection refused\), b \(connection refused\)/);
      return true;
    },
  );
});
