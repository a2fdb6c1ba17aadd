import { createHash } from 'node:crypto';
import type { Checkpoint } from '../checkpoint/reader';
import { version } from '../version';

/** Everything that decides a job's output, in one short text: two runs with the same one write the same bytes. */
export function fingerprintOf(source: Checkpoint, job: unknown): string {
  const tensors = source.entries().map(({ name, dtype, shape, bytes }) => [name, dtype, shape, bytes]);
  const text = JSON.stringify({ version, config: source.config, tensors, job });
  return createHash('sha256').update(text).digest('hex');
}
