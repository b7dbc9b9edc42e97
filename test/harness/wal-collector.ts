import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError } from '../../src/errors.ts';
import { type Lsn, lsnOf } from '../../src/postgres/lsn.ts';
import type { ReplicationConnection } from '../../src/postgres/replication.ts';
import type { WalStreamControl, WalStreamSink } from '../../src/postgres/wal-stream.ts';

const MIB = 1024 * 1024;

/** Keeps all it gets and holds that it is consecutive. */
export class WalCollector implements WalStreamSink {
  readonly chunks: Buffer[] = [];
  readonly start: Lsn;
  position: Lsn;
  control: WalStreamControl | undefined;
  serverEnd = lsnOf(0n);
  stops = 0;
  /** Ends the stream there. */
  until: Lsn | undefined;
  onWrite: ((bytes: Buffer) => Promise<void> | undefined) | undefined;

  constructor(start: Lsn, until?: Lsn) {
    this.start = start;
    this.position = start;
    this.until = until;
  }

  started(control: WalStreamControl): void {
    assert.equal(this.control, undefined);
    this.control = control;
  }

  write(bytes: Buffer, at: Lsn): Promise<void> | undefined {
    assert.ok(this.control !== undefined && bytes.length > 0);
    assert.equal(at, this.position);
    this.chunks.push(Buffer.from(bytes));
    this.position = plus(at, bytes.length);
    if (this.until !== undefined && this.position >= this.until) this.control.stop();
    return this.onWrite?.(bytes);
  }

  heard(serverEnd: Lsn, serverTime: bigint): void {
    this.serverEnd = serverEnd;
    const lateMs = Date.now() - Number(serverTime / 1000n);
    assert.ok(lateMs > -1000 && lateMs < 60_000, `${lateMs} ms`);
  }

  serverStops(): void {
    this.stops += 1;
  }

  bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

/** Polls; fails after 20 s. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!(await condition())) {
    assert.ok(performance.now() < deadline, `not within 20 s: ${condition.toString()}`);
    await sleep(10);
  }
}

/** Where a segment of 1 MiB begins (and so a page of any). */
export function segmentStart(lsn: Lsn): Lsn {
  return lsnOf(lsn - (lsn % BigInt(MIB)));
}

export function plus(lsn: Lsn, bytes: number): Lsn {
  return lsnOf(lsn + BigInt(bytes));
}

/** For assert.rejects(): a failure of this code, message and SQLSTATE. */
export function failure(code: string, message: RegExp, sqlState?: string): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof HoldfastError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    if (sqlState !== undefined) assert.equal(error.context['sqlState'], sqlState);
    return true;
  };
}

/** Of a slot that must be there. */
export async function restartLsn(connection: ReplicationConnection, slot: string): Promise<Lsn> {
  const found = await connection.readSlot(slot);
  assert.ok(found?.restartLsn !== undefined);
  assert.equal(found.restartTimeline, 1);
  return found.restartLsn;
}
