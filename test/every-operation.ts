import { HoldfastError } from '../src/errors.ts';
import type { Storage } from '../src/storage/storage.ts';
import { CrashError, FaultyStorage, type FaultKind, type OperationRecord } from './faulty-storage.ts';

/** One run of a scenario that a fault hit. */
export interface FaultedRun extends OperationRecord {
  kind: FaultKind;
  at: number;
  /** Whether the scenario reported success all the same. */
  acknowledged: boolean;
  /** What the scenario threw, where it did not. */
  error: unknown;
}

export interface EveryOperation<Inner extends Storage> {
  /** Default: `crash-before` and `crash-after`. */
  kinds?: readonly FaultKind[];
  /** A fresh store for each run, in the state the scenario starts from. */
  prepare: () => Promise<Inner> | Inner;
  /** What a process does until it acknowledges. `storage` is the faulty one; it must be the only way to the store. */
  scenario: (storage: Storage) => Promise<unknown>;
  /** Checks the store itself after the fault, and that a next run works. Throws where something is wrong. */
  invariant: (inner: Inner, run: FaultedRun) => Promise<void>;
}

const RUNS_MAX = 10_000;

/**
 * Runs a scenario once for each storage operation it makes and each kind of fault, with the fault at the first, second,
 * … operation, until it completes without being hit. That last run must succeed. Returns how many runs were hit: 0 means
 * that nothing was tested, so assert on it.
 */
export async function runWithCrashAtEveryOperation<Inner extends Storage>(
  plan: EveryOperation<Inner>,
): Promise<{ runs: number }> {
  let runs = 0;
  for (const kind of plan.kinds ?? ['crash-before', 'crash-after']) {
    for (let at = 1; ; at += 1) {
      if (at > RUNS_MAX) throw new Error(`the scenario still makes operations after ${RUNS_MAX}`);
      const inner = await plan.prepare();
      const faulty = new FaultyStorage(inner, { kind, at, seed: at });
      let acknowledged = true;
      let error: unknown;
      try {
        await plan.scenario(faulty);
      } catch (thrown) {
        acknowledged = false;
        error = thrown;
      }
      if (faulty.fired === undefined) {
        if (!acknowledged) throw new Error(`the scenario fails without ${kind}`, { cause: error });
        break;
      }
      runs += 1;
      const where = `${kind} at operation ${at} (${faulty.fired.operation} ${faulty.fired.key})`;
      if (isDefect(error)) throw new Error(`${where} brought out a defect`, { cause: error });
      try {
        await plan.invariant(inner, { ...faulty.fired, kind, at, acknowledged, error });
      } catch (violation) {
        throw new Error(`the invariant does not hold after ${where}`, { cause: violation });
      }
    }
  }
  return { runs };
}

/** Errors that no fault of a store explains. */
function isDefect(error: unknown): boolean {
  if (error instanceof HoldfastError) return error.code === 'assertion';
  if (error instanceof CrashError) return false;
  return error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError;
}
