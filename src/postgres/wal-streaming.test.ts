import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, type Socket, connect, createServer } from 'node:net';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { type Lsn, lsnOf } from './lsn.ts';
import { ReplicationWire } from './replication-wire.ts';
import { timelineOf } from './timeline.ts';
import type { WalStreamControl, WalStreamEnd } from './wal-stream.ts';
import { type WalStreamOptions, runWalStream } from './wal-streaming.ts';

const START = lsnOf(0x300_0000n);
const BYTES = Buffer.from(Array.from({ length: 300 }, (_, index) => index % 251));

// What a server says. Real ones are in the integration tests; this one says it in pieces, and what none would.
const BOTH = message('W', Buffer.from([0, 0, 0]));
const COPY_DONE = message('c', Buffer.alloc(0));
const COMPLETE = message('C', Buffer.from('START_STREAMING\0'));
const READY = message('Z', Buffer.from('I'));
const NOTICE = message('N', Buffer.from('SNOTICE\0C00000\0Mjust so\0\0'));
const ERROR = message('E', Buffer.from('SERROR\0C58P01\0Mrequested WAL segment was removed\0\0'));

function message(type: string, body: Buffer): Buffer {
  const head = Buffer.alloc(5, type);
  head.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

function data(at: bigint, bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(25, 'w');
  head.writeBigUInt64BE(at, 1);
  head.writeBigUInt64BE(at, 9);
  head.writeBigInt64BE(0n, 17);
  return message('d', Buffer.concat([head, bytes]));
}

function keepalive(time: bigint): Buffer {
  const body = Buffer.alloc(18, 'k');
  body.writeBigUInt64BE(START, 1);
  body.writeBigInt64BE(time, 9);
  body[17] = 1;
  return message('d', body);
}

function nextTimeline(switchPoint: string): Buffer {
  const columns = ['2', switchPoint].map((text) => {
    const size = Buffer.alloc(4);
    size.writeInt32BE(text.length);
    return Buffer.concat([size, Buffer.from(text)]);
  });
  return message('D', Buffer.concat([Buffer.from([0, 2]), ...columns]));
}

interface Outcome {
  end: WalStreamEnd | undefined;
  error: unknown;
  bytes: Buffer;
  /** What the client sent: types, and the bodies of CopyData. */
  sent: string;
  statuses: Buffer[];
  stops: number;
}

interface Play {
  /** Said at the command, in pieces of the given sizes. */
  says: Buffer[];
  pieces?: number[];
  /** Said when the client ends its side. */
  thenSays?: Buffer[];
  hangsUp?: boolean;
  options?: Partial<WalStreamOptions>;
  started?: (control: WalStreamControl) => void;
  write?: (control: WalStreamControl | undefined) => Promise<void> | undefined;
}

/** Runs a stream against a server that says its lines. */
async function play(lines: Play): Promise<Outcome> {
  const outcome: Outcome = {
    end: undefined,
    error: undefined,
    bytes: Buffer.alloc(0),
    sent: '',
    statuses: [],
    stops: 0,
  };
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    let rest: Buffer = Buffer.alloc(0);
    socket.on('data', (chunk: Buffer) => {
      rest = Buffer.concat([rest, chunk]);
      while (rest.length >= 5 && rest.length > rest.readUInt32BE(1)) {
        const size = rest.readUInt32BE(1) + 1;
        const type = rest.toString('latin1', 0, 1);
        outcome.sent += type;
        if (type === 'd') outcome.statuses.push(Buffer.from(rest.subarray(5, size)));
        if (type === 'Q') void say(socket, lines.says, lines.pieces, lines.hangsUp === true);
        if (type === 'c') void say(socket, lines.thenSays ?? [], undefined, false);
        rest = rest.subarray(size);
      }
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
  await once(socket, 'connect');
  const wire = new ReplicationWire(socket, 'it', 0);
  let control: WalStreamControl | undefined;
  let position: Lsn = START;
  const chunks: Buffer[] = [];
  try {
    outcome.end = await runWalStream(
      wire,
      'it',
      { timeline: timelineOf(1), start: START, stallMs: 0, ...lines.options },
      {
        started(given) {
          control = given;
          lines.started?.(given);
        },
        write(bytes, at) {
          assert.equal(at, position);
          position = lsnOf(at + BigInt(bytes.length));
          chunks.push(Buffer.from(bytes));
          return lines.write?.(control);
        },
        serverStops() {
          outcome.stops += 1;
        },
      },
    );
  } catch (error) {
    outcome.error = error;
  }
  outcome.bytes = Buffer.concat(chunks);
  socket.destroy();
  if (!socket.closed) await once(socket, 'close');
  server.close();
  await once(server, 'close');
  return outcome;
}

async function say(
  socket: Socket,
  lines: Buffer[],
  pieces: number[] = [1 << 20],
  hangsUp: boolean,
): Promise<void> {
  const all = Buffer.concat(lines);
  let turn = 0;
  for (let at = 0; at < all.length; turn += 1) {
    const size = pieces[turn % pieces.length] ?? 1;
    socket.write(all.subarray(at, at + size));
    at += size;
    await new Promise(setImmediate);
  }
  if (hangsUp) socket.end();
}

function assertFailure(outcome: Outcome, code: string, text: RegExp): void {
  const { error } = outcome;
  assert.ok(error instanceof HoldfastError, String(error));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, text);
}

/** Timeline 1 up to START + 300 in three messages, then the end. */
function wholeTimeline(switchPoint = '0/300012C'): Buffer[] {
  return [
    BOTH,
    data(START, BYTES.subarray(0, 100)),
    NOTICE,
    data(START + 100n, BYTES.subarray(100, 101)),
    data(START + 101n, BYTES.subarray(101)),
    COPY_DONE,
    nextTimeline(switchPoint),
    COMPLETE,
    COMPLETE,
    READY,
  ];
}

void describe('runWalStream()', () => {
  void it('runWalStream() takes a timeline up to its end, however it comes in pieces', async () => {
    const pieces = fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(pieces, fc.boolean(), async (sizes, isSlow) => {
        const outcome = await play({
          says: wholeTimeline(),
          pieces: sizes,
          ...(isSlow
            ? { write: async () => await new Promise<void>((resolve) => setImmediate(resolve)) }
            : {}),
        });
        assert.equal(outcome.error, undefined);
        const { end } = outcome;
        assert.deepEqual(end, { kind: 'timeline-ended', nextTimeline: 2, switchPoint: START + 300n });
        assert.ok(outcome.bytes.equals(BYTES));
        assert.match(outcome.sent, /^Qd*c$/, 'CopyDone is answered once, and nothing follows it');
      }),
      { numRuns: 30 },
    );
  });

  void it('runWalStream() accepts bytes beyond the switch, but none missing before it', async () => {
    const beyond = await play({ says: wholeTimeline('0/3000100') });
    assert.deepEqual(beyond.end, { kind: 'timeline-ended', nextTimeline: 2, switchPoint: START + 256n });
    assertFailure(
      await play({ says: wholeTimeline('0/300012D') }),
      'object-damaged',
      /only up to 0\/300012C/,
    );
    const hole = [BOTH, data(START, BYTES), data(START + 301n, BYTES)];
    assertFailure(
      await play({ says: hole }),
      'object-damaged',
      /bytes from 0\/300012D where those from 0\/300012C/,
    );
    const silent = [BOTH, COPY_DONE, COMPLETE, COMPLETE, READY];
    assertFailure(await play({ says: silent }), 'server-error', /without a word/);
  });

  void it('runWalStream() gives the words of an error in mid-stream', async () => {
    const outcome = await play({ says: [BOTH, data(START, BYTES), ERROR, READY] });
    assertFailure(outcome, 'server-error', /requested WAL segment was removed/);
    assert.ok(outcome.bytes.equals(BYTES));
    assert.ok(outcome.error instanceof HoldfastError && outcome.error.context['sqlState'] === '58P01');
    const cut = await play({ says: [BOTH, data(START, BYTES), ERROR], hangsUp: true });
    assertFailure(cut, 'server-error', /requested WAL segment was removed/);
    assertFailure(
      await play({ says: [BOTH, data(START, BYTES)], hangsUp: true }),
      'connection-lost',
      /closed/,
    );
    const down = await play({ says: [BOTH, data(START, BYTES), COMPLETE], hangsUp: true });
    assertFailure(down, 'connection-lost', /shut down/);
  });

  void it('runWalStream() hands over nothing after stop(), whatever still comes', async () => {
    for (const hangsUp of [false, true]) {
      const outcome = await play({
        says: [BOTH, data(START, BYTES), data(START + 300n, BYTES), data(START + 600n, BYTES)],
        thenSays: hangsUp ? [] : [COPY_DONE, nextTimeline('0/9000000'), COMPLETE, COMPLETE, READY],
        hangsUp,
        write: (control) => {
          control?.stop();
          control?.report({ written: START, flushed: START });
          return undefined;
        },
      });
      assert.deepEqual(outcome.end, { kind: 'stopped' });
      assert.ok(outcome.bytes.equals(BYTES));
      assert.equal(outcome.sent, 'Qc');
    }
  });

  void it('runWalStream() asks a silent server before it gives up', async () => {
    const outcome = await play({ says: [BOTH], options: { stallMs: 400 } });
    assertFailure(outcome, 'connection-lost', /sent nothing for 400 ms/);
    assert.equal(outcome.statuses.length, 1);
    assert.equal(outcome.statuses[0]?.readUInt8(33), 1);
  });

  void it('runWalStream() takes hasty requests for a shutdown, and answers them in measure', async () => {
    const times = (stepUs: number): Buffer[] =>
      Array.from({ length: 30 }, (_, index) => keepalive(BigInt(index * stepUs)));
    const end = [COPY_DONE, nextTimeline('0/3000000'), COMPLETE, COMPLETE, READY];
    const hasty = await play({ says: [BOTH, ...times(100_000), ...end] });
    assert.equal(hasty.stops, 1);
    assert.ok(hasty.statuses.length >= 1 && hasty.statuses.length <= 3, `${hasty.statuses.length} answers`);
    // Half of a wal_sender_timeout of two seconds; they come in a bunch where the sink had paused.
    assert.equal((await play({ says: [BOTH, ...times(1_000_000), ...end] })).stops, 0);
    const busy = times(1000).flatMap((one, index) => [
      one,
      data(START + BigInt(index), BYTES.subarray(0, 1)),
    ]);
    assert.equal((await play({ says: [BOTH, ...busy, ...end] })).stops, 0);
  });

  void it('runWalStream() reports no more than it got, and never less than before', async () => {
    const far = lsnOf(START + 1_000_000n);
    const outcome = await play({
      says: wholeTimeline(),
      started: (control) => {
        control.report({ written: far, flushed: far });
      },
      write: (control) => {
        control?.report({ written: START, flushed: START, applied: START, replyRequested: true });
        return undefined;
      },
    });
    const shown = outcome.statuses.map((body) => [1, 9, 17].map((at) => body.readBigUInt64BE(at)));
    assert.deepEqual(shown[0], [START, START, 0n]);
    const later = [START + 100n, START + 101n, START + 300n];
    assert.deepEqual(
      shown.slice(1),
      later.map((at) => [at, at, START]),
    );
    assert.deepEqual(
      outcome.statuses.map((body) => body.readUInt8(33)),
      [0, 1, 1, 1],
    );
  });
});
