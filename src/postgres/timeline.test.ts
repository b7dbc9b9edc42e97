import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { lsnOf, parseLsn } from './lsn.ts';
import {
  type TimelineAncestor,
  formatTimeline,
  formatTimelineHistory,
  historyFileName,
  parseTimeline,
  parseTimelineHistory,
  timelineAt,
  timelineOf,
} from './timeline.ts';

test('parseTimeline() reads base 16', () => {
  assert.equal(parseTimeline('0000000A'), 10);
  assert.equal(parseTimeline('FFFFFFFF'), 0xffff_ffff);
  assert.equal(formatTimeline(timelineOf(16)), '00000010');
  assert.equal(historyFileName(timelineOf(10)), '0000000A.history');
});

test('parseTimeline() refuses other forms', () => {
  for (const text of ['', '1', '00000000', '0000000a', '000000001', '0000000G', '-0000001']) {
    assert.throws(() => parseTimeline(text), { code: 'wal-invalid' }, text);
  }
  for (const value of [0, -1, 1.5, 2 ** 32, Number.NaN]) {
    assert.throws(() => timelineOf(value), { code: 'assertion' });
  }
});

test('parseTimelineHistory() reads what PostgreSQL writes, comments and all', () => {
  const text =
    '1\t0/3000148\tno recovery target specified\n\n# a comment\n\n2\t0/30001F8\tbefore 2026-01-01 10:00:00.5+00\n';
  const history = parseTimelineHistory(timelineOf(3), text);
  assert.deepEqual(history.entries, [
    { timeline: 1, end: 0x3000148n, reason: 'no recovery target specified' },
    { timeline: 2, end: 0x30001f8n, reason: 'before 2026-01-01 10:00:00.5+00' },
  ]);
});

test('parseTimelineHistory() refuses disorder', () => {
  const texts = ['x', '1', '1 0/1 a\n1 0/2 b', '2 0/1 a\n1 0/2 b', '3 0/1 a', '4 0/1 a', '0 0/1 a'];
  for (const text of texts) {
    assert.throws(() => parseTimelineHistory(timelineOf(3), text), { code: 'wal-invalid' }, text);
  }
});

test('timelineAt() gives a switch point to the child', () => {
  const history = parseTimelineHistory(timelineOf(5), '1\t0/100\ta\n3\t0/200\tb\n');
  assert.equal(timelineAt(history, parseLsn('0/FF')), 1);
  assert.equal(timelineAt(history, parseLsn('0/100')), 3);
  assert.equal(timelineAt(history, parseLsn('0/1FF')), 3);
  assert.equal(timelineAt(history, parseLsn('0/200')), 5);
});

test('parseTimelineHistory() reads what PostgreSQL writes after recovering along a timeline to a point before it', () => {
  const text = '1\t0/B058E8\tno recovery target specified\n\n2\t0/B05070\tafter transaction 757\n';
  const history = parseTimelineHistory(timelineOf(3), text);
  assert.deepEqual(
    history.entries.map(({ end }) => end),
    [0xb058e8n, 0xb05070n],
  );
  assert.equal(timelineAt(history, parseLsn('0/B0506F')), 1);
  assert.equal(timelineAt(history, parseLsn('0/B05070')), 3);
  assert.equal(timelineAt(history, parseLsn('0/B06000')), 3);
});

test('formatTimelineHistory() and parseTimelineHistory() are inverse', () => {
  const ancestors = fc
    .array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.bigInt({ min: 0n, max: 1n << 60n })), { maxLength: 8 })
    .map((steps): TimelineAncestor[] => {
      let timeline = 0;
      let end = 0n;
      return steps.map(([step, length], index) => {
        timeline += step;
        end += length;
        return {
          timeline: timelineOf(timeline),
          end: lsnOf(end),
          reason: index % 2 === 0 ? '' : `reason ${index}`,
        };
      });
    });
  fc.assert(
    fc.property(ancestors, (entries) => {
      const history = { timeline: timelineOf(1000), entries };
      assert.deepEqual(parseTimelineHistory(history.timeline, formatTimelineHistory(history)), history);
    }),
  );
});
