import * as path from 'node:path';
import { isJsonObject, readJsonObject } from '../checkpoint/json_file';
import { QuantariaError } from '../errors';
import { scaleMatrix } from '../ops/scaling';
import { Tensor } from '../tensor';
import type { OriginalTensor } from './original';
import { placedView } from './placement';

/** Beside the weights of a method that moves factors between them: what each tensor was multiplied by. */
export const FOLDING_FILE = 'folding.json';

/** Factors of output and input features of a tensor, as base64 of float32; of a vector the latter. */
export interface TensorFactors {
  rows?: string;
  columns?: string;
}

export type Folding = ReadonlyMap<string, TensorFactors>;

export const encodeFactors = (values: Float32Array): string =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64');

/** The content of the file. */
export const foldingText = (tensors: Record<string, TensorFactors>): string =>
  `${JSON.stringify({ tensors })}\n`;

/** @throws QuantariaError (as a rejection) `ERR_FORMAT`, `ERR_IO` */
export async function readFolding(directory: string): Promise<Folding> {
  const file = path.join(directory, FOLDING_FILE);
  const content = await readJsonObject(file);
  if (content === null) return new Map();
  const { tensors } = content;
  if (!isJsonObject(tensors)) throw new QuantariaError('ERR_FORMAT', `${file}: no object of tensors`);
  const isText = (value: unknown) => value === undefined || typeof value === 'string';
  for (const [name, factors] of Object.entries(tensors)) {
    if (isJsonObject(factors) && isText(factors.rows) && isText(factors.columns)) continue;
    throw new QuantariaError('ERR_FORMAT', `${file}: ${name}: rows and columns in base64 expected`);
  }
  return new Map(Object.entries(tensors as Record<string, TensorFactors>));
}

/** An original's tensor with the factors that it was multiplied by, in float32. */
export function foldedTensor(name: string, source: OriginalTensor, factors: TensorFactors): OriginalTensor {
  const { shape } = source;
  const [rows, columns] = shape.length === 1 ? [1, shape[0] as number] : (shape as [number, number]);
  const ofRows = decode(name, factors.rows, rows);
  const ofColumns = decode(name, factors.columns, columns);
  return {
    ...source,
    bytes: null,
    view(range) {
      using stored = placedView(source.view());
      using matrix = shape.length === 1 ? stored.reshape([1, columns]) : null;
      using left = ofRows && Tensor.from(ofRows, [rows], { dtype: 'float32' });
      using right = ofColumns && Tensor.from(ofColumns, [columns], { dtype: 'float32' });
      using scaled = scaleMatrix(matrix ?? stored, left, right);
      using whole = scaled.reshape([...shape]);
      const [start, end] = range ?? [0, shape[0] as number];
      const part = whole.slice(0, start, end);
      return Tensor.native(part, name);
    },
  };
}

function decode(name: string, text: string | undefined, count: number): Float32Array | null {
  if (text === undefined) return null;
  const bytes = Buffer.from(text, 'base64');
  if (bytes.length !== 4 * count) {
    throw new QuantariaError(
      'ERR_FORMAT',
      `${FOLDING_FILE}: ${name}: ${bytes.length} bytes of factors came, expected ${4 * count}`,
    );
  }
  return new Float32Array(new Uint8Array(bytes).buffer);
}

/** Factors cannot be held exactly in what a kept tensor is stored in: the most that its relative error may be. */
export const foldedRounding = (dtype: string): number =>
  ({ BF16: 2 ** -8, F16: 2 ** -11, F32: 2 ** -22 })[dtype] ?? 0;
