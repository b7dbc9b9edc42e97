import { HoldfastError, errorText } from '../errors.ts';
import { BaseBackupReader, type BaseBackupEnd, type BaseBackupSink } from './base-backup-reader.ts';
import { createBigReadSocket } from './big-read-socket.ts';
import { type ConnectOptions, openClient, socketOf } from './connection.ts';
import { describeTarget, parseConnectionTarget } from './connection-target.ts';
import { type Lsn, formatLsn, parseLsn } from './lsn.ts';
import { type QueryHandlers, ReplicationWire, type WireRow } from './replication-wire.ts';
import { type SystemIdentifier, parseSystemIdentifier } from './system-identifier.ts';
import { type TimelineHistory, type TimelineId, parseTimelineHistory, timelineOf } from './timeline.ts';
import type { WalStreamEnd, WalStreamSink } from './wal-stream.ts';
import { explainRefusal, findRefusal } from './wal-stream-refusal.ts';
import { type WalStreamOptions, runWalStream, slotIdentifier } from './wal-streaming.ts';

export interface ReplicationOptions extends Omit<ConnectOptions, 'statementTimeoutMs'> {
  /**
   * Longest silence of a server that owes us bytes, after which it is taken for gone. Default 30 min: a base backup
   * begins with a checkpoint, during which nothing comes. 0 for no limit.
   */
  stallMs?: number;
}

export interface ServerSystem {
  systemIdentifier: SystemIdentifier;
  timeline: TimelineId;
  /** Flushed on a primary, replayed on a standby. */
  position: Lsn;
}

export interface PhysicalSlot {
  /** The oldest WAL the server keeps for it; undefined where it reserves none (any more). */
  restartLsn: Lsn | undefined;
  /** The timeline of that WAL. */
  restartTimeline: TimelineId | undefined;
}

export interface BaseBackupOptions {
  /** Shown in `backup_label` and `pg_stat_progress_basebackup`. */
  label: string;
  /** `fast` (default) begins at once with a burst of writing, `spread` waits for a gentle checkpoint. */
  checkpoint?: 'fast' | 'spread';
  /** Bytes per second, rounded to KiB; PostgreSQL allows 32 KiB to 1 GiB. Default: no limit. */
  maxRate?: number;
  /** Default true. Only clusters with data checksums can be verified; others have nothing to verify. */
  verifyChecksums?: boolean;
  /** Warnings of the server, e.g. one for each damaged page. */
  onNotice?: (message: string) => void;
}

/** A physical replication session: one command at a time. */
export interface ReplicationConnection extends AsyncDisposable {
  /** `host:port`, for messages. */
  readonly server: string;
  identifySystem(): Promise<ServerSystem>;
  /** The value of a setting as `SHOW` prints it. */
  show(setting: string): Promise<string>;
  /** The history file of a timeline, byte for byte, and its meaning. `server-error` where the server has none. */
  timelineHistory(
    timeline: TimelineId,
  ): Promise<{ fileName: string; bytes: Buffer; history: TimelineHistory }>;
  /**
   * Streams the whole cluster into `sink` (PostgreSQL manual, "Streaming Replication Protocol", BASE_BACKUP). WAL is not
   * included and not waited for: the backup is good once all WAL up to `stopLsn` is safe.
   *
   * Rejects, besides with what the sink throws, with `connection-lost`, `object-damaged` (an archive or a name that
   * cannot be trusted), and `server-error` with the server's words. Where the server found pages with wrong checksums
   * it says so after having sent everything: `server-error` with `context.checksumFailures` true, `stopLsn` and
   * `stopTimeline`. After any rejection of a running backup the connection is of no more use.
   */
  baseBackup(options: BaseBackupOptions, sink: BaseBackupSink): Promise<BaseBackupEnd>;
  /**
   * Creates a permanent slot that keeps WAL from the last checkpoint's redo position on. `server-error` with
   * `context.sqlState` 42710 where the name is taken, 53400 where no slot is free.
   */
  createPhysicalSlot(name: string): Promise<void>;
  /** undefined where there is none; `server-error` for a logical one. */
  readSlot(name: string): Promise<PhysicalSlot | undefined>;
  /** The server no longer keeps WAL for it. `server-error` with `context.sqlState` 42704 (none) or 55006 (in use). */
  dropSlot(name: string): Promise<void>;
  /**
   * Streams WAL of one timeline from `start` on, for as long as it goes on or until `stop()` (PostgreSQL manual,
   * "Streaming Replication Protocol", START_REPLICATION). Where there is nothing to stream because the timeline ended at
   * `start`, it resolves without calling the sink. Afterwards the connection can be used again.
   *
   * Rejects with what the sink throws; `cancelled`; `connection-lost`, also when the server shuts down; `object-damaged`
   * for a stream with a hole; and `privilege-missing` or `server-error` with the server's words, `context.sqlState` and,
   * where it is known why it refuses, `context.refusal` (see `walStreamRefusal`). The connection then is of no more use,
   * except after errors of the server.
   */
  streamWal(options: WalStreamOptions, sink: WalStreamSink): Promise<WalStreamEnd>;
  close(): Promise<void>;
}

/**
 * Opens a physical replication session. The role needs LOGIN and REPLICATION, and `pg_hba.conf` a line for the database
 * `replication`. Throws as `connect` does.
 */
