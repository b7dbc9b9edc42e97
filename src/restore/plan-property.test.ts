import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';

import { createRestoreLab, storeSegments } from '../../test/restore-lab.ts';
import { Life, S, nth, plan } from '../../test/restore-life.ts';
import { storeUpTo } from '../../test/tail-lab.ts';
import { SEGMENT_SIZE } from '../../test/wal-lab.ts';
import { type Lsn, formatLsn, lsnOf } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';

const action = fc.oneof(
  { weight: 5, arbitrary: fc.constant('commit' as const) },
  { weight: 1, arbitrary: fc.constant('abort' as const) },
  { weight: 6, arbitrary: fc.integer({ min: 8, max: 300_000 }) },
  { weight: 1, arbitrary: fc.constant('backup' as const) },
  { weight: 1, arbitrary: fc.constant('switch' as const) },
  { weight: 1, arbitrary: fc.constant('checkpoint' as const) },
);

test('planRestore() agrees with a replay of every record, with and without summaries, whole or up to a tail', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(action, { minLength: 10, maxLength: 60 }),
      fc.boolean(),
      fc.array(
        fc.record({
          at: fc.nat(),
          kind: fc.constantFrom('xid' as const, 'time' as const, 'lsn' as const),
          inclusive: fc.boolean(),
        }),
        {
          minLength: 1,
          maxLength: 6,
        },
      ),
      fc.option(fc.record({ record: fc.nat(), inside: fc.option(fc.integer({ min: 0, max: 20 })) })),
      async (actions, summaries, targets, tail) => {
        const life = new Life();
        life.backup();
        for (const one of actions) {
          if (typeof one === 'number') life.fill(one);
          else life[one]();
        }
        life.commit();
        life.switch();
        const repository = await createRestoreLab();
        let stored: Story = {
          records: life.records,
          backups: life.backups,
          end: nth(life.records, -1).endLsn,
        };
        if (tail === null) await storeSegments(repository, life.writer, { summaries });
        else {
          const { lsn, endLsn } = nth(life.records, tail.record % life.records.length);
          const end = tail.inside === null ? endLsn : lsnOf(lsn + BigInt(tail.inside));
          await storeUpTo(repository, life.writer, end, { summaries });
          stored = {
            records: life.records.filter((one) => one.endLsn <= end),
            backups: life.backups.filter(({ stop }) => stop <= end),
            end,
          };
        }
        const ends = stored.records.filter(({ kind }) => kind === 'commit' || kind === 'abort');
        if (ends.length === 0) return;
        for (const { at, kind, inclusive } of targets) {
          const goal = nth(ends, at % ends.length);
          const target: RecoveryTarget =
            kind === 'xid'
              ? { kind, xid: goal.xid ?? 0, inclusive }
              : kind === 'time'
                ? { kind, time: goal.time ?? 0n, inclusive }
                : { kind, lsn: goal.lsn, inclusive };
          const expected = expectedStop(stored, target);
          const outcome = await plan(repository, life.recordsOfBackups(), target).then(
            ({ stop, backup }) => `${backup.id} ${formatLsn(stop.lsn)}`,
            (error: Error & { code?: string }) => String(error.code ?? error),
          );
          assert.equal(outcome, expected, `${kind} ${goal.xid} ${inclusive}`);
        }
      },
    ),
    { numRuns: 60 },
  );
});

interface Story extends Pick<Life, 'records' | 'backups'> {
  /** Where the stored WAL ends. */
  end: Lsn;
}

/** The same by brute force: every record in a list, every backup from the newest. */
function expectedStop(life: Story, target: RecoveryTarget): string {
  const backups = life.backups.map((made, index) => ({ ...made, id: `b${index}` })).reverse();
  for (const { start, stop, id, checkpointTime } of backups) {
    if (target.kind === 'time' && checkpointTime + S > target.time) continue;
    if (target.kind === 'lsn' && target.lsn < stop) continue;
    const behind = life.records.filter(({ lsn }) => lsn >= start);
    const hit = behind.find(({ kind, lsn, time = 0n, xid }) => {
      if (target.kind === 'lsn') return lsn >= target.lsn;
      if (kind !== 'commit' && kind !== 'abort') return false;
      if (target.kind === 'xid') return xid === target.xid;
      return target.kind === 'time' && (target.inclusive ? time > target.time : time >= target.time);
    });
    if (hit === undefined) {
      if (target.kind === 'xid') continue;
      return `${id} ${formatLsn(previousEnd(life, life.end, stop))}`;
    }
    const after = target.kind !== 'time' && 'inclusive' in target && target.inclusive;
    const end = after ? hit.endLsn : previousEnd(life, hit.lsn, stop);
    if (end < stop) continue;
    return `${id} ${formatLsn(end)}`;
  }
  return 'target-unreachable';
}

/** Where the record before ends: one of the list, or a backup's own. */
function previousEnd(life: Story, lsn: Lsn, floor: Lsn): Lsn {
  let end = floor;
  for (const one of life.records) if (one.endLsn <= lsn && one.endLsn > end) end = one.endLsn;
  for (const { stop } of life.backups) {
    // The switch behind a backup ends with its segment.
    const switched = lsnOf(
      ((stop + BigInt(SEGMENT_SIZE) - 1n) / BigInt(SEGMENT_SIZE)) * BigInt(SEGMENT_SIZE),
    );
    for (const candidate of [stop, switched]) if (candidate <= lsn && candidate > end) end = candidate;
  }
  return end;
}
