import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { HoldfastError } from '../errors.ts';
import { type Lsn, lsnOf } from './lsn.ts';
import { timelineOf } from './timeline.ts';
import { WalStreamReader, encodeStandbyStatus } from './wal-stream.ts';
import { judgeStart } from './wal-stream-refusal.ts';

/** Microseconds from 1970 to the first of January 2000. */
const Y2K = 946_684_800_000_000n;

interface Heard {
  serverEnd: bigint;
  time: bigint;
  replyRequested: boolean;
}

interface Taken {
  bytes: Buffer;
  heard: Heard[];
  position: Lsn;
}

function data(at: bigint, serverEnd: bigint, time: bigint, bytes: Uint8Array): Buffer {
  const head = Buffer.alloc(25, 'w');
  head.writeBigUInt64BE(at, 1);
  head.writeBigUInt64BE(serverEnd, 9);
  head.writeBigInt64BE(time - Y2K, 17);
  return Buffer.concat([head, bytes]);
}

function keepalive(serverEnd: bigint, time: bigint, replyRequested: boolean): Buffer {
  const message = Buffer.alloc(18, 'k');
  message.writeBigUInt64BE(serverEnd, 1);
  message.writeBigInt64BE(time - Y2K, 9);
  message[17] = replyRequested ? 1 : 0;
  return message;
}

/** Feeds messages, each cut into slices of at most `sizes[i]` bytes, as they come from a socket. */
function read(start: Lsn, messages: Buffer[], sizes: number[] = [1 << 20]): Taken {
  const taken: Taken = { bytes: Buffer.alloc(0), heard: [], position: start };
  const chunks: Buffer[] = [];
  const reader = new WalStreamReader(start, {
    write(bytes, at) {
      assert.equal(at, taken.position);
      chunks.push(Buffer.from(bytes));
      taken.position = lsnOf(at + BigInt(bytes.length));
      return undefined;
    },
    heard: (serverEnd, time, replyRequested) => taken.heard.push({ serverEnd, time, replyRequested }),
  });
  let turn = 0;
  for (const message of messages) {
    let at = 0;
    do {
      const size = sizes[turn++ % sizes.length] ?? 1;
      const end = Math.min(message.length, at + size);
      assert.equal(reader.slice(message, at, end, at === 0, end === message.length), end);
      at = end;
    } while (at < message.length);
  }
  taken.bytes = Buffer.concat(chunks);
  assert.equal(reader.position, taken.position);
  return taken;
}

const start = lsnOf(0x1_0000_0028n);
const time = Y2K + 123_456_789n;

function damaged(message: RegExp): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof HoldfastError && error.code === 'object-damaged', String(error));
    assert.match(error.message, message);
    return true;
  };
}

void describe('WalStreamReader', () => {
  void it('slice() hands on every byte once, in order, however the messages are cut', () => {
    const part = fc.oneof(
      fc.uint8Array({ maxLength: 60 }),
      fc.record({ replyRequested: fc.boolean(), serverEnd: fc.bigInt(0n, 2n ** 64n - 1n) }),
    );
    fc.assert(
      fc.property(
        fc.array(part, { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 10 }),
        (parts, sizes) => {
          let at: bigint = start;
          const expected: Uint8Array[] = [];
          const heard: Heard[] = [];
          const messages = parts.map((one, index) => {
            const now = time + BigInt(index);
            if (one instanceof Uint8Array) {
              const message = data(at, at + 1000n, now, one);
              heard.push({ serverEnd: at + 1000n, time: now, replyRequested: false });
              expected.push(one);
              at += BigInt(one.length);
              return message;
            }
            heard.push({ ...one, time: now });
            return keepalive(one.serverEnd, now, one.replyRequested);
          });
          const taken = read(start, messages, sizes);
          assert.ok(taken.bytes.equals(Buffer.concat(expected)));
          assert.deepEqual(taken.heard, heard);
          assert.equal(taken.position, at);
        },
      ),
    );
  });

  void it('slice() refuses a hole, a repetition and what is no message', () => {
    const ten = Buffer.alloc(10, 7);
    const first = data(start, start, time, ten);
    for (const at of [start + 11n, start + 9n, start, start - 10n, 0n]) {
      assert.throws(() => read(start, [first, data(at, at, time, ten)]), damaged(/bytes from .* follow/));
    }
    assert.throws(() => read(start, [data(start + 1n, start, time, ten)]), damaged(/follow/));
    assert.throws(() => read(start, [Buffer.from('x')]), damaged(/type 120/));
    assert.throws(() => read(start, [Buffer.alloc(0)]), damaged(/empty/));
    assert.throws(() => read(start, [first.subarray(0, 24)]), damaged(/too short/));
    assert.throws(
      () => read(start, [keepalive(start, time, true).subarray(0, 17)], [3]),
      damaged(/too short/),
    );
    const long = Buffer.concat([keepalive(start, time, true), Buffer.from('x')]);
    for (const sizes of [[100], [18], [1]])
      assert.throws(() => read(start, [long], sizes), damaged(/too long/));
  });
});

void describe('encodeStandbyStatus()', () => {
  void it('encodeStandbyStatus() has the layout of the manual', () => {
    const body = encodeStandbyStatus({
      written: lsnOf(2n ** 64n - 1n),
      flushed: lsnOf(0x1_0000_0002n),
      applied: lsnOf(0n),
      time: Y2K + 1n,
      replyRequested: true,
    });
    assert.equal(
      body.toString('hex'),
      `72${'f'.repeat(16)}0000000100000002${'0'.repeat(16)}000000000000000101`,
    );
  });
});

void describe('judgeStart()', () => {
  void it('judgeStart() knows positions beyond the end of WAL and beside the history', () => {
    const [one, two, three] = [timelineOf(1), timelineOf(2), timelineOf(3)];
    const system = { timeline: three, position: lsnOf(900n) };
    const history = {
      timeline: three,
      entries: [{ timeline: one, end: lsnOf(500n), reason: '' }],
    };
    const judge = (timeline: typeof one, at: bigint): string | undefined =>
      judgeStart({ timeline, start: lsnOf(at) }, system, history);
    assert.equal(judge(three, 900n), undefined);
    assert.equal(judge(three, 901n), 'ahead-of-server');
    assert.equal(judge(one, 500n), undefined);
    assert.equal(judge(one, 501n), 'not-in-history');
    assert.equal(judge(two, 1n), 'not-in-history');
    assert.equal(
      judgeStart({ timeline: timelineOf(4), start: lsnOf(1n) }, system, undefined),
      'not-in-history',
    );
  });
});
