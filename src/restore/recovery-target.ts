import { HoldfastError } from '../errors.ts';
import { formatLsn, parseLsn } from '../postgres/lsn.ts';
import type { RecoveryTarget } from '../postgres/recovery-stop.ts';
import { type TimelineId, timelineOf } from '../postgres/timeline.ts';
import { type Instant, type LocalOffset, formatInstant, parseInstant } from './instant.ts';

/**
 * `auto`: the one branch that descends from the chosen backup. `latest`: the youngest descendant. `current`: the
 * backup's own timeline.
 */
export type TimelineChoice = 'auto' | 'latest' | 'current' | TimelineId;

export type TargetAction = 'pause' | 'promote' | 'shutdown';

/** The options of `restore base` as they were typed. */
export interface TargetOptions {
  target?: string | undefined;
  targetTime?: string | undefined;
  targetLsn?: string | undefined;
  targetXid?: string | undefined;
  targetName?: string | undefined;
  targetExclusive?: boolean | undefined;
  targetTimeline?: string | undefined;
  targetAction?: string | undefined;
  standby?: boolean | undefined;
}

export interface RecoveryRequest {
  target: RecoveryTarget;
  timeline: TimelineChoice;
  /** Undefined for a standby without a target: it goes on following the archive. */
  action: TargetAction | undefined;
  standby: boolean;
}

export interface ReadingOptions {
  now: Instant;
  localOffset?: LocalOffset;
}

const MAX_NAME_BYTES = 63;

/**
 * Makes sense of the target options. Nothing given means `latest`, promoted. Throws `option-conflict` for options that
 * exclude one another, `time-ambiguous` for a time without offset, `usage-invalid` for values that are none.
 */
export function parseRecoveryRequest(options: TargetOptions, reading: ReadingOptions): RecoveryRequest {
  const given = GIVEN.filter(([key]) => options[key] !== undefined);
  if (given.length > 1) {
    const names = given.map(([, flag]) => flag);
    throw new HoldfastError(
      'option-conflict',
      `${names.join(' and ')} exclude one another: recovery has one target`,
      {
        hint: `keep one of ${names.join(', ')}`,
      },
    );
  }
  const target = parseTarget(options, reading);
  const standby = options.standby ?? false;
  return {
    target,
    timeline: parseTimelineChoice(options.targetTimeline),
    action: parseAction(options.targetAction, target, standby),
    standby,
  };
}

const GIVEN = [
  ['target', '--target'],
  ['targetTime', '--target-time'],
  ['targetLsn', '--target-lsn'],
  ['targetXid', '--target-xid'],
  ['targetName', '--target-name'],
] as const satisfies readonly (readonly [keyof TargetOptions, string])[];

function parseTarget(options: TargetOptions, reading: ReadingOptions): RecoveryTarget {
  const inclusive = options.targetExclusive !== true;
  if (options.targetTime !== undefined) {
    return {
      kind: 'time',
      time: parseInstant(options.targetTime, reading.now, reading.localOffset),
      inclusive,
    };
  }
  if (options.targetLsn !== undefined) return { kind: 'lsn', lsn: parseLsn(options.targetLsn), inclusive };
  if (options.targetXid !== undefined) return { kind: 'xid', xid: parseXid(options.targetXid), inclusive };
  if (!inclusive) {
    throw new HoldfastError(
      'option-conflict',
      '--target-exclusive means nothing without a time, lsn or xid',
      {
        hint: 'give --target-time, --target-lsn or --target-xid, or leave --target-exclusive out',
      },
    );
  }
  if (options.targetName !== undefined) return { kind: 'name', name: checkName(options.targetName) };
  const word = options.target ?? 'latest';
  if (word !== 'latest' && word !== 'immediate') {
    throw new HoldfastError('usage-invalid', `--target knows "immediate" and "latest", not "${word}"`, {
      hint: 'for a point in time write --target-time TIME',
    });
  }
  return { kind: word };
}

/** PostgreSQL compares 32-bit transaction ids; the upper half that `pg_current_xact_id()` shows is the epoch. */
function parseXid(text: string): number {
  const value = /^[0-9]{1,20}$/.test(text) ? BigInt(text) : 0n;
  const xid = value & 0xffff_ffffn;
  if (xid < 3n || value > 0xffff_ffff_ffff_ffffn) {
    throw new HoldfastError('usage-invalid', `"${text}" is not the id of a transaction`, {
      hint: 'write the number that "select pg_current_xact_id()" showed in that transaction',
    });
  }
  return Number(xid);
}

function checkName(name: string): string {
  // eslint-disable-next-line no-control-regex
  if (name === '' || Buffer.byteLength(name) > MAX_NAME_BYTES || /[\u0000-\u001f\u007f]/.test(name)) {
    throw new HoldfastError(
      'usage-invalid',
      `${JSON.stringify(name)} cannot be the name of a restore point`,
      {
        hint: `names have 1 to ${MAX_NAME_BYTES} bytes: select pg_create_restore_point('before_deploy')`,
      },
    );
  }
  return name;
}

function parseTimelineChoice(text: string | undefined): TimelineChoice {
  if (text === undefined) return 'auto';
  if (text === 'latest' || text === 'current') return text;
  const value = /^[0-9]{1,10}$/.test(text)
    ? Number(text)
    : /^0x[0-9A-Fa-f]{1,8}$/.test(text)
      ? Number(text)
      : 0;
  if (value < 1 || value > 0xffff_ffff) {
    throw new HoldfastError('usage-invalid', `"${text}" is not a timeline`, {
      hint: 'write its number in decimal (or 0x… in hexadecimal), "latest" or "current"',
    });
  }
  return timelineOf(value);
}

function parseAction(
  text: string | undefined,
  target: RecoveryTarget,
  standby: boolean,
): TargetAction | undefined {
  if (text !== undefined && text !== 'pause' && text !== 'promote' && text !== 'shutdown') {
    throw new HoldfastError(
      'usage-invalid',
      `--target-action knows pause, promote and shutdown, not "${text}"`,
    );
  }
  if (standby && target.kind === 'latest') {
    if (text === undefined) return undefined;
    throw new HoldfastError(
      'option-conflict',
      'a standby without a target follows the archive and has no target action',
      {
        hint: 'give a target, or leave --target-action or --standby out',
      },
    );
  }
  return text ?? (standby ? 'pause' : 'promote');
}

/** The target in words, for plans and messages. */
export function describeTarget(target: RecoveryTarget): string {
  switch (target.kind) {
    case 'latest':
      return 'everything in the archive';
    case 'immediate':
      return 'the end of the base backup';
    case 'time':
      return `time ${formatInstant(target.time)}${target.inclusive ? '' : ', exclusive'}`;
    case 'lsn':
      return `lsn ${formatLsn(target.lsn)}${target.inclusive ? '' : ', exclusive'}`;
    case 'xid':
      return `transaction ${target.xid}${target.inclusive ? '' : ', exclusive'}`;
    case 'name':
      return `restore point "${target.name}"`;
    default:
      return target satisfies never;
  }
}
