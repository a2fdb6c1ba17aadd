import { QuantariaError } from '../errors';
import { bitcast } from '../ops/bits';
import type { DType, Tensor } from '../tensor';
import type { StoredCheckpoint, StoredDType, TensorReader } from './types';

/** The safetensors name of a dtype that formats store. */
export const storedDType: Readonly<Record<DType, StoredDType>> = {
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  float8_e4m3: 'F8_E4M3',
  float8_e5m2: 'F8_E5M2',
  int8: 'I8',
  uint8: 'U8',
  int16: 'I16',
  int32: 'I32',
  int64: 'I64',
  bool: 'BOOL',
};

export type ScaleDType = 'float32' | 'float16' | 'bfloat16';

/** Scales of formats that follow the model are in its dtype; a model in 8-bit floats computes in bfloat16. */
export function scaleDTypeOf(modelDtype: DType): ScaleDType {
  return modelDtype === 'float32' || modelDtype === 'float16' ? modelDtype : 'bfloat16';
}

export const wordsOf = (codes: number, bits: number): number => Math.ceil((codes * bits) / 32);

/** Applies steps in order and releases every tensor between the first and the last. */
export function chain(first: Tensor, ...steps: readonly ((tensor: Tensor) => Tensor)[]): Tensor {
  let current = first;
  for (const step of steps) {
    const next = step(current);
    if (current !== first) current.dispose();
    current = next;
  }
  return current;
}

/** `chain` that releases the first tensor too. */
export function consume(first: Tensor, ...steps: readonly ((tensor: Tensor) => Tensor)[]): Tensor {
  const last = chain(first, ...steps);
  if (last !== first) first.dispose();
  return last;
}

/** Bit rows as the 32-bit words that formats call them. */
export const asWords = (packed: Tensor): Tensor =>
  bitcast(packed, 'int32', [packed.shape[0] as number, (packed.shape[1] as number) / 4]);
export const asBytes = (words: Tensor): Tensor =>
  bitcast(words, 'uint8', [words.shape[0] as number, (words.shape[1] as number) * 4]);

/** A view with a handle of its own, so that the caller can dispose of it. */
export const share = (tensor: Tensor): Tensor => tensor.reshape([...tensor.shape]);

export function malformed(tensor: string, problem: string): never {
  throw new QuantariaError('ERR_FORMAT', `${tensor}: ${problem}`);
}

type Entry = { dtype: string; shape: readonly number[] };

/** The header entry of a tensor that must be there, with one of these dtypes and as many dimensions. */
export function requireEntry(
  source: StoredCheckpoint,
  name: string,
  dtypes: readonly StoredDType[],
  dimensions: number,
): Entry {
  const entry = source.entries.get(name);
  if (entry === undefined) malformed(name, 'missing, though other tensors of the module are there');
  if (!(dtypes as readonly string[]).includes(entry.dtype)) {
    malformed(name, `dtype ${entry.dtype}, expected ${dtypes.join(' or ')}`);
  }
  if (entry.shape.length !== dimensions) {
    malformed(name, `shape [${entry.shape.join(', ')}], expected ${dimensions} dimensions`);
  }
  return entry;
}

export function requireShape(name: string, entry: Entry, expected: readonly number[]): void {
  if (entry.shape.length !== expected.length || entry.shape.some((size, index) => size !== expected[index])) {
    malformed(name, `shape [${entry.shape.join(', ')}], expected [${expected.join(', ')}]`);
  }
}

/** Names of the modules that have a tensor with this ending. */
export function modulesWith(source: StoredCheckpoint, ending: string): string[] {
  return [...source.entries.keys()]
    .filter((name) => name.endsWith(ending))
    .map((name) => name.slice(0, -ending.length));
}

/** All stored tensors of a module that end in one of these ways. */
export function tensorsOf(source: StoredCheckpoint, module: string, endings: readonly string[]): string[] {
  return endings.map((ending) => module + ending).filter((name) => source.entries.has(name));
}

/** What is read must be what the header said when the module was found. */
export async function readAs(
  read: TensorReader,
  name: string,
  dtype: DType,
  shape: readonly number[],
  range?: readonly [number, number],
): Promise<Tensor> {
  const tensor = await read(name, range);
  if (tensor.dtype !== dtype) malformed(name, `dtype ${tensor.dtype}, expected ${dtype}`);
  requireShape(name, tensor, shape);
  return tensor;
}
