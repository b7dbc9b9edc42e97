import { formatDuration } from '../../config/durations.ts';
import { formatSize } from '../../config/sizes.ts';
import { formatLsn, parseLsn } from '../../postgres/lsn.ts';
import { standbyNames, synchronousMatch } from '../../postgres/synchronous-standby.ts';
import { proposeKeepSize, settingOfBytes } from '../../wal/forecast.ts';
import type { ReceiverStatus } from '../../wal/receiver-status.ts';
import type { Findings } from './finding.ts';
import type { ServerSight } from './see-server.ts';

export interface StreamExpectation {
  cluster: string;
  slot: string;
  /** What the receiver said of itself on this host, if there ever was one. */
  receiver: (ReceiverStatus & { alive: boolean }) | undefined;
  /** By this host's clock. */
  now: Date;
}

/** A living receiver that says nothing for longer than this, while there is WAL to store, hangs. */
const SILENCE_MS = 120_000;

/** The server WAL is streamed from, or should be: the one whose slot the receiver holds, else the primary. */
export function streamSource(sights: readonly ServerSight[], slot: string): ServerSight | undefined {
  return (
    sights.find((sight) => isHeldByUs(sight, slot)) ??
    sights.find(({ facts }) => !facts.inRecovery) ??
    sights.find(({ wal }) => wal.facts.slot !== undefined) ??
    sights[0]
  );
}

/** Whether the slot is active and whoever holds it calls itself after the slot, as receivers do. */
export function isHeldByUs({ wal }: ServerSight, slot: string): boolean {
  const { slot: state, holder } = wal.facts;
  return state?.active === true && (holder === undefined || holder.applicationName === slot);
}

/** What servers, their slots and the receiver mean for a cluster whose WAL is streamed. Pure. */
export function judgeStreaming(
  sights: readonly ServerSight[],
  expected: StreamExpectation,
  findings: Findings,
): void {
  const source = streamSource(sights, expected.slot);
  if (source === undefined) return;
  judgeSlot(source, expected, findings);
  judgeReceiver(source, expected, findings);
  judgeRetention(source, findings);
  judgeLeftSlots(sights, source, expected, findings);
  const primary = sights.find(({ facts }) => !facts.inRecovery);
  if (primary === undefined) return;
  judgeSynchronous(primary, expected, findings);
  judgeArchivingBeside(primary, findings);
}

function judgeSlot({ facts, wal }: ServerSight, expected: StreamExpectation, findings: Findings): void {
  const { cluster, slot: name } = expected;
  const { slot } = wal.facts;
  if (slot === undefined) {
    if (facts.maxReplicationSlots === 0) {
      findings.fail(
        `${facts.server} has max_replication_slots = 0`,
        'ALTER SYSTEM SET max_replication_slots = 10; then restart the server',
      );
      return;
    }
    findings.fail(
      `${facts.server} has no replication slot "${name}": nothing keeps the WAL that is not received yet`,
      `holdfast wal receive ${cluster} makes it`,
    );
    return;
  }
  if (slot.type !== 'physical' || slot.temporary) {
    findings.fail(
      `the replication slot "${name}" on ${facts.server} is ${slot.temporary ? 'temporary' : 'logical'}, and so not Holdfast's`,
      `give wal.slot of cluster ${cluster} another name`,
    );
    return;
  }
  const kept = slot.heldBytes === undefined ? '' : `, and keeps ${formatSize(Number(slot.heldBytes))} of WAL`;
  switch (slot.walStatus) {
    case 'lost':
      findings.fail(
        `the replication slot "${name}" on ${facts.server} is lost${slot.invalidationReason === undefined ? '' : ` (${slot.invalidationReason})`}: WAL that was not received is gone`,
        `holdfast wal receive ${cluster} --accept-gap, then at once: holdfast backup base ${cluster}`,
      );
      break;
    case 'unreserved':
      findings.fail(
        `the replication slot "${name}" on ${facts.server} is past max_slot_wal_keep_size${kept}: the next checkpoint may remove what was not received`,
        `see that holdfast wal receive ${cluster} runs and catches up; raise max_slot_wal_keep_size if the disk allows`,
      );
      break;
    case 'extended':
      findings.warn(
        `the replication slot "${name}" on ${facts.server} keeps more than max_wal_size${kept}${slot.safeWalSize === undefined ? '' : `; ${formatSize(Number(slot.safeWalSize))} more until it is lost`}`,
        `see that holdfast wal receive ${cluster} runs and catches up: holdfast wal status ${cluster}`,
      );
      break;
    case 'reserved':
      findings.ok(`the replication slot "${name}" on ${facts.server} is there${kept}`);
      break;
    case undefined:
      findings.warn(
        `the replication slot "${name}" on ${facts.server} holds no WAL yet`,
        `holdfast wal receive ${cluster}`,
      );
      break;
    default:
      slot.walStatus satisfies never;
  }
}