export async function connectReplication(
  url: string,
  options: ReplicationOptions = {},
): Promise<ReplicationConnection> {
  const target = parseConnectionTarget(url);
  const server = describeTarget(target);
  const { signal, stallMs = 30 * 60_000 } = options;
  // TLS brings a socket of its own around the plain one.
  const big = target.sslmode === 'disable' ? createBigReadSocket() : undefined;
  const client = await openClient(
    // A role's own statement_timeout would end a long base backup.
    { ...target, options: `${target.options ?? ''} -c statement_timeout=0`.trim() },
    { ...options, statementTimeoutMs: 0 },
    { replication: 'true', ...(big === undefined ? {} : { stream: () => big.socket }) },
  );
  big?.deliverShared();
  const wire = new ReplicationWire(socketOf(client), server, stallMs);
  const onAbort = (): void => {
    wire.abort(new HoldfastError('cancelled', `replication from ${server} was cancelled`));
  };
  signal?.addEventListener('abort', onAbort, { once: true });
  if (signal?.aborted === true) onAbort();

  const rows = async (what: string, text: string, handlers: QueryHandlers = {}): Promise<WireRow[]> => {
    const found: WireRow[] = [];
    await wire.query(what, text, { ...handlers, row: (row) => found.push(row) });
    return found;
  };
  const close = async (): Promise<void> => {
    signal?.removeEventListener('abort', onAbort);
    await wire.close();
  };
  const connection: ReplicationConnection = {
    server,
    async identifySystem() {
      const [row] = await rows('IDENTIFY_SYSTEM', 'IDENTIFY_SYSTEM');
      const [identifier = '', timeline = '', position = ''] = row ?? [];
      return {
        systemIdentifier: parseSystemIdentifier(identifier),
        timeline: timelineOf(Number(timeline)),
        position: parseLsn(position),
      };
    },
    async show(setting) {
      if (!/^[a-z_][a-z0-9_.]*$/i.test(setting)) {
        throw new HoldfastError('assertion', `"${setting}" is not the name of a setting`);
      }
      const [row] = await rows('SHOW', `SHOW ${setting}`);
      return Buffer.from(row?.[0] ?? '', 'latin1').toString('utf8');
    },
    async timelineHistory(timeline) {
      const [row] = await rows('TIMELINE_HISTORY', `TIMELINE_HISTORY ${timeline}`);
      const [fileName, content] = row ?? [];
      if (fileName === undefined || content === undefined) {
        throw new HoldfastError('server-error', `${server} sent no history of timeline ${timeline}`);
      }
      const bytes = Buffer.from(content, 'latin1');
      return { fileName, bytes, history: parseTimelineHistory(timeline, bytes.toString('utf8')) };
    },
    async baseBackup(backupOptions, sink) {
      const reader = new BaseBackupReader(sink);
      try {
        await wire.query('BASE_BACKUP', baseBackupCommand(backupOptions), {
          row: (row) => {
            reader.row(row);
          },
          done: () => {
            reader.resultDone();
          },
          copy: reader,
          notice: (message) => backupOptions.onNotice?.(message),
        });
      } catch (error) {
        throw explainFailure(error, reader);
      }
      return reader.end();
    },
    async createPhysicalSlot(name) {
      await rows(
        'CREATE_REPLICATION_SLOT',
        `CREATE_REPLICATION_SLOT ${slotIdentifier(name)} PHYSICAL (RESERVE_WAL)`,
      );
    },
    async readSlot(name) {
      const [row] = await rows('READ_REPLICATION_SLOT', `READ_REPLICATION_SLOT ${slotIdentifier(name)}`);
      const [type, restartLsn, timeline] = row ?? [];
      if (type === undefined) return undefined;
      return {
        restartLsn: restartLsn === undefined ? undefined : parseLsn(restartLsn),
        restartTimeline: timeline === undefined ? undefined : timelineOf(Number(timeline)),
      };
    },
    async dropSlot(name) {
      await rows('DROP_REPLICATION_SLOT', `DROP_REPLICATION_SLOT ${slotIdentifier(name)}`);
    },
    async streamWal(streamOptions, sink) {
      try {
        return await runWalStream(wire, server, streamOptions, sink);
      } catch (error) {
        throw explainRefusal(error, await findRefusal(error, streamOptions, connection));
      }
    },
    close,
    [Symbol.asyncDispose]: close,
  };
  return connection;
}

function baseBackupCommand(options: BaseBackupOptions): string {
  const list = [
    `LABEL ${quote(options.label)}`,
    `CHECKPOINT ${quote(options.checkpoint ?? 'fast')}`,
    'WAIT false',
    'PROGRESS true',
    'TABLESPACE_MAP true',
    `MANIFEST 'yes'`,
    `MANIFEST_CHECKSUMS 'CRC32C'`,
    `VERIFY_CHECKSUMS ${options.verifyChecksums ?? true}`,
  ];
  if (options.maxRate !== undefined) list.push(`MAX_RATE ${Math.round(options.maxRate / 1024)}`);
  return `BASE_BACKUP (${list.join(', ')})`;
}

function quote(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** Damaged pages are reported by an error after the end of an otherwise whole backup. */
function explainFailure(error: unknown, reader: BaseBackupReader): unknown {
  if (!(error instanceof HoldfastError) || !/checksum verification failure/.test(errorText(error)))
    return error;
  const end = reader.endIfReached();
  return new HoldfastError('server-error', error.message, {
    hint: 'find the damaged relation in the server log (or with pg_amcheck) before old backups expire',
    context: {
      ...error.context,
      checksumFailures: true,
      stopLsn: end === undefined ? null : formatLsn(end.stopLsn),
      stopTimeline: end?.stopTimeline ?? null,
    },
    cause: error,
  });
}
