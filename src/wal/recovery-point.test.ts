import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { lsnOf } from '../postgres/lsn.ts';
import { timelineOf } from '../postgres/timeline.ts';
import { isTooOld, recoveryPointOf, type ServerEnd, type StoredEnd } from './recovery-point.ts';

const HOUR = 3_600_000_000n;
const NOW = 1_800_000_000_000_000n;

function server(rest: Partial<ServerEnd> = {}): ServerEnd {
  return { now: NOW, timeline: timelineOf(2), position: lsnOf(5000n), quietSince: undefined, ...rest };
}

function stored(rest: Partial<StoredEnd> = {}): StoredEnd {
  return { timeline: timelineOf(2), lsn: lsnOf(5000n), lastCommitTime: NOW - HOUR, ...rest };
}

test('recoveryPointOf() calls an idle database current, however old its last commit is', () => {
  const point = recoveryPointOf(server(), stored());
  assert.deepEqual(point, { state: 'current', pendingBytes: 0n, ageMs: 3_600_000, futureMs: 0 });
  assert.equal(isTooOld(point, 1), false);
});

test('recoveryPointOf() measures from the last stored commit while WAL is pending', () => {
  const point = recoveryPointOf(
    server({ position: lsnOf(5001n) }),
    stored({ lastCommitTime: NOW - 4_000_000n }),
  );
  assert.deepEqual(point, { state: 'pending', pendingBytes: 1n, ageMs: 4000, futureMs: 0 });
  assert.equal(isTooOld(point, 4000), false);
  assert.equal(isTooOld(point, 3999), true);
});

test('recoveryPointOf() is current where nothing was committed behind what is stored', () => {
  const busy = server({ position: lsnOf(6000n), quietSince: lsnOf(5000n) });
  assert.equal(recoveryPointOf(busy, stored()).state, 'current');
  assert.equal(recoveryPointOf(busy, stored()).pendingBytes, 1000n);
  assert.equal(recoveryPointOf({ ...busy, quietSince: lsnOf(5001n) }, stored()).state, 'pending');
});

test('recoveryPointOf() counts an unknown commit time, and an empty repository, as too old', () => {
  const nothing = recoveryPointOf(server(), undefined);
  assert.deepEqual(nothing, { state: 'pending', pendingBytes: 5000n, ageMs: undefined, futureMs: 0 });
  assert.equal(isTooOld(nothing, 1e12), true);
});

test('recoveryPointOf() does not compare LSNs across timelines', () => {
  const parent = stored({ timeline: timelineOf(1), lsn: lsnOf(9000n) });
  assert.equal(recoveryPointOf(server(), parent).state, 'pending');
  assert.equal(recoveryPointOf(server({ quietSince: lsnOf(1n) }), parent).state, 'pending');
  const child = stored({ timeline: timelineOf(3), lsn: lsnOf(1n) });
  assert.equal(recoveryPointOf(server(), child).state, 'ahead');
});

test('recoveryPointOf() says by how much a clock was set back, and never gives a negative age', () => {
  const point = recoveryPointOf(server(), stored({ lastCommitTime: NOW + 2n * HOUR }));
  assert.equal(point.ageMs, 0);
  assert.equal(point.futureMs, 7_200_000);
});

test('recoveryPointOf() is never current while a commit may be missing', () => {
  const lsn = fc.bigInt({ min: 0n, max: 1000n }).map(lsnOf);
  const timeline = fc.integer({ min: 1, max: 3 }).map(timelineOf);
  fc.assert(
    fc.property(lsn, lsn, fc.option(lsn, { nil: undefined }), timeline, timeline, lsn, (...drawn) => {
      const [position, end, quietSince, serverTimeline, storedTimeline, commit] = drawn;
      const point = recoveryPointOf(
        server({ position, quietSince, timeline: serverTimeline }),
        stored({ lsn: end, timeline: storedTimeline }),
      );
      // A commit lies anywhere before the position, and not behind a point from which on there are none.
      const exists = commit < position && (quietSince === undefined || commit < quietSince);
      const missing = exists && (storedTimeline < serverTimeline || commit >= end);
      assert.ok(!(missing && point.state === 'current'));
      assert.ok(point.pendingBytes >= 0n);
    }),
  );
});
