import { createHash } from 'node:crypto';
import type { Checkpoint } from '../checkpoint/reader';
import { native } from '../native';
import { version } from '../version';

/** One piece of a tensor's bytes is looked at for so many of them: a model has to be told from its kin, not hashed. */
const STRIDE = 1 << 23;
const PIECE = 64;

/** Some of a tensor's bytes, the same at each call: the middle of each stretch. */
export async function sampleOf(source: Checkpoint, name: string): Promise<Buffer> {
  const { bytes } = source.info(name);
  const pieces: Promise<Buffer>[] = [];
  for (let at = 0; at < bytes; at += STRIDE) {
    const stretch = Math.min(STRIDE, bytes - at);
    const size = Math.min(PIECE, stretch);
    const start = at + Math.floor((stretch - size) / 2);
    pieces.push(readBytes(source, name, start, start + size));
  }
  return Buffer.concat(await Promise.all(pieces));
}

async function readBytes(source: Checkpoint, name: string, start: number, end: number): Promise<Buffer> {
  const view = source.bytes(name, start, end);
  try {
    const buffer = new ArrayBuffer(end - start);
    await native.tensorRead(view, buffer);
    return Buffer.from(buffer);
  } finally {
    native.tensorDispose(view);
  }
}

/**
 * Everything that decides a job's output, in one short text: two runs with the same one write the same bytes. Of the weights
 * samples have to do, which tell a model from another of the same shapes.
 */
export async function fingerprintOf(source: Checkpoint, job: unknown): Promise<string> {
  const tensors = source.entries().map(({ name, dtype, shape, bytes }) => [name, dtype, shape, bytes]);
  const hash = createHash('sha256').update(JSON.stringify({ version, config: source.config, tensors, job }));
  for (const name of source.names()) hash.update(await sampleOf(source, name));
  return hash.digest('hex');
}
