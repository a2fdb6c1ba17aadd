import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

/** A directory that goes when the test ends. */
export function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'quantaria-checkpoint-'));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** The bytes of a file with this header text (or bytes) and data. */
export function container(header: string | Uint8Array, data: Uint8Array = new Uint8Array(0)): Buffer {
  const text = typeof header === 'string' ? Buffer.from(header) : Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

export interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** A safetensors file of entries as they are given, by plain JSON. */
export function writeContainer(
  file: string,
  header: Record<string, unknown>,
  data: Uint8Array = new Uint8Array(0),
): string {
  writeFileSync(file, container(JSON.stringify(header), data));
  return file;
}

export const bytes = (count: number): Uint8Array =>
  Uint8Array.from({ length: count }, (_, i) => (i * 37 + 11) % 251);

/** One F32 tensor of shape [2] at an offset. */
export const f32 = (begin = 0): Entry => ({ dtype: 'F32', shape: [2], data_offsets: [begin, begin + 8] });
