import { HoldfastError } from './errors.ts';

/** What an aborted signal is reported as: its own reason where that is a `HoldfastError`, else `cancelled`. */
export function cancellation(signal: AbortSignal): HoldfastError {
  const reason: unknown = signal.reason;
  if (reason instanceof HoldfastError) return reason;
  return new HoldfastError('cancelled', 'the operation was cancelled', { cause: reason });
}

/** Throws what `cancellation` gives where `signal` is aborted. Called between the steps of whatever may take long. */
export function throwIfCancelled(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw cancellation(signal);
}
