import { QuantariaError } from './errors';

/** Element types of tensors. float16, bfloat16 and float8 are stored as their bits. */
export type DType =
  | 'float32'
  | 'float16'
  | 'bfloat16'
  | 'float8_e4m3'
  | 'float8_e5m2'
  | 'int8'
  | 'uint8'
  | 'int16'
  | 'int32'
  | 'int64'
  | 'bool';

export type TypedArray =
  | Float32Array
  | Float64Array
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Int32Array
  | BigInt64Array;

interface Facts {
  bytes: number;
  /** the typed array that `Tensor.read` gives: of the storage bits */
  array: new (
    buffer: ArrayBuffer,
  ) => TypedArray;
  isFloat: boolean;
  /** as safetensors spells it */
  stored: string;
}

const FACTS: Readonly<Record<DType, Facts>> = {
  float32: { bytes: 4, array: Float32Array, isFloat: true, stored: 'F32' },
  float16: { bytes: 2, array: Uint16Array, isFloat: true, stored: 'F16' },
  bfloat16: { bytes: 2, array: Uint16Array, isFloat: true, stored: 'BF16' },
  float8_e4m3: { bytes: 1, array: Uint8Array, isFloat: true, stored: 'F8_E4M3' },
  float8_e5m2: { bytes: 1, array: Uint8Array, isFloat: true, stored: 'F8_E5M2' },
  int8: { bytes: 1, array: Int8Array, isFloat: false, stored: 'I8' },
  uint8: { bytes: 1, array: Uint8Array, isFloat: false, stored: 'U8' },
  int16: { bytes: 2, array: Int16Array, isFloat: false, stored: 'I16' },
  int32: { bytes: 4, array: Int32Array, isFloat: false, stored: 'I32' },
  int64: { bytes: 8, array: BigInt64Array, isFloat: false, stored: 'I64' },
  bool: { bytes: 1, array: Uint8Array, isFloat: false, stored: 'BOOL' },
};

export const DTYPES = Object.keys(FACTS) as DType[];

export function isDType(value: unknown): value is DType {
  return typeof value === 'string' && Object.hasOwn(FACTS, value);
}

/** @throws QuantariaError `ERR_DTYPE` naming the argument if `value` is no dtype, or not one of `allowed` */
export function checkDType(name: string, value: unknown, allowed: readonly DType[] = DTYPES): DType {
  if (isDType(value) && allowed.includes(value)) return value;
  throw new QuantariaError(
    'ERR_DTYPE',
    `${name}: ${typeof value === 'string' ? value : `a value of type ${typeof value}`} came, expected ${allowed.join(', ')}`,
  );
}

export const FLOAT_DTYPES: readonly DType[] = DTYPES.filter((dtype) => FACTS[dtype].isFloat);

export const bytesOf = (dtype: DType): number => FACTS[dtype].bytes;
export const isFloat = (dtype: DType): boolean => FACTS[dtype].isFloat;
export const arrayOf = (dtype: DType): Facts['array'] => FACTS[dtype].array;
export const storedName = (dtype: DType): string => FACTS[dtype].stored;

/** The dtype that safetensors spells `stored`; null for those that Quantaria copies but does not compute with. */
export function dtypeOfStored(stored: string): DType | null {
  return DTYPES.find((dtype) => FACTS[dtype].stored === stored) ?? null;
}
