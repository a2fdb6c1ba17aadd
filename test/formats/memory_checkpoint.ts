import type { JsonObject, StoredCheckpoint, TensorEntry } from '../../lib/formats';
import { type DType, Tensor, type TypedArray } from '../../lib/tensor';

/** A stored tensor as bytes: what a safetensors file would hold. */
export interface Raw {
  dtype: string;
  shape: number[];
  bytes: Uint8Array;
}

const dtypes: Readonly<Record<string, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  F8_E4M3: 'float8_e4m3',
  F8_E5M2: 'float8_e5m2',
  I8: 'int8',
  U8: 'uint8',
  I16: 'int16',
  I32: 'int32',
  I64: 'int64',
};
const names = new Map(Object.entries(dtypes).map(([stored, dtype]) => [dtype, stored]));

const arrays: Readonly<Record<string, new (buffer: ArrayBuffer) => TypedArray>> = {
  F32: Float32Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  F8_E4M3: Uint8Array,
  F8_E5M2: Uint8Array,
  I8: Int8Array,
  U8: Uint8Array,
  I16: Int16Array,
  I32: Int32Array,
  I64: BigInt64Array,
};

export async function rawOf(tensor: Tensor): Promise<Raw> {
  const data = await tensor.read();
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  return { dtype: names.get(tensor.dtype) as string, shape: [...tensor.shape], bytes };
}

export function tensorOf({ dtype, shape, bytes }: Raw): Tensor {
  const buffer = new ArrayBuffer(bytes.length);
  new Uint8Array(buffer).set(bytes);
  return Tensor.from(new arrays[dtype]!(buffer), shape, { dtype: dtypes[dtype] as DType });
}

/** A checkpoint that exists in memory only, with what was read from it counted by name. */
export function memoryCheckpoint(
  tensors: ReadonlyMap<string, Raw>,
  config: JsonObject | null,
  files: Readonly<Record<string, string>> = {},
): StoredCheckpoint {
  const entries = new Map(
    [...tensors].map(([name, { dtype, shape }]): [string, Omit<TensorEntry, 'dtype'> & { dtype: string }] => [
      name,
      { name, dtype, shape },
    ]),
  );
  return {
    config,
    entries,
    files,
    read: async (name, range) => {
      const raw = tensors.get(name);
      if (raw === undefined) throw new Error(`${name} was read but is not there`);
      const whole = tensorOf(raw);
      return range === undefined ? whole : whole.slice(0, range[0], range[1]);
    },
  };
}
