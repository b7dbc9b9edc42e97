/** The life of a synthetic server, and plans over its archive. */
import assert from 'node:assert/strict';

import type { Lsn } from '../src/postgres/lsn.ts';
import type { RecoveryTarget } from '../src/postgres/recovery-stop.ts';
import type { BackupRecord } from '../src/repository/backup-record.ts';
import type { Repository } from '../src/repository/repository.ts';
import { type PlanOptions, type RestorePlan, planRestore } from '../src/restore/plan.ts';
import { EPOCH, IDENTITY, type WrittenBackup, archiveOf, backupRecord, writeBackup } from './restore-lab.ts';
import { WalWriter } from './wal-writer.ts';

/** Microseconds in a second. */
export const S = 1_000_000n;

export interface Noted {
  kind: 'commit' | 'abort' | 'restore-point' | 'other';
  lsn: Lsn;
  endLsn: Lsn;
  time?: bigint;
  xid?: number;
  name?: string;
}

/** A server's life: what it wrote, and a note of each record. */
export class Life {
  readonly writer: WalWriter;
  readonly records: Noted[] = [];
  readonly backups: WrittenBackup[] = [];
  now = EPOCH;
  xid = 700;

  constructor() {
    this.writer = new WalWriter({ systemIdentifier: BigInt(IDENTITY.systemIdentifier) });
  }

  commit(): Noted {
    this.now += S;
    this.xid += 1;
    const { lsn, endLsn } = this.writer.commit(this.xid, this.now);
    const noted: Noted = { kind: 'commit', lsn, endLsn, time: this.now, xid: this.xid };
    this.records.push(noted);
    return noted;
  }

  abort(): void {
    this.now += S;
    this.xid += 1;
    const { lsn, endLsn } = this.writer.abort(this.xid, this.now);
    this.records.push({ kind: 'abort', lsn, endLsn, time: this.now, xid: this.xid });
  }

  fill(bytes: number): void {
    const { lsn, endLsn } = this.writer.filler(bytes);
    this.records.push({ kind: 'other', lsn, endLsn });
  }

  name(name: string): void {
    this.now += S;
    const { lsn, endLsn } = this.writer.restorePoint(name, this.now);
    this.records.push({ kind: 'restore-point', lsn, endLsn, name });
  }

  switch(): void {
    const { lsn, endLsn } = this.writer.switch();
    this.records.push({ kind: 'other', lsn, endLsn });
  }

  checkpoint(): void {
    this.now += 2n * S;
    const redo = this.writer.end;
    const { lsn, endLsn } = this.writer.checkpoint({ shutdown: false, redo, seconds: Number(this.now / S) });
    this.records.push({ kind: 'other', lsn, endLsn });
  }

  backup(): WrittenBackup {
    this.now += 2n * S;
    const made = writeBackup(this.writer, this.now);
    this.now += 2n * S;
    this.backups.push(made);
    return made;
  }

  recordsOfBackups(): BackupRecord[] {
    return this.backups.map((made, index) => backupRecord(`b${index}`, made));
  }
}

/** A plan over what the repository holds. */
export async function plan(
  repository: Repository,
  backups: BackupRecord[],
  target: RecoveryTarget,
  more: Partial<PlanOptions> = {},
): Promise<RestorePlan> {
  const archive = await archiveOf(repository, backups);
  return await planRestore({ archive, backups, target, timeline: 'auto', ...more });
}

/** An item that must be there; negative counts from the end. */
export function nth<Item>(items: readonly Item[], index: number): Item {
  const item = items.at(index);
  assert(item !== undefined);
  return item;
}
