import type { FrameLocation } from '../repository/block-map.ts';

/** Blocks of one file that come out of one frame. */
export interface WantedBlocks {
  frame: FrameLocation;
  plainOffset: number;
  path: string;
  fileOffset: number;
  bytes: number;
  hashes: Buffer;
}

/** A sort record whose order is the order of reading: by run, pack and offset in it. */
export function encodeWanted(wanted: WantedBlocks): [key: string, value: Buffer] {
  const { frame, hashes } = wanted;
  const path = Buffer.from(wanted.path, 'latin1');
  const value = Buffer.allocUnsafe(HEAD_BYTES + path.length + hashes.length);
  value.writeDoubleLE(frame.offset, 0);
  value.writeDoubleLE(wanted.fileOffset, 8);
  value.writeUInt32LE(frame.pack, 16);
  value.writeUInt32LE(frame.bytes, 20);
  value.writeUInt32LE(wanted.plainOffset, 24);
  value.writeUInt32LE(wanted.bytes, 28);
  value.writeUInt32LE(path.length, 32);
  path.copy(value, HEAD_BYTES);
  hashes.copy(value, HEAD_BYTES + path.length);
  const key = `${frame.run}/${hex(frame.pack, 8)}/${hex(frame.offset, 14)}`;
  return [key, value];
}

export function decodeWanted(key: string, value: Buffer): WantedBlocks {
  const pathEnd = HEAD_BYTES + value.readUInt32LE(32);
  return {
    frame: frameOfWanted(key, value),
    plainOffset: value.readUInt32LE(24),
    path: value.toString('latin1', HEAD_BYTES, pathEnd),
    fileOffset: value.readDoubleLE(8),
    bytes: value.readUInt32LE(28),
    hashes: value.subarray(pathEnd),
  };
}

/** The frame alone, for grouping. */
export function frameOfWanted(key: string, value: Buffer): FrameLocation {
  return {
    run: key.slice(0, key.indexOf('/')),
    pack: value.readUInt32LE(16),
    offset: value.readDoubleLE(0),
    bytes: value.readUInt32LE(20),
  };
}

const HEAD_BYTES = 36;

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}
