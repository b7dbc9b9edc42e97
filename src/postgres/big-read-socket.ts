import { Socket, type SocketConstructorOpts } from 'node:net';

/** Bytes taken from the kernel at once; a unix socket holds about this much. */
const READ_SIZE = 256 * 1024;

export interface BigReadSocket {
  socket: Socket;
  /**
   * From now on `data` carries slices of one buffer that every read fills anew: valid during the event or, where the
   * listener pauses the socket, until it resumes it. Before, each event has a copy of its own.
   */
  deliverShared(): void;
}

/**
 * A socket that reads into one buffer over and over, where an ordinary one makes a new buffer of 64 KiB for each read:
 * a third more throughput for a base backup, and no garbage.
 */
export function createBigReadSocket(): BigReadSocket {
  let shared = false;
  const options: SocketConstructorOpts = {
    onread: {
      buffer: Buffer.allocUnsafeSlow(READ_SIZE),
      callback: (size, bytes) => {
        const filled = Buffer.from(bytes.buffer, bytes.byteOffset, size);
        socket.emit('data', shared ? filled : Buffer.from(filled));
        return true;
      },
    },
  };
  const socket: Socket = new Socket(options);
  return {
    socket,
    deliverShared() {
      shared = true;
    },
  };
}
