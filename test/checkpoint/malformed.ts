/** What a malformed checkpoint is: how it is made, and what the message must say. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';

export interface Malformed {
  name: string;
  /** Makes it in an empty directory and returns the path to open. */
  make: (directory: string) => string;
  code: 'ERR_FORMAT' | 'ERR_IO';
  /** The reason that the message gives. */
  says: RegExp;
  /** The file that the message names, if not the one that is opened. */
  names?: string;
}

export const FILE = 'model.safetensors';
/** A file of `size` bytes without blocks, that says its header has `length`. */
export function sparse(file: string, length: bigint, size: number, start = ''): void {
  const fd = openSync(file, 'w');
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(length);
  writeSync(fd, Buffer.concat([head, Buffer.from(start)]));
  ftruncateSync(fd, size);
  closeSync(fd);
}

/** A list of many items as JSON writes it, without its brackets. */
export const many = (count: number, item: (i: number) => string) =>
  Array.from({ length: count }, (_, i) => item(i)).join(',');
