import type { DType } from '../dtype';
import { native } from '../native';
import { Tensor } from '../tensor';

type IntegerDType = 'int8' | 'uint8' | 'int16' | 'int32';

/**
 * Packs each row of codes into a bit row: a dense stream, first code in the lowest bits, padded to whole 32-bit words.
 * @param codes `[rows, columns]`, an integer dtype; stored is the code plus `offset`, in `0 .. 2^bits - 1`
 * @param order 4 bits only: nibble j of each run of 8 holds column 8c + order[j]
 * @returns uint8 `[rows, 4 ceil(columns bits / 32)]`
 * @throws QuantariaError on the queue, `ERR_ARGUMENT`, for a code out of range
 */
export function packBits(
  codes: Tensor,
  bits: number,
  order?: readonly number[],
  offset = 0,
): Tensor<'uint8'> {
  return Tensor.wrap(native.packBits(Tensor.native(codes, 'codes'), bits, offset, order));
}

/**
 * The inverse of `packBits`.
 * @param packed uint8 `[rows, at least ceil(columns bits / 8)]`
 * @param dtype of the codes; default uint8, int32 for 16 bits
 * @returns `[rows, columns]` of stored code minus `offset`
 */
export function unpackBits<D extends IntegerDType = 'uint8'>(
  packed: Tensor,
  columns: number,
  bits: number,
  order?: readonly number[],
  options: { offset?: number; dtype?: D } = {},
): Tensor<D> {
  const dtype: DType = options.dtype ?? (bits === 16 ? 'int32' : 'uint8');
  return Tensor.wrap(
    native.unpackBits(Tensor.native(packed, 'packed'), columns, bits, options.offset ?? 0, dtype, order),
  );
}

/** Each byte's two halves exchanged: bitsandbytes keeps the first code in the high nibble. */
export function swapNibbles(bytes: Tensor): Tensor<'uint8'> {
  return Tensor.wrap(native.swapNibbles(Tensor.native(bytes, 'bytes')));
}

/**
 * quanto's packing along rows: byte p holds rows p, p + P, ... with P = ceil(rows / (8 / bits)), the first one lowest.
 * @param codes uint8 `[rows, columns]`, below 2^bits; bits is 2 or 4
 * @returns uint8 `[P, columns]`
 */
export function packPlanar(codes: Tensor, bits: number): Tensor<'uint8'> {
  return Tensor.wrap(native.packPlanar(Tensor.native(codes, 'codes'), bits));
}

/** The inverse of `packPlanar`, for a known number of rows. */
export function unpackPlanar(packed: Tensor, rows: number, bits: number): Tensor<'uint8'> {
  return Tensor.wrap(native.unpackPlanar(Tensor.native(packed, 'packed'), rows, bits));
}

/**
 * Integer codes plus `delta`, as another integer dtype.
 * @param clamp lowest and highest result; without it a result that `dtype` cannot hold fails on the queue
 */
export function offsetCodes<D extends IntegerDType>(
  codes: Tensor,
  delta: number,
  dtype: D,
  clamp?: readonly [number, number],
): Tensor<D> {
  return Tensor.wrap(native.offsetCodes(Tensor.native(codes, 'codes'), delta, dtype, clamp?.[0], clamp?.[1]));
}

/** The same bytes as another dtype and shape, without a copy. */
export function bitcast<D extends DType>(tensor: Tensor, dtype: D, shape: readonly number[]): Tensor<D> {
  return Tensor.wrap(native.tensorBitcast(Tensor.native(tensor, 'tensor'), dtype, shape));
}
