import * as fs from 'node:fs/promises';
import { ioError } from '../checkpoint/json_file';
import { QuantariaError } from '../errors';
import type { IdRows } from './decoder';
import { Tokenizer } from './tokenizer';

/** Where the rows of ids come from: a text, or ids as they are. */
export interface RowOptions {
  text?: string;
  tokens?: string;
  /** Ids of a row; default 256. */
  seqLen?: number;
  /** The first N rows; default all. */
  samples?: number;
}

export const DEFAULT_SEQ_LEN = 256;

/**
 * Rows of ids to run a model on.
 *
 * `tokens` is a file of little-endian ids without a header, uint16 (`.u16`) or int32 (`.i32`), read as rows. `text` is cut into
 * documents at blank lines (`.jsonl`: a document a line, a string or an object with `text`); each is encoded with the
 * tokenizer's own start token, they are joined, and row i is the start token and `stream[(L-1) i .. (L-1) (i+1)]`. A partial
 * last row is dropped.
 * @param directory of the model, for its tokenizer
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for less than a row, `ERR_IO`, `ERR_FORMAT`
 */
export async function readRows(directory: string, options: RowOptions): Promise<IdRows> {
  const { text, tokens, seqLen: length = DEFAULT_SEQ_LEN, samples } = options;
  if ((text === undefined) === (tokens === undefined)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      'either a text or a file of tokens is needed (--text, --tokens)',
    );
  }
  const file = (text ?? tokens) as string;
  const ids = tokens === undefined ? await textRows(directory, file, length) : await tokenRows(file);
  const rows = Math.min(Math.floor(ids.length / length), samples ?? Number.MAX_SAFE_INTEGER);
  if (rows === 0) {
    throw new QuantariaError('ERR_ARGUMENT', `${file}: ${ids.length} ids are less than one row of ${length}`);
  }
  return { ids: ids.subarray(0, rows * length), length };
}

async function read(file: string): Promise<Buffer> {
  try {
    return await fs.readFile(file);
  } catch (error) {
    throw ioError(file, error);
  }
}

async function tokenRows(file: string): Promise<Int32Array> {
  const width = { u16: 2, i32: 4 }[/\.(u16|i32)$/.exec(file)?.[1] ?? ''];
  if (width === undefined) {
    throw new QuantariaError('ERR_ARGUMENT', `${file}: token files end in .u16 or .i32`);
  }
  const bytes = await read(file);
  if (bytes.length % width !== 0) {
    throw new QuantariaError(
      'ERR_FORMAT',
      `${file}: ${bytes.length} bytes are no whole number of ${8 * width}-bit ids`,
    );
  }
  const at = (i: number) => (width === 2 ? bytes.readUInt16LE(2 * i) : bytes.readInt32LE(4 * i));
  return Int32Array.from({ length: bytes.length / width }, (_, i) => at(i));
}

async function textRows(directory: string, file: string, length: number): Promise<Int32Array> {
  const tokenizer = await Tokenizer.open(directory);
  const content = (await read(file)).toString('utf8');
  const stream: number[] = [];
  for (const document of documentsOf(file, content)) {
    for (const id of tokenizer.encode(document)) stream.push(id);
  }
  const { startId } = tokenizer;
  const own = startId === null ? length : length - 1;
  const rows = Math.floor(stream.length / own);
  const ids = new Int32Array(rows === 0 ? stream.length : rows * length);
  if (rows === 0) return ids.map((_, i) => stream[i] as number);
  for (let row = 0; row < rows; ++row) {
    const begin = row * length;
    if (startId !== null) ids[begin] = startId;
    ids.set(stream.slice(row * own, (row + 1) * own), begin + length - own);
  }
  return ids;
}

function documentsOf(file: string, content: string): string[] {
  if (file.endsWith('.jsonl')) return jsonDocuments(file, content);
  return content
    .replace(/^\n+|\n+$/g, '')
    .split(/\n{2,}/)
    .filter((document) => document !== '');
}

function jsonDocuments(file: string, content: string): string[] {
  return content.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return [];
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new QuantariaError('ERR_FORMAT', `${file}: line ${i + 1}: ${(error as Error).message}`);
    }
    const text = typeof value === 'object' && value !== null ? (value as { text?: unknown }).text : value;
    if (typeof text === 'string') return [text];
    throw new QuantariaError(
      'ERR_FORMAT',
      `${file}: line ${i + 1}: a string or an object with a string text expected`,
    );
  });
}
