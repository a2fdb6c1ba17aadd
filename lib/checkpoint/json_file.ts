import * as fs from 'node:fs/promises';
import { QuantariaError } from '../errors';
import { native } from '../native';

/** JSON text files of checkpoints are small (an index of 100 000 tensors takes 10 MB); a larger one is not what it says. */
const MAX_BYTES = 64 * 1000 * 1000;

/** An object as it comes out of a JSON file: nothing is known of its members. */
export type JsonObject = Record<string, unknown>;

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The system's reason, as the library's own error. */
export function ioError(path: string, error: unknown): QuantariaError {
  const reason = error instanceof Error ? error.message : String(error);
  return new QuantariaError('ERR_IO', `${path}: ${reason}`);
}

export function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException | null)?.code === 'ENOENT';
}

/**
 * The object in a JSON file, or null if the file is not there.
 * @throws QuantariaError `ERR_FORMAT` unless it is one JSON object in UTF-8 without repeated names, `ERR_IO`
 */
export async function readJsonObject(path: string): Promise<JsonObject | null> {
  let bytes: Buffer;
  try {
    const stat = await fs.stat(path);
    // Reading a pipe would wait for its other end.
    if (!stat.isFile()) throw new QuantariaError('ERR_IO', `${path}: not a regular file`);
    const { size } = stat;
    if (size > MAX_BYTES)
      throw new QuantariaError('ERR_FORMAT', `${path}: ${size} bytes, at most ${MAX_BYTES} expected`);
    bytes = await fs.readFile(path);
  } catch (error) {
    if (isMissing(error)) return null;
    throw error instanceof QuantariaError ? error : ioError(path, error);
  }
  native.checkJson(bytes, path);
  const value: unknown = JSON.parse(bytes.toString('utf8'));
  if (!isJsonObject(value)) throw new QuantariaError('ERR_FORMAT', `${path}: a JSON object expected`);
  return value;
}
