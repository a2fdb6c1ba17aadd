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

export interface WindowOptions extends RowOptions {
  /** New ids of each row after the first: rows are windows over the ids, and overlap. Default: rows follow each other. */
  stride?: number;
}

export const DEFAULT_SEQ_LEN = 256;
/** Rows of calibration. */
export const DEFAULT_SAMPLES = 128;

/**
 * Rows of ids to run a model on.
 *
 * `tokens` is a file of little-endian ids without a header, uint16 (`.u16`) or int32 (`.i32`), read as rows. `text` is cut into
 * documents at blank lines (`.jsonl`: a document a line, a string or an object with `text`); each is encoded with the
 * tokenizer's own start token, they are joined, and row i is the start token and `stream[(L-1) i .. (L-1) (i+1)]`. A partial
 * last row is dropped.
 *
 * With a stride of S row i begins S ids after the one before it, and only its new ids are scored; the last row ends with the
 * last id, so that none is dropped.
 * @param directory of the model, for its tokenizer
 * @throws QuantariaError (as a rejection) `ERR_ARGUMENT` for less than a row or a stride that leaves ids out, `ERR_IO`,
 *   `ERR_FORMAT`
 */
export async function readRows(directory: string, options: WindowOptions): Promise<IdRows> {
  const { text, tokens, seqLen: length = DEFAULT_SEQ_LEN, samples = Number.MAX_SAFE_INTEGER } = options;
  if ((text === undefined) === (tokens === undefined)) {
    throw new QuantariaError(
      'ERR_ARGUMENT',
      'either a text or a file of tokens is needed (--text, --tokens)',
    );
  }
  const file = (text ?? tokens) as string;
  const { ids, startId } =
    tokens === undefined ? await textIds(directory, file) : { ids: await tokenIds(file), startId: null };
  // Of a row's ids, those that are of the stream.
  const own = startId === null ? length : length - 1;
  if (ids.length < own) {
    throw new QuantariaError('ERR_ARGUMENT', `${file}: ${ids.length} ids are less than one row of ${length}`);
  }
  const { stride } = options;
  if (stride === undefined) {
    const begins = Array.from({ length: Math.min(samples, Math.floor(ids.length / own)) }, (_, i) => i * own);
    return { ids: rowsAt(ids, begins, own, startId), length };
  }
  if (stride > own) {
    const why = startId === null ? '' : ', which begin with the start token,';
    throw new QuantariaError(
      'ERR_ARGUMENT',
      `--stride ${stride}: rows of ${length}${why} would leave ids out`,
    );
  }
  const windows = windowsOf(ids.length, own, stride).slice(0, samples);
  const begins = windows.map(({ begin }) => begin);
  const first = length - own;
  // The first id of a row has nothing before it.
  const scoredFrom = Int32Array.from(windows, ({ begin, from }) => Math.max(1, from - begin + first));
  return { ids: rowsAt(ids, begins, own, startId), length, scoredFrom };
}

/** Where each window begins, and its first id that no window before it has. */
function windowsOf(count: number, own: number, stride: number): { begin: number; from: number }[] {
  const windows = [{ begin: 0, from: 0 }];
  for (let end = own; end < count; ) {
    const next = Math.min(count, end + stride);
    windows.push({ begin: next - own, from: end });
    end = next;
  }
  return windows;
}

/** Rows of a stream, the start token before each if there is one. */
function rowsAt(
  stream: Int32Array,
  begins: readonly number[],
  own: number,
  startId: number | null,
): Int32Array {
  const length = startId === null ? own : own + 1;
  const ids = new Int32Array(begins.length * length);
  for (const [row, begin] of begins.entries()) {
    if (startId !== null) ids[row * length] = startId;
    ids.set(stream.subarray(begin, begin + own), (row + 1) * length - own);
  }
  return ids;
}

async function read(file: string): Promise<Buffer> {
  try {
    return await fs.readFile(file);
  } catch (error) {
    throw ioError(file, error);
  }
}

async function tokenIds(file: string): Promise<Int32Array> {
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

/** The documents of a text, joined, and the token that rows begin with. */
async function textIds(
  directory: string,
  file: string,
): Promise<{ ids: Int32Array; startId: number | null }> {
  const tokenizer = await Tokenizer.open(directory);
  const content = (await read(file)).toString('utf8');
  const stream: number[] = [];
  for (const document of documentsOf(file, content)) {
    for (const id of tokenizer.encode(document)) stream.push(id);
  }
  return { ids: Int32Array.from(stream), startId: tokenizer.startId };
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