function judgeReceiver(source: ServerSight, expected: StreamExpectation, findings: Findings): void {
  const { cluster, slot: name, receiver, now } = expected;
  const { slot, holder } = source.wal.facts;
  if (slot?.active === true && !isHeldByUs(source, name)) {
    findings.fail(
      `the replication slot "${name}" on ${source.facts.server} is held by ${holderText(source)}, which is not Holdfast`,
      `end that, or give wal.slot of cluster ${cluster} another name`,
    );
    return;
  }
  if (receiver?.alive !== true) {
    if (slot?.active === true) {
      findings.ok(`the WAL is received by another host: ${holderText(source)}`);
      return;
    }
    const since =
      receiver === undefined ? '' : ` (on this host it ended, ${receiver.updatedAt} at the latest)`;
    findings.fail(
      `nobody receives the WAL of cluster ${cluster}${since}`,
      `systemctl start holdfast-receive-${cluster}, or holdfast wal receive ${cluster}`,
    );
    return;
  }
  const silence = now.getTime() - Date.parse(receiver.updatedAt);
  const stuck = receiver.repositories.find(({ required, problem }) => required && problem !== null);
  const who = `wal receive (process ${receiver.pid}) on this host`;
  if (receiver.state === 'waiting') {
    findings.fail(
      `${who} waits${receiver.problem === null ? '' : `: ${receiver.problem}`}`,
      'do away with what it waits for: it then goes on by itself',
    );
  } else if (silence > SILENCE_MS && isPending(source, receiver)) {
    findings.fail(`${who} says nothing for ${formatDuration(silence)}`, 'see its log, and start it again');
  } else if (stuck !== undefined) {
    findings.fail(
      `${who} cannot store in repository ${stuck.name}: ${stuck.problem ?? ''}`,
      'do away with what it waits for: it then goes on by itself, and the slot keeps the WAL meanwhile',
    );
  } else if (receiver.problem !== null) {
    findings.warn(`${who}: ${receiver.problem}`, 'it goes on by itself once that is over');
  } else if (receiver.state === 'connecting') {
    findings.ok(`${who} is connecting`);
  } else if (slot?.active === false && holder === undefined) {
    findings.warn(
      `${who} streams from ${receiver.server ?? 'another server'}, and the slot on ${source.facts.server} is not in use`,
      `see whether cluster ${cluster} has two servers that take themselves for the primary`,
    );
  } else findings.ok(`${who} streams from ${receiver.server ?? source.facts.server}`);
}

/** Whether the server has WAL that the receiver has not confirmed. */
function isPending({ wal }: ServerSight, { flushedLsn }: ReceiverStatus): boolean {
  return flushedLsn === null || parseLsn(flushedLsn) < wal.facts.position;
}

/** `holdfast, process 123 from 10.0.0.7`, as much of it as the role may know. */
export function holderText({ wal }: ServerSight): string {
  const { slot, holder } = wal.facts;
  if (holder === undefined) return `process ${slot?.activePid ?? 'unknown'} of the server`;
  const from = holder.clientAddress === undefined ? 'through a local socket' : `from ${holder.clientAddress}`;
  const name = holder.applicationName === '' ? holder.user : holder.applicationName;
  return `${name} (process ${holder.pid} of the server, ${from})`;
}

/** What may take the slot's WAL away, and what the slot may do to the disk. */
function judgeRetention({ facts, wal }: ServerSight, findings: Findings): void {
  const { maxSlotWalKeepSize, idleSlotTimeoutMs, walDirectoryBytes } = wal.facts;
  const disk = wal.disk?.problem === undefined ? wal.disk : undefined;
  if (maxSlotWalKeepSize === undefined) {
    const room =
      disk === undefined
        ? ''
        : `: ${formatSize(Number(disk.freeBytes))} of ${formatSize(Number(disk.totalBytes))} are free there`;
    const proposed =
      disk === undefined
        ? 'half of what that disk has for WAL'
        : settingOfBytes(
            proposeKeepSize({ freeBytes: disk.freeBytes, walDirectoryBytes: walDirectoryBytes ?? 0n }),
          );
    findings.warn(
      `max_slot_wal_keep_size is not set on ${facts.server}, so a receiver that stays away fills the disk of pg_wal${room}`,
      disk === undefined
        ? `ALTER SYSTEM SET max_slot_wal_keep_size = '…'; SELECT pg_reload_conf(); with ${proposed}`
        : `ALTER SYSTEM SET max_slot_wal_keep_size = '${proposed}'; SELECT pg_reload_conf();`,
    );
  } else if (disk !== undefined && maxSlotWalKeepSize > disk.freeBytes + (walDirectoryBytes ?? 0n)) {
    findings.warn(
      `max_slot_wal_keep_size on ${facts.server} is ${formatSize(Number(maxSlotWalKeepSize))}, more than the disk of pg_wal has room for (${formatSize(Number(disk.freeBytes))} are free)`,
      `ALTER SYSTEM SET max_slot_wal_keep_size = '${settingOfBytes(proposeKeepSize({ freeBytes: disk.freeBytes, walDirectoryBytes: walDirectoryBytes ?? 0n }))}'; SELECT pg_reload_conf();`,
    );
  } else {
    findings.ok(
      `the slot may keep ${formatSize(Number(maxSlotWalKeepSize))} of WAL on ${facts.server} (max_slot_wal_keep_size)`,
    );
  }
  if (idleSlotTimeoutMs !== undefined && idleSlotTimeoutMs > 0) {
    findings.warn(
      `${facts.server} gives up slots that are not used for ${formatDuration(idleSlotTimeoutMs)} (idle_replication_slot_timeout): a receiver that is away for so long leaves a gap`,
      'ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); max_slot_wal_keep_size guards the disk',
    );
  }
}

