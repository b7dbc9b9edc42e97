import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';

import { failsWith } from '../../../test/sealed-object.ts';
import { lsnOf } from '../../postgres/lsn.ts';
import { parseSystemIdentifier } from '../../postgres/system-identifier.ts';
import { timelineOf } from '../../postgres/timeline.ts';
import { preferredSource, type SourceCandidate } from './choose-source.ts';
import { judgeSynchronous } from './synchronous.ts';

function server(
  name: string,
  inRecovery: boolean,
  timeline: number,
  position: number,
  systemIdentifier = '7000000000000000001',
): SourceCandidate {
  return {
    url: name,
    server: name,
    inRecovery,
    systemIdentifier: parseSystemIdentifier(systemIdentifier),
    timeline: timelineOf(timeline),
    position: lsnOf(BigInt(position)),
  };
}

const STANDBY = true;
const PRIMARY = false;

void describe('preferredSource()', () => {
  void it('preferredSource() takes the primary, else the standby that is furthest', () => {
    const choose = (...candidates: SourceCandidate[]) => preferredSource(candidates)?.server;
    assert.equal(choose(), undefined);
    assert.equal(choose(server('a', STANDBY, 1, 900), server('b', PRIMARY, 1, 800)), 'b');
    assert.equal(choose(server('a', STANDBY, 1, 800), server('b', STANDBY, 1, 900)), 'b');
    assert.equal(choose(server('a', STANDBY, 2, 800), server('b', STANDBY, 1, 900)), 'a');
    assert.equal(choose(server('a', PRIMARY, 2, 800), server('b', PRIMARY, 1, 900)), 'a');
  });

  void it('preferredSource() does not go back to an old primary while a standby of the new one answers', () => {
    assert.equal(
      preferredSource([server('old', PRIMARY, 1, 900), server('b', STANDBY, 2, 800)])?.server,
      'b',
    );
  });

  void it('preferredSource() refuses two primaries on one timeline, and servers of two clusters', () => {
    assert.throws(
      () =>
        preferredSource([server('a', PRIMARY, 2, 1), server('b', PRIMARY, 2, 2), server('c', STANDBY, 2, 1)]),
      failsWith('wal-conflict'),
    );
    assert.throws(
      () => preferredSource([server('a', PRIMARY, 2, 1), server('b', STANDBY, 1, 2, '7000000000000000002')]),
      failsWith('cluster-mismatch'),
    );
  });

  void it('preferredSource() does not depend on the order of the configuration', () => {
    const one = fc.record({
      inRecovery: fc.boolean(),
      timeline: fc.integer({ min: 1, max: 3 }),
      position: fc.nat(50),
    });
    fc.assert(
      fc.property(fc.array(one, { maxLength: 5 }), fc.nat(), (some, turn) => {
        const all = some.map((each, index) =>
          server(`s${index}`, each.inRecovery, each.timeline, each.position),
        );
        const turned = all
          .map((_, index) => all[(index + turn) % all.length])
          .filter((each) => each !== undefined);
        assert.deepEqual(outcome(all), outcome(turned));
      }),
    );
  });
});

function outcome(candidates: SourceCandidate[]): string {
  try {
    const chosen = preferredSource(candidates);
    return chosen === undefined ? 'none' : `${chosen.inRecovery} ${chosen.timeline} ${chosen.position}`;
  } catch {
    return 'refused';
  }
}

void describe('judgeSynchronous()', () => {
  void it('judgeSynchronous() tells whether commits wait for us, and refuses where only a star says so', () => {
    for (const setting of ['', 's1', 'FIRST 1 (s1, s2)', '"holdfast2"', 'ANY 1 (holdfast_a)']) {
      assert.equal(judgeSynchronous(setting, 'holdfast', 'a:5432'), false, setting);
    }
    for (const setting of [
      'holdfast',
      's1, HoldFast',
      'ANY 2 (s1, "holdfast")',
      '*, holdfast',
      'FIRST 1 (*, holdfast)',
    ]) {
      assert.equal(judgeSynchronous(setting, 'holdfast', 'a:5432'), true, setting);
    }
    for (const setting of ['*', 's1, *', 'ANY 1 (*)']) {
      assert.throws(
        () => judgeSynchronous(setting, 'holdfast', 'a:5432'),
        failsWith('server-setting'),
        setting,
      );
    }
  });
});
