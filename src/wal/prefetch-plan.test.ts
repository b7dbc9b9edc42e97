import assert from 'node:assert/strict';
import { test } from 'node:test';

import * as fc from 'fast-check';

import { planWindow, windowCapacity, type WindowFacts } from './prefetch-plan.ts';

const MIB = 1024 * 1024;

function facts(changes: Partial<WindowFacts> = {}): WindowFacts {
  return {
    position: 10n,
    ready: new Set(),
    inFlight: new Set(),
    end: undefined,
    capacity: 4,
    parallel: 2,
    ...changes,
  };
}

test('planWindow() begins in order and pauses while the window is full', () => {
  assert.deepEqual(planWindow(facts()), { fetch: [10n, 11n], cancel: [], drop: [] });
  const busy = facts({ inFlight: new Set([11n]), ready: new Set([10n]) });
  assert.deepEqual(planWindow(busy).fetch, [12n]);
  const full = facts({ ready: new Set([10n, 11n, 12n, 13n]) });
  assert.deepEqual(planWindow(full), { fetch: [], cancel: [], drop: [] });
  assert.deepEqual(planWindow({ ...full, position: 11n }), { fetch: [14n], cancel: [], drop: [10n] });
});

test('planWindow() gives up what lies behind recovery, far ahead of it, or beyond the end', () => {
  const moved = facts({ position: 30n, ready: new Set([10n, 31n]), inFlight: new Set([12n]) });
  assert.deepEqual(planWindow(moved), { fetch: [30n, 32n], cancel: [12n], drop: [10n] });
  const back = facts({ position: 5n, ready: new Set([8n, 9n]) });
  assert.deepEqual(planWindow(back), { fetch: [5n, 6n], cancel: [], drop: [9n] });
  const ended = facts({ end: 11n, ready: new Set([10n, 12n]), inFlight: new Set([11n]) });
  assert.deepEqual(planWindow(ended), { fetch: [], cancel: [11n], drop: [12n] });
});

test('windowCapacity() is bounded by number, bytes and free space, and at least 1', () => {
  const plenty = 1e12;
  assert.equal(windowCapacity(MIB, plenty), 16);
  assert.equal(windowCapacity(16 * MIB, plenty), 16);
  assert.equal(windowCapacity(64 * MIB, plenty), 4);
  assert.equal(windowCapacity(1024 * MIB, plenty), 1);
  assert.equal(windowCapacity(16 * MIB, 512 * MIB), 4);
  assert.equal(windowCapacity(16 * MIB, 0), 1);
});

const numbers = fc.uniqueArray(fc.bigInt({ min: 0n, max: 40n }), { maxLength: 12 });

test('planWindow() of any state leads to a window within its bounds, without a gap at its front', () => {
  fc.assert(
    fc.property(
      fc.bigInt({ min: 0n, max: 30n }),
      numbers,
      numbers,
      fc.option(fc.bigInt({ min: 0n, max: 40n }), { nil: undefined }),
      fc.integer({ min: 1, max: 16 }),
      fc.integer({ min: 1, max: 4 }),
      (position, readyList, flying, end, capacity, parallel) => {
        const ready = new Set(readyList);
        const inFlight = new Set(flying.filter((one) => !ready.has(one)));
        const plan = planWindow({ position, ready, inFlight, end, capacity, parallel });
        for (const one of plan.drop) assert.ok(ready.delete(one));
        for (const one of plan.cancel) assert.ok(inFlight.delete(one));
        for (const one of plan.fetch) assert.ok(!ready.has(one) && !inFlight.has(one));
        const kept = [...ready, ...inFlight];
        const all = [...kept, ...plan.fetch];
        assert.ok(all.length <= capacity);
        for (const one of all) {
          assert.ok(one >= position && one < position + BigInt(capacity));
          assert.ok(end === undefined || one < end);
        }
        assert.ok(plan.fetch.length === 0 || inFlight.size + plan.fetch.length <= parallel);
        // What is begun is always the lowest that is missing.
        const last = plan.fetch.at(-1);
        if (last !== undefined) {
          for (let one = position; one < last; one += 1n) assert.ok(all.includes(one));
        }
        // Nothing to do means: no room, nothing missing, or the end.
        if (plan.fetch.length === 0 && inFlight.size < parallel) {
          for (let one = position; one < position + BigInt(capacity); one += 1n) {
            if (end === undefined || one < end) assert.ok(kept.includes(one));
          }
        }
      },
    ),
  );
});

test('planWindow() repeated hands recovery every segment in its order, whenever fetches end', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: 1, maxLength: 200 }), (moves) => {
      const state = { position: 0n, ready: new Set<bigint>(), inFlight: new Set<bigint>() };
      const end = 25n;
      const act = (move: number): void => {
        const plan = planWindow({ ...state, end, capacity: 5, parallel: 3 });
        for (const one of plan.fetch) state.inFlight.add(one);
        assert.deepEqual([plan.cancel, plan.drop], [[], []]);
        const finished = [...state.inFlight][move % Math.max(1, state.inFlight.size)];
        if (finished !== undefined) {
          state.inFlight.delete(finished);
          state.ready.add(finished);
        }
        if (move % 2 === 0 && state.ready.delete(state.position)) state.position += 1n;
      };
      for (const move of moves) act(move);
      for (let more = 0; more < 200; more += 1) act(0);
      assert.equal(state.position, end);
      assert.equal(state.ready.size + state.inFlight.size, 0);
    }),
  );
});