/** A slot on a server that nobody streams from keeps WAL there for ever. */
function judgeLeftSlots(
  sights: readonly ServerSight[],
  source: ServerSight,
  { slot: name }: StreamExpectation,
  findings: Findings,
): void {
  for (const { facts, wal } of sights) {
    const { slot } = wal.facts;
    if (facts === source.facts || slot === undefined || slot.active || slot.restartLsn === undefined)
      continue;
    findings.warn(
      `${facts.server} has the slot "${name}" too, which nobody uses and which keeps WAL from ${formatLsn(slot.restartLsn)} on`,
      `SELECT pg_drop_replication_slot('${name}'); on ${facts.server}: after a failover the receiver makes it again`,
    );
  }
}

/** A slot of ours on servers of a cluster that does not stream (any more). Pure. */
export function judgeUnusedSlots(
  sights: readonly ServerSight[],
  { cluster, slot: name }: Pick<StreamExpectation, 'cluster' | 'slot'>,
  findings: Findings,
): void {
  for (const sight of sights) {
    const { facts, wal } = sight;
    const { slot } = wal.facts;
    if (slot === undefined || slot.type !== 'physical') continue;
    if (slot.active) {
      findings.ok(`the slot "${name}" on ${facts.server} is held by ${holderText(sight)} as well`);
      continue;
    }
    const kept =
      slot.heldBytes === undefined ? '' : `, and keeps ${formatSize(Number(slot.heldBytes))} of WAL there`;
    findings.warn(
      `cluster ${cluster} does not stream, and its slot "${name}" is still on ${facts.server}${kept}`,
      `holdfast wal release ${cluster}`,
    );
  }
}

function judgeSynchronous(
  { facts, wal }: ServerSight,
  expected: StreamExpectation,
  findings: Findings,
): void {
  const { synchronousStandbyNames, synchronousCommit } = wal.facts;
  switch (synchronousMatch(synchronousStandbyNames, expected.slot)) {
    case 'none':
      return;
    case 'any': {
      const others = standbyNames(synchronousStandbyNames).filter((name) => name !== '*');
      findings.fail(
        `synchronous_standby_names = '${synchronousStandbyNames}' on ${facts.server} takes whoever is connected for a synchronous standby, the receiver too`,
        `name the standbys: ALTER SYSTEM SET synchronous_standby_names = '${others.length === 0 ? 'standby1' : others.join(', ')}'; add ${expected.slot} only if commits are to wait for the repository`,
      );
      return;
    }
    case 'named':
      findings.ok(
        `commits on ${facts.server} wait for the repository: ${expected.slot} is a synchronous standby`,
      );
      if (synchronousCommit === 'remote_apply') {
        findings.warn(
          `synchronous_commit = remote_apply on ${facts.server}: the receiver applies nothing, so a commit that waits for it never returns`,
          "ALTER SYSTEM SET synchronous_commit = 'on'; SELECT pg_reload_conf();",
        );
      }
  }
}

/** Archiving is not needed where WAL is streamed, and does no harm, unless nothing is ever archived. */
function judgeArchivingBeside({ facts }: ServerSight, findings: Findings): void {
  if (facts.archiveMode === 'off') {
    findings.ok(`${facts.server} has archive_mode = off, which is right where WAL is streamed`);
  } else if (facts.archiveLibrary !== '') {
    findings.ok(`${facts.server} archives with archive_library = '${facts.archiveLibrary}' as well`);
  } else if (facts.archiveCommand === '') {
    if (!facts.canMonitor) return;
    findings.fail(
      `${facts.server} has archive_mode = ${facts.archiveMode} and no archive_command: it keeps every segment until pg_wal is full`,
      "ALTER SYSTEM SET archive_command = '/bin/true'; SELECT pg_reload_conf(); and archive_mode = off with the next restart",
    );
  } else if (/\bwal\s+push\b/.test(facts.archiveCommand)) {
    findings.ok(
      `${facts.server} archives with Holdfast as well: no harm, and every segment is compressed twice (archive_command = '/bin/true' ends it)`,
    );
  } else findings.ok(`${facts.server} archives with another command as well`);
}
